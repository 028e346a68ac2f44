/**
 * The workflow engine of a process: starts runs, and, when it has workflows loaded, runs them.
 *
 * 1. startEngine takes the lease and loads the workflows' event listeners.
 * 2. start() inserts a run, and begins it here in the same statement when there is room for it.
 * 3. claim() takes queued and due runs: at a hint over NATS, when a timer rings, and at every sweep.
 * 4. beat() renews the lease and ends the leases of workers that died.
 * 5. stop() writes what is in hand and gives the rest back at once.
 */

import { hostname } from 'node:os'
import { uuidv7 } from 'uuidv7'
import type { Broker } from '../broker/connect.ts'
import type { DatabaseConnection } from '../db/connect.ts'
import { MillraceError } from '../errors.ts'
import { claimRuns, nextDueMs } from './claim.ts'
import { createClock, synchronise } from './clock.ts'
import { codeOf, type Workflow } from './define.ts'
import { openHandover } from './handover.ts'
import { openJournal } from './journal.ts'
import type { StartRow } from './journal-sql.ts'
import { endExpiredLeases, endLease, LEASE_MS, renewLease, takeLease } from './lease.ts'
import { dropRun, type LiveRun, type RunEnd, type Runner } from './live.ts'
import { createResults, type Ending, type Results } from './results.ts'
import { beginRun } from './run.ts'
import { openSessions } from './session.ts'
import { exists, insertRun } from './start.ts'
import { onQueued, onWoken, publishEnded, publishWakes } from './wakes.ts'

/** @property broker  null: everything works, only slower to notice (SWEEP_MS) */
export type EngineDeps = {
  database: DatabaseConnection
  databaseUrl: string
  broker: Broker | null
  onError: (error: unknown, doing: string) => void
}

/**
 * @property workflows  what this process runs; none: it only starts runs and asks about them
 * @property queues     which queues it takes from; default: those of its workflows
 * @property runsMax    runs in memory at once
 */
export type EngineOptions = {
  workflows?: Workflow[]
  queues?: string[]
  runsMax?: number
  leaseMs?: number
  sweepMs?: number
}

export type Engine = {
  deps: EngineDeps
  results: Results
  /** Begins a new run, here if there is room. @returns false when its id stands against it */
  begin: (row: StartRow) => Promise<boolean>
  /** The newest version loaded under a name: the last in the list. */
  workflow: (name: string) => Workflow | undefined
  /** One claim of every queue, now. */
  claim: () => Promise<void>
  runsHere: () => number
  stop: () => Promise<void>
}

const RUNS_MAX = 2_000
/** The fallback when NATS is away; also how late a hint that got lost can make a run. */
const SWEEP_MS = 500
/** Runs taken by one claim: enough to keep the database busy, few enough to share with other workers. */
const CLAIM_MAX = 500

