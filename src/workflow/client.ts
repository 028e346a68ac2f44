/** What a caller does with workflows: start one, hold a handle on it, wait for its result, steer it. */

import { uuidv7 } from 'uuidv7'
import type { Transaction } from '../db/connect.ts'
import { MillraceError } from '../errors.ts'
import { cancelRuns, restartRun, resumeRun, signalRun, terminateRun } from './control.ts'
import type { Workflow } from './define.ts'
import type { Definition } from './definitions.ts'
import type { Engine } from './engine.ts'
import { insertRunIn, newRun, type StartOptions } from './start.ts'

export type Handle<O = unknown> = {
  id: string
  runId: string
  /**
   * Waits for the end, whichever process comes to it.
   * @throws MillraceError with the run's own error (`run_failed` with its name and message), `cancelled`, `terminated`
   *         or `timed_out`
   */
  result: (signal?: AbortSignal) => Promise<O>
  status: () => Promise<RunStatus>
  signal: (name: string, payload?: unknown) => Promise<void>
  /** Asks it to end: its cleanup and compensations run. @returns false when it had ended */
  cancel: () => Promise<boolean>
  /** Ends it at once. */
  terminate: () => Promise<void>
  /** Lets a stuck run go on with the code that is loaded now. */
  resume: () => Promise<void>
  /** Runs it again from a step (name or position), as a new run under the same id. */
  restart: (from?: number | string, options?: { version?: string }) => Promise<Handle<O>>
}

export type RunStatus = {
  status: string
  name: string
  version: string
  state: unknown
  error: { name: string; message: string; code?: string; details?: Record<string, unknown> } | null
  createdAt: Date
  finishedAt: Date | null
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
  return startDefined(engine, workflow, input, options) as Promise<Handle<O>>
}

/** The same for a workflow that this process need not have loaded. */
export async function startDefined(
  engine: Engine,
  definition: Definition,
  input: unknown,
  options: StartOptions,
): Promise<Handle> {
  const row = newRun(engine.control.tenant, definition, input, options)
  for (;;) {
    if (await engine.begin(row)) return handleOf(engine, row.runId, row.id)
    const last = await lastOf(engine, row.id!)
    if (last === undefined) continue
    switch (decide(last.status, options)) {
      case 'use':
        return handleOf(engine, last.runId, row.id)
      case 'fail':
        throw new MillraceError(
          'conflict',
          `A run with id ${row.id} exists and is ${last.status}: choose another id, or say with onConflict or reuse what to do`,
          { details: { runId: last.runId, status: last.status } },
        )
      case 'terminate':
        // It may end by itself meanwhile: the next round sees which.
        await terminateRun(engine.control, last.runId).catch(() => {})
        break
      case 'again':
        row.generation = last.generation + 1
        row.runId = uuidv7()
        row.status = row.delayMs === null ? 'queued' : 'waiting'
    }
  }
}

const OPEN = new Set(['queued', 'running', 'waiting', 'stuck'])

function decide(
  status: string,
  { onConflict = 'use', reuse = 'use' }: StartOptions,
): 'use' | 'fail' | 'terminate' | 'again' {
  if (OPEN.has(status)) return onConflict
  // What was terminated to make room has made room.
  if (onConflict === 'terminate' && status === 'terminated') return 'again'
  if (reuse === 'again-if-failed') return status === 'completed' ? 'use' : 'again'
  return reuse
}

/**
 * Starts a run in a transaction of the caller's: it exists if and only if that commits. It begins within a sweep (half
 * a second), since nobody can be told before the COMMIT.
 * @throws MillraceError `conflict` when another run has its id; the transaction can go on
 */
export async function startRunIn<I, O>(
  engine: Engine,
  tx: Transaction,
  workflow: Workflow<I, O>,
  input: I,
  options: Omit<StartOptions, 'onConflict' | 'reuse'> = {},
): Promise<Handle<O>> {
  const row = newRun(engine.control.tenant, workflow, input, options)
  if (!(await insertRunIn(tx, row))) throw new MillraceError('conflict', `A run with id ${row.id} exists`)
  return handleOf<O>(engine, row.runId, row.id)
}

/**
 * A handle on a run by its own id, or by the id it was started under (then the last run of that id).
 * @throws MillraceError `not_found`
 */
export async function findRun<O = unknown>(engine: Engine, id: string): Promise<Handle<O>> {
  const last = await lastOf(engine, id)
  if (last !== undefined) return handleOf<O>(engine, last.runId, id)
  if (UUID.test(id)) {
    const { rows } = await engine.control.pool.query('select id from workflow_runs where run_id = $1 and tenant = $2', [
      id,
      engine.control.tenant,
    ])
    if (rows[0] !== undefined) return handleOf<O>(engine, id, rows[0].id)
  }
  throw new MillraceError('not_found', `There is no run ${id}`)
}

const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i

async function lastOf(engine: Engine, id: string) {
  const { rows } = await engine.control.pool.query<{ runId: string; status: string; generation: number }>(
    `select run_id as "runId", status, generation from workflow_runs
     where id = $1 and tenant = $2 order by generation desc limit 1`,
    [id, engine.control.tenant],
  )
  return rows[0]
}

function handleOf<O>(engine: Engine, runId: string, id: string | null): Handle<O> {
  const { control } = engine
  return {
    id: id ?? runId,
    runId,
    result: (signal) => engine.results.wait(runId, signal) as Promise<O>,
    status: () => statusOf(engine, runId),
    signal: (name, payload) => signalRun(control, runId, name, payload),
    cancel: async () => (await cancelRuns(control, [runId])).length === 1,
    terminate: () => terminateRun(control, runId),
    resume: () => resumeRun(control, runId),
    restart: async (from = 0, { version } = {}) => {
      const newRunId = await restartRun(control, { runId, newRunId: uuidv7(), from, version: version ?? null })
      return handleOf<O>(engine, newRunId, id)
    },
  }
}

async function statusOf(engine: Engine, runId: string): Promise<RunStatus> {
  const { rows } = await engine.control.pool.query<RunStatus>(
    `select status, name, version, state, error, created_at as "createdAt", finished_at as "finishedAt"
     from workflow_runs where run_id = $1`,
    [runId],
  )
  if (rows[0] === undefined) throw new MillraceError('not_found', `There is no run ${runId}`)
  return rows[0]
}
