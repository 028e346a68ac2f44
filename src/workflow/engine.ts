/**
 * The workflow engine of a process: starts runs, and, when it has workflows loaded, runs them.
 *
 * 1. startEngine takes the lease and loads the workflows' event listeners.
 * 2. start() inserts a run, and begins it here in the same statement when there is room for it.
 * 3. Queued and due runs are claimed (dispatch.ts): at a hint over NATS, when a timer rings, and at every sweep.
 * 4. keepLease renews the lease; chores end the leases of workers that died and find what got lost.
 * 5. stop() writes what is in hand and gives the rest back at once.
 */

import { hostname } from 'node:os'
import type pg from 'pg'
import type { PgBoss } from 'pg-boss'
import { uuidv7 } from 'uuidv7'
import type { Actor } from '../access/audit.ts'
import type { Broker } from '../broker/connect.ts'
import type { DatabaseConnection } from '../db/connect.ts'
import { MillraceError } from '../errors.ts'
import { OPERATOR_TENANT } from '../http/caller.ts'
import type { Tracing } from '../telemetry/tracing.ts'
import type { Claimed } from './claim.ts'
import { type Clock, createClock, synchronise } from './clock.ts'
import { type ControlDeps, cancelRuns } from './control.ts'
import { codeOf, type Workflow } from './define.ts'
import { registerDefinitions } from './definitions.ts'
import { type Dispatch, startDispatch } from './dispatch.ts'
import { dropRun } from './ending.ts'
import { type Handover, openHandover } from './handover.ts'
import { readNews } from './incoming.ts'
import { type Journal, openJournal } from './journal.ts'
import type { StartRow } from './journal-sql.ts'
import { clearMailboxes, endExpiredLeases, endLease, keepLease, LEASE_MS, takeLease } from './lease.ts'
import { type LimitedQueues, readLimitedQueues } from './limits.ts'
import { createListeners, type Listeners } from './listen.ts'
import type { EngineMetrics, LiveRun, RunEnd, Runner, RunRow } from './live.ts'
import { repeat } from './repeat.ts'
import { createResults, type Ending, type Results } from './results.ts'
import { beginRun } from './run.ts'
import { openSessions } from './session.ts'
import { exists, insertRun } from './start.ts'
import { createStrays } from './strays.ts'
import { onQueued, onWoken, publishEnded, publishWakes } from './wakes.ts'

/**
 * @property broker  null: everything works, only slower to notice (SWEEP_MS)
 * @property jobs    pg-boss, where failed runs become dead letters
 */
export type EngineDeps = {
  database: DatabaseConnection
  databaseUrl: string
  broker: Broker | null
  jobs?: PgBoss | null
  telemetry?: { tracing: Pick<Tracing, 'tracer'>; metrics: EngineMetrics }
  onError: (error: unknown, doing: string) => void
}

/**
 * @property workflows  what this process runs; none: it only starts runs and asks about them
 * @property queues     which queues it takes from; default: those of its workflows
 * @property runsMax    runs in memory at once
 * @property tenant     whose runs and schedules calls of this engine start and find (default `default`); a worker runs
 *                      those of all tenants
 */
export type EngineOptions = {
  workflows?: Workflow[]
  queues?: string[]
  runsMax?: number
  tenant?: string
  leaseMs?: number
  sweepMs?: number
}

export type Engine = {
  deps: EngineDeps
  results: Results
  control: ControlDeps
  /** Begins a new run, here if there is room. @returns false when its id stands against it */
  begin: (row: StartRow) => Promise<boolean>
  /** The newest version loaded under a name: the last in the list. */
  workflow: (name: string) => Workflow | undefined
  runsHere: () => number
  stop: () => Promise<void>
}

/** The same engine at the service of someone who sees their tenant's runs, and whose acts are to be known. */
export const actingFor = (engine: Engine, by: Actor): Engine => ({
  ...engine,
  control: { ...engine.control, by, tenant: by.tenant },
})

