/** The workflows of a user's modules: whatever they export that `workflow()` made. */

import { resolve } from 'node:path'
import { pathToFileURL } from 'node:url'
import { describe, MillraceError } from '../errors.ts'
import { codeOf, isWorkflow, type Workflow } from './define.ts'

/**
 * Imports modules (TypeScript as it is: Node strips the types) and collects their workflows.
 * @throws MillraceError `invalid_request` for a module that does not load or exports no workflow, and for two workflows
 *         of one name and version
 */
export async function loadWorkflows(paths: string[]): Promise<Workflow[]> {
  const found = new Map<string, Workflow>()
  for (const path of paths) {
    const workflows = (await exportsOf(path)).flat().filter(isWorkflow)
    if (workflows.length === 0)
      throw new MillraceError(
        'invalid_request',
        `${path} exports no workflow: write export const x = workflow('x', ...)`,
      )
    for (const each of workflows) {
      const known = found.get(codeOf(each))
      if (known !== undefined && known !== each)
        throw new MillraceError(
          'invalid_request',
          `Two workflows are called ${each.name}${each.version === '' ? '' : ` of version ${each.version}`}: give one another name or version`,
        )
      found.set(codeOf(each), each)
    }
  }
  return [...found.values()]
}

async function exportsOf(path: string): Promise<unknown[]> {
  try {
    return Object.values((await import(pathToFileURL(resolve(path)).href)) as object)
  } catch (error) {
    throw new MillraceError('invalid_request', `${path} does not load: ${describe(error)}`, { cause: error })
  }
}