export async function startEngine(deps: EngineDeps, options: EngineOptions = {}): Promise<Engine> {
  const { databaseUrl, broker, onError } = deps
  const pool = openSessions(databaseUrl, 'workflows', { max: 3, pipeline: false })
  const workflows = options.workflows ?? []
  const runsMax = options.runsMax ?? RUNS_MAX
  const leaseMs = options.leaseMs ?? LEASE_MS
  const codes = new Map(workflows.map((workflow) => [codeOf(workflow), workflow]))
  const byName = new Map(workflows.map((workflow) => [workflow.name, workflow]))
  const queues = options.queues ?? [...new Set(workflows.map((workflow) => workflow.queue))]
  const worker = workflows.length === 0 ? null : uuidv7()
  const clock = createClock()
  if (worker === null) await synchronise(clock, pool)
  else await takeLease(pool, clock, worker, `${hostname()}/${process.pid}`, leaseMs)

  const live = new Map<string, LiveRun>()
  const journal = openJournal(databaseUrl, worker)
  const results = createResults(
    pool,
    broker,
    (runId) => live.has(runId),
    (error) => onError(error, 'reading results'),
  )
  let stopping = false
  let dueTimer: NodeJS.Timeout | undefined
  let dueAt = Number.POSITIVE_INFINITY
  let endedElsewhere: string[] = []
  /** Which process handed a run over to this one. */
  const starters = new WeakMap<LiveRun, string>()

  /** Wakes this process when a run is due, if that is sooner than what it already waits for. */
  const armDue = (at: number) => {
    if (worker === null || stopping || at >= dueAt) return
    dueAt = at
    clearTimeout(dueTimer)
    dueTimer = setTimeout(
      () => {
        dueAt = Number.POSITIVE_INFINITY
        void claim()
      },
      Math.min(Math.max(0, at - clock.now()), 60_000),
    )
  }

  const ended = (run: LiveRun, end: RunEnd) => {
    const ending: Ending = {
      name: run.row.name,
      status: end.kind,
      output: end.kind === 'completed' ? end.output : null,
      error: 'error' in end ? end.error : null,
    }
    results.settle(run.row.runId, ending)
    // Started here and ended here without a break: whoever waits is here or at its starter, or will look.
    const starter = starters.get(run)
    if (starter !== undefined) handover.sendEnd(starter, run.row.runId, ending)
    if (run.row.epoch === 1 && run.startedHere) return
    if (endedElsewhere.length === 0)
      setImmediate(() => {
        publishEnded(broker, endedElsewhere)
        endedElsewhere = []
      })
    endedElsewhere.push(run.row.runId)
    if (backlog && live.size < runsMax / 2) void claim()
  }

  const runner: Runner = {
    journal,
    clock,
    live,
    ended,
    parked: (at) => at !== null && armDue(at),
    refresh: () => {},
  }

  let claiming: Promise<void> | null = null
  let again = false
  /** The last claim took all it could: more may be waiting. */
  let backlog = false
  const claimOnce = async () => {
    for (const queue of queues) {
      const room = Math.min(CLAIM_MAX, runsMax - live.size)
      if (room <= 0 || stopping) return
      const claimed = await claimRuns(pool, worker!, queue, [...codes.values()], room)
      backlog = claimed.length === room
      for (const { row, recorded } of claimed) beginRun(runner, row, codes.get(codeOf(row))!, recorded)
      if (backlog) again = live.size < runsMax / 2
    }
    const ms = await nextDueMs(pool)
    if (ms !== null) armDue(clock.now() + ms)
  }
  const claim = (): Promise<void> => {
    if (worker === null || stopping) return Promise.resolve()
    again = true
    claiming ??= (async () => {
      while (again && !stopping) {
        again = false
        await claimOnce()
      }
    })()
      .catch((error) => onError(error, 'claiming runs'))
      .finally(() => {
        claiming = null
      })
    return claiming
  }

  let beating: Promise<void> | null = null
  const beat = () => {
    beating ??= (async () => {
      if (!(await renewLease(pool, clock, worker!, leaseMs))) {
        for (const run of live.values()) dropRun(run, new MillraceError('conflict', 'The lease is lost'))
        onError(
          new MillraceError('conflict', 'This worker lost its lease: it starts again with a new one'),
          'renewing the lease',
        )
      }
      if ((await endExpiredLeases(pool)) > 0) void claim()
    })()
      .catch((error) => onError(error, 'renewing the lease'))
      .finally(() => {
        beating = null
      })
  }

  /** Inserts a run, and begins it at once if there is room for it here. */
  const beginHere = async (row: StartRow, starter?: string): Promise<boolean> => {
    const workflow = runnable(row)
    if (workflow !== undefined) row.status = 'running'
    const createdAt = clock.now()
    if (!(await insertRun(journal, row))) return false
    if (workflow !== undefined) {
      const run = beginRun(
        runner,
        {
          runId: row.runId,
          id: row.id,
          name: row.name,
          version: row.version,
          input: row.input,
          epoch: 1,
          wakes: 0,
          parentId: row.parentId,
          traceparent: row.traceparent,
          createdAt,
          deadlineAt: row.timeoutMs === null ? null : createdAt + row.timeoutMs,
        },
        workflow,
        [],
      )
      run.startedHere = true
      if (starter !== undefined) starters.set(run, starter)
    } else if (row.status === 'queued') publishWakes(broker, { queues: [row.queue], runs: [] })
    else armDue(createdAt + row.delayMs!)
    return true
  }
  const runnable = (row: StartRow): Workflow | undefined =>
    !stopping && row.status === 'queued' && queues.includes(row.queue) && live.size < runsMax
      ? codes.get(codeOf(row))
      : undefined

  const begin = async (row: StartRow): Promise<boolean> => {
    if (row.status !== 'queued' || runnable(row) !== undefined) return beginHere(row)
    const answer = await handover.offer(row)
    if (answer === 'begun' || answer === 'stands') return answer === 'begun'
    // A worker may have inserted it without saying so.
    return (await beginHere(row)) || (await exists(pool, row.runId))
  }
  const handover = openHandover(broker, worker ?? uuidv7(), worker === null ? [] : queues, beginHere, results.settle)

  const timers: NodeJS.Timeout[] = []
  const unsubscribe: (() => void)[] = []
  if (worker !== null) {
    timers.push(
      setInterval(() => void claim(), options.sweepMs ?? SWEEP_MS),
      setInterval(beat, leaseMs / 3),
    )
    for (const queue of queues) unsubscribe.push(onQueued(broker, queue, () => void claim()))
    unsubscribe.push(onWoken(broker, (runIds) => runner.refresh(runIds.filter((runId) => live.has(runId)))))
    void claim()
  }
  return {
    deps,
    results,
    begin,
    workflow: (name) => byName.get(name),
    claim,
    runsHere: () => live.size,
    async stop() {
      if (stopping) return
      stopping = true
      for (const timer of timers) clearInterval(timer)
      clearTimeout(dueTimer)
      for (const end of unsubscribe) end()
      handover.close()
      await claiming
      await beating
      for (const run of live.values()) dropRun(run, new MillraceError('unavailable', 'This worker is stopping'))
      await journal.close()
      if (worker !== null) {
        await endLease(pool, worker)
        publishWakes(broker, { queues, runs: [] })
      }
      results.close()
      await pool.end()
    },
  }
}