const RUNS_MAX = 2_000
/** The fallback when NATS is away; also how late a hint that got lost can make a run. */
const SWEEP_MS = 500

/** Takes the lease, loads the listeners, and goes to work. */
export async function startEngine(deps: EngineDeps, options: EngineOptions = {}): Promise<Engine> {
  const { broker, databaseUrl, onError } = deps
  const workflows = options.workflows ?? []
  const pool = openSessions(databaseUrl, 'workflows', 3)
  const worker = workflows.length === 0 ? null : uuidv7()
  const clock = createClock()
  const listeners = createListeners(pool)
  const leaseMs = options.leaseMs ?? LEASE_MS
  let lease: HeldLease | null = null
  if (worker === null) await synchronise(clock, pool)
  else {
    await registerDefinitions(pool, workflows)
    await listeners.register(workflows)
    const terms = { clock, id: worker, name: `${hostname()}/${process.pid}`, leaseMs }
    lease = { ...terms, heldUntil: await takeLease({ pool, ...terms }) }
  }
  const live = new Map<string, LiveRun>()
  const results = createResults(
    pool,
    broker,
    (runId) => live.has(runId) || handover.expects(runId),
    (error) => onError(error, 'reading results'),
  )
  const journal = openJournal(databaseUrl, worker, deps.jobs ?? null)
  const control = { pool, broker, jobs: deps.jobs ?? null, tenant: options.tenant ?? OPERATOR_TENANT, by: null }
  const limits = readLimitedQueues(pool)
  if (worker !== null) await limits.refresh()
  const queues = options.queues ?? [...new Set(workflows.map((workflow) => workflow.queue))]
  const place = {
    codes: new Map(workflows.map((workflow) => [codeOf(workflow), workflow])),
    queues,
    runsMax: options.runsMax ?? RUNS_MAX,
  }
  const parts = { deps, pool, clock, live, results, journal, control, listeners, limits, place, worker }
  const runner = createRunner(parts)
  const stopWorking =
    lease === null ? async () => {} : work({ ...parts, lease, runner, sweepMs: options.sweepMs ?? SWEEP_MS })
  const beginFor = async (row: StartRow, starter: string) => {
    runner.place(row)
    return beginHere(runner, row, starter)
  }
  const handover = openHandover(broker, worker ?? uuidv7(), worker === null ? [] : queues, beginFor, (runId, ending) =>
    ending === null ? results.ended([runId]) : results.settle(runId, ending),
  )
  runner.handover = handover
  const byName = new Map(workflows.map((workflow) => [workflow.name, workflow]))
  let stopped: Promise<void> | undefined
  return {
    deps,
    results,
    control,
    begin: async (row) => {
      runner.place(row)
      if (row.status !== 'queued') return beginHere(runner, row)
      const answer = await handover.offer(row)
      if (answer === 'begun' || answer === 'stands') return answer === 'begun'
      // A worker may have inserted it without saying so.
      return (await beginHere(runner, row)) || (await exists(pool, row.runId))
    },
    workflow: (wanted) => byName.get(wanted),
    runsHere: () => live.size,
    stop() {
      stopped ??= (async () => {
        runner.stopping = true
        handover.close()
        await stopWorking()
        await journal.close()
        if (worker !== null) {
          // If nobody answers, the lease runs out by itself.
          await endLease(pool, worker).catch((error) => onError(error, 'ending the lease'))
          publishWakes(broker, { queues, runs: [] })
        }
        results.close()
        await pool.end()
      })()
      return stopped
    },
  }
}

type Parts = {
  deps: EngineDeps
  pool: pg.Pool
  clock: Clock
  live: Map<string, LiveRun>
  results: Results
  journal: Journal
  control: ControlDeps
  listeners: Listeners
  limits: LimitedQueues
  place: { codes: Map<string, Workflow>; queues: string[]; runsMax: number }
  worker: string | null
}

type ProcessRunner = Runner & {
  stopping: boolean
  dispatch: Dispatch | null
  handover: Handover | null
  /** Which process handed a run over to this one. */
  starters: WeakMap<LiveRun, string>
}

