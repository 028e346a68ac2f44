/** A JSON body that is read whole, for the routes that take something else than events. */

import type { Context } from 'koa'
import type { Config } from '../config.ts'
import { MillraceError } from '../errors.ts'
import { jsonProblem } from '../secrets.ts'
import { createBodyMemory, readWhole } from './body.ts'

/** As the pipeline holds it with events: no honest input comes near, and every reader recurses. */
const DEPTH_MAX = 128

const utf8 = new TextDecoder('utf-8', { fatal: true })

/** Reads a JSON body; gives `absent` where there is none. */
export type ReadBody = (ctx: Context, absent?: unknown) => Promise<unknown>

/** @param most  bytes of a body, and what the answer calls that limit */
export function jsonBodies(config: Config, most: { bytesMax: number; limit: string }): ReadBody {
  const memory = createBodyMemory(config)
  return async (ctx, absent) => {
    const bytes = await readWhole(ctx.req, { ...most, memory }, config)
    memory.give(bytes.length)
    if (bytes.length === 0) return absent
    let body: unknown
    try {
      body = JSON.parse(utf8.decode(bytes))
    } catch (error) {
      throw new MillraceError('invalid_request', `The body is not JSON: ${jsonProblem(error)}`)
    }
    if (deeperThan(body, DEPTH_MAX))
      throw new MillraceError('invalid_request', `The body nests deeper than ${DEPTH_MAX} levels`)
    return body
  }
}

function deeperThan(value: unknown, levels: number): boolean {
  if (typeof value !== 'object' || value === null) return false
  return levels === 0 || Object.values(value).some((child) => deeperThan(child, levels - 1))
}
