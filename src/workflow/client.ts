/** What a caller does with workflows: start one, hold a handle on it, wait for its result. */

import { MillraceError } from '../errors.ts'
import type { Workflow } from './define.ts'
import type { Engine } from './engine.ts'
import { newRun, type StartOptions } from './start.ts'

export type Handle<O = unknown> = {
  id: string
  runId: string
  /**
   * @throws MillraceError with the run's own error (`run_failed` and its name and message), `cancelled`, `terminated`
   *         or `timed_out`
   */
  result: (signal?: AbortSignal) => Promise<O>
}

/**
 * Starts a run; resolves when it is durable.
 * @throws MillraceError `conflict` where the options say so
 */
export async function startRun<I, O>(
  engine: Engine,
  workflow: Workflow<I, O>,
  input: I,
  options: StartOptions = {},
): Promise<Handle<O>> {
  const row = newRun(workflow, input, options)
  if (await engine.begin(row)) return handleOf<O>(engine, row.runId, row.id)
  throw new MillraceError('conflict', `A run with id ${row.id} exists`)
}

function handleOf<O>(engine: Engine, runId: string, id: string | null): Handle<O> {
  return { id: id ?? runId, runId, result: (signal) => engine.results.wait(runId, signal) as Promise<O> }
}