/** Inserts a placed run and, if it is to run here, begins it. @returns false when its id stands against it */
async function beginHere(runner: ProcessRunner, row: StartRow, starter?: string): Promise<boolean> {
  let written = await insertRun(runner.journal, row)
  if (!written && row.status === 'running' && row.id === null) {
    // No id stands against it, so this worker lost its lease just now: any worker may have the run.
    row.status = 'queued'
    written = await insertRun(runner.journal, row)
  }
  if (!written) return false
  const run = runner.begun(row)
  if (run !== undefined && starter !== undefined) runner.starters.set(run, starter)
  return true
}

/** What runs ask of their process. */
function createRunner({
  deps,
  pool,
  clock,
  live,
  results,
  journal,
  control,
  listeners,
  limits,
  place,
}: Parts): ProcessRunner {
  const { broker, onError } = deps
  const soon = (act: (ids: string[]) => void) => {
    let ids: string[] = []
    return (more: string[]) => {
      if (more.length === 0) return
      if (ids.length === 0)
        setImmediate(() => {
          const all = ids
          ids = []
          act(all)
        })
      ids.push(...more)
    }
  }
  const announce = soon((runIds) => publishEnded(broker, runIds))
  const runner: ProcessRunner = {
    stopping: false,
    dispatch: null,
    handover: null,
    starters: new WeakMap(),
    journal,
    clock,
    live,
    db: deps.database.db,
    tracer: deps.telemetry?.tracing.tracer,
    metrics: deps.telemetry?.metrics ?? null,
    listen: listeners.ensure,
    crowded: () => live.size > place.runsMax / 2,
    refresh: soon((runIds) => {
      const runs = [...new Set(runIds)].flatMap((runId) => live.get(runId) ?? [])
      if (runs.length > 0) void readNews(pool, runs).catch((error) => onError(error, 'reading what came in'))
    }),
    cancelChildren: soon((runIds) => {
      void cancelRuns(control, runIds).catch((error) => onError(error, 'cancelling children'))
    }),
    parked: (at) => {
      if (at !== null) runner.dispatch?.due(at)
      runner.dispatch?.freed()
    },
    place: (row) => {
      row.createdAt = Math.floor(clock.now())
      const fits = live.size < place.runsMax && place.codes.has(codeOf(row)) && place.queues.includes(row.queue)
      if (fits && row.status === 'queued' && !limits.has(row.queue) && !runner.stopping) row.status = 'running'
    },
    begun: (row) => {
      if (row.status === 'running') {
        // A worker that is stopping gives it back with the end of its lease.
        if (runner.stopping) return undefined
        const run = beginRun(runner, rowOf(row), place.codes.get(codeOf(row))!, [])
        run.startedHere = true
        runner.metrics?.runBegun((clock.now() - row.createdAt) / 1_000)
        return run
      }
      if (row.status === 'queued') {
        publishWakes(broker, { queues: [row.queue], runs: [] })
        if (place.queues.includes(row.queue)) void runner.dispatch?.claim()
      } else runner.dispatch?.due(clock.now() + row.delayMs!)
      return undefined
    },
    ended: (run, end) => {
      const { runId, parentId } = run.row
      const ending = endingOf(run, end)
      runner.metrics?.runEnded(end.kind)
      results.settle(runId, ending)
      const starter = runner.starters.get(run)
      if (starter !== undefined) runner.handover?.sendEnd(starter, runId, ending)
      if (parentId !== null) {
        if (live.has(parentId)) runner.refresh([parentId])
        else publishWakes(broker, { queues: [run.row.queue], runs: [parentId] })
      }
      if (end.kind === 'continued') {
        const next = runner.begun(end.next)
        // Signals that its forerunner did not take are its own now.
        if (next !== undefined) next.unread = true
        runner.refresh([end.next.runId])
      }
      // Whoever waits for a run that never left this process is here, at its starter, or will look.
      if (!run.startedHere) announce([runId])
      // Its place may be what another run waits for.
      if (limits.has(run.row.queue)) publishWakes(broker, { queues: [run.row.queue], runs: [] })
      runner.dispatch?.freed()
    },
  }
  return runner
}

const rowOf = (row: StartRow): RunRow => ({
  ...row,
  epoch: 1,
  wakes: 0,
  deadlineAt: row.timeoutMs === null ? null : row.createdAt + row.timeoutMs,
})

const endingOf = (run: LiveRun, end: RunEnd): Ending => ({
  name: run.row.name,
  status: end.kind,
  output: end.kind === 'completed' ? end.output : end.kind === 'continued' ? JSON.stringify(end.next.runId) : null,
  error: 'error' in end ? end.error : null,
})

type HeldLease = { clock: Clock; id: string; name: string; leaseMs: number; heldUntil: number }

/** Claims, renews, listens for hints, until stopped. */
function work(parts: Parts & { lease: HeldLease; runner: ProcessRunner; sweepMs: number }): () => Promise<void> {
  const { deps, pool, clock, live, limits, place, runner, lease, sweepMs } = parts
  const { broker, databaseUrl, onError } = deps
  const take = (claimed: Claimed[]) => {
    const now = clock.now()
    for (const { row, recorded, wantedAt } of claimed) {
      beginRun(runner, row, place.codes.get(codeOf(row))!, recorded)
      if (wantedAt !== null) runner.metrics?.runBegun(Math.max(0, now - wantedAt) / 1_000)
    }
    runner.refresh(claimed.map(({ row }) => row.runId).filter((runId) => live.get(runId)?.unread))
  }
  const room = () => place.runsMax - live.size
  const codes = [...place.codes.values()]
  const dispatch = startDispatch(
    { pool, clock, worker: lease.id, queues: place.queues, limits, codes, room, take, onError },
    sweepMs,
  )
  runner.dispatch = dispatch
  runner.metrics?.observeRuns(() => live.size)
  // A connection and a rhythm of its own: nothing may keep the lease from being renewed.
  const leases = openSessions(databaseUrl, 'lease', 1)
  const lose = (runs: LiveRun[]) => {
    if (runs.length === 0) return
    runner.metrics?.leaseLost(runs.length)
    for (const run of runs) dropRun(run, new MillraceError('conflict', 'The lease is lost'))
  }
  const stopRenewing = keepLease({ ...lease, pool: leases }, lease.heldUntil, {
    // Only work that can be told to stop ends early: it is done again, here if the lease holds after all.
    onDoubt: () => lose([...live.values()].filter((run) => run.executing > 0 && run.controller !== null)),
    onLoss: () => lose([...live.values()]),
    onError: (error) => onError(error, 'renewing the lease'),
  })
  const strays = createStrays(pool, lease.id)
  const stopChores = repeat(
    lease.leaseMs / 3,
    async () => {
      if ((await endExpiredLeases(pool)) > 0) void dispatch.claim()
      await clearMailboxes(pool)
      if ((await strays.giveBack((runId) => live.has(runId))) > 0) void dispatch.claim()
    },
    (error) => onError(error, 'ending expired leases'),
  )
  /** What a lost hint would have told: only runs at rest can have missed something. */
  const sweep = setInterval(
    () =>
      runner.refresh(
        [...live.values()].filter((run) => run.restingSince !== null || run.unread).map((run) => run.row.runId),
      ),
    broker?.connected() ? 10 * sweepMs : sweepMs,
  )
  const unsubscribe = [
    ...place.queues.map((queue) => onQueued(broker, queue, () => void dispatch.claim())),
    onWoken(broker, (runIds) => runner.refresh(runIds.filter((runId) => live.has(runId)))),
  ]
  void dispatch.claim()
  return async () => {
    clearInterval(sweep)
    for (const end of unsubscribe) end()
    await dispatch.stop()
    await stopChores()
    await stopRenewing()
    await leases.end()
    for (const run of [...live.values()]) dropRun(run, new MillraceError('unavailable', 'This worker is stopping'))
  }
}
