/**
 * Runs at set times. A schedule is a row, and its next time a pg-boss job that any worker process hears:
 *
 * 1. ring() locks the row, starts what is due (or not, by the overlap policy), and sends the job of the next time, all
 *    in one transaction: no time is lost and none comes twice, whoever dies.
 * 2. The run of a time has the id `<schedule>/<time>`, so a time that was backfilled or retried starts one run.
 * 3. A ring that got lost is sent again by the next look around (`watchSchedules`).
 */

import { sql } from 'drizzle-orm'
import { recordAct } from '../access/audit.ts'
import { type Database, inTransaction, type Transaction } from '../db/connect.ts'
import { SCHEDULE_RINGS, within } from '../db/jobs.ts'
import { type Duration, milliseconds } from '../durations.ts'
import { MillraceError } from '../errors.ts'
import { OPERATOR_TENANT } from '../http/caller.ts'
import { cancelRuns, terminateRun } from './control.ts'
import { findDefinition } from './definitions.ts'
import type { Engine } from './engine.ts'
import { insertRunIn, newRun, type StartOptions } from './start.ts'
import { encode } from './values.ts'
import { publishWakes } from './wakes.ts'

/**
 * @property cron      five fields (six with seconds), or an RFC 5545 rule such as FREQ=MONTHLY;BYDAY=-1FR
 * @property every     instead of cron: at the multiples of this since 1970, so `1h` is at each full hour of UTC
 * @property timezone  of the cron expression, such as Europe/Berlin (default UTC)
 * @property overlap   the run before is still open: `skip` this time (default), `buffer` one until it has ended, `allow`
 *                     both, `cancel` it and start when its cleanup is done, or `terminate` it and start
 * @property catchUp   how late a time may still start its run when all workers were down (default 1 minute)
 */
export type ScheduleSpec = {
  workflow: string
  version?: string
  input?: unknown
  options?: Pick<StartOptions, 'queue' | 'priority' | 'concurrencyKey' | 'timeout' | 'attributes'>
  cron?: string
  every?: Duration
  timezone?: string
  overlap?: Overlap
  catchUp?: Duration
}
type Overlap = 'skip' | 'buffer' | 'allow' | 'cancel' | 'terminate'

/** A schedule as it stands. */
export type Schedule = {
  name: string
  workflow: string
  version: string | null
  input: unknown
  options: NonNullable<ScheduleSpec['options']>
  cron: string | null
  everyMs: number | null
  timezone: string
  overlap: Overlap
  catchUpMs: number
  paused: boolean
  nextAt: Date
  bufferedAt: Date | null
  lastAt: Date | null
  lastRunId: string | null
  started: number
  skipped: number
}
type Row = Schedule & { tenant: string; revision: number; running: string[]; nowMs: number }

const COLUMNS =
  sql.raw(`name, workflow, version, input, options, cron, every_ms::float8 as "everyMs", timezone, overlap,
  catch_up_ms::float8 as "catchUpMs", paused, to_json(next_at) as "nextAt",
  to_json(buffered_at) as "bufferedAt", to_json(last_at) as "lastAt",
  last_run_id as "lastRunId", started::float8 as started, skipped::float8 as skipped`)
const LOCKED = sql.raw(`tenant, revision, running, extract(epoch from clock_timestamp())::float8 * 1000 as "nowMs"`)

const EVERY_MS_MIN = 1_000
/** How often a run that a time waits for is looked at. */
const BUFFER_LOOK_MS = 1_000
const BACKFILL_MAX = 1_000
/** Schedules of one polling; many have the same full hour. */
const RINGS_MAX = 100
const LOST_MS = 60_000

const jobsOf = (engine: Engine) => {
  if (engine.deps.jobs) return engine.deps.jobs
  throw new MillraceError('invalid_config', 'Schedules need pg-boss: start the engine with `jobs`')
}

/**
 * Creates or changes a schedule. Setting it again as it is changes nothing, so a program may do so at every start.
 * @throws MillraceError `invalid_request` for a bad expression, `not_found` for a workflow no worker has loaded
 */
export async function setSchedule(engine: Engine, name: string, spec: ScheduleSpec): Promise<Schedule> {
  if ((spec.cron === undefined) === (spec.every === undefined))
    throw new MillraceError('invalid_request', 'Give either cron or every')
  const everyMs = spec.every === undefined ? null : milliseconds(spec.every)
  if (everyMs !== null && everyMs < EVERY_MS_MIN)
    throw new MillraceError('invalid_request', `every must be at least ${EVERY_MS_MIN} ms`)
  const { timezone = 'UTC', overlap = 'skip', options = {}, cron = null, version = null } = spec
  const catchUpMs = milliseconds(spec.catchUp ?? '1m')
  const { tenant } = engine.control
  const definition = await findDefinition(engine.control.pool, spec.workflow, version)
  newRun(tenant, definition, spec.input, options)
  const input = encode(spec.input, 'The input')
  return inTransaction(databaseOf(engine), async (tx) => {
    const next = following(engine, { cron, everyMs, timezone }, await nowOf(tx))
    const { rows } = await tx.execute<Schedule & { revision: number }>(sql`
      insert into workflow_schedules as s
        (tenant, name, workflow, version, input, options, cron, every_ms, timezone, overlap, catch_up_ms, next_at)
      values (${tenant}, ${name}, ${spec.workflow}, ${version}, ${input}::json, ${JSON.stringify(options)}::jsonb, ${cron}, ${everyMs},
        ${timezone}, ${overlap}, ${catchUpMs}, ${next})
      on conflict (name, tenant) do update set
        workflow = excluded.workflow, version = excluded.version, input = excluded.input, options = excluded.options,
        overlap = excluded.overlap, catch_up_ms = excluded.catch_up_ms, cron = excluded.cron,
        every_ms = excluded.every_ms, timezone = excluded.timezone,
        next_at = case when (s.cron, s.every_ms, s.timezone)
            is not distinct from (excluded.cron, excluded.every_ms, excluded.timezone)
          then s.next_at else excluded.next_at end,
        revision = s.revision + 1
      returning ${COLUMNS}, revision`)
    const { revision, ...schedule } = rows[0]!
    const stored = withDates(schedule)
    await sendRing(engine, tx, { tenant, name, revision }, stored.nextAt)
    await note(engine, tx, 'set', name, spec)
    return stored
  })
}

export async function listSchedules(engine: Engine): Promise<Schedule[]> {
  const { rows } = await databaseOf(engine).execute<Schedule>(
    sql`select ${COLUMNS} from workflow_schedules where tenant = ${engine.control.tenant} order by name`,
  )
  return rows.map(withDates)
}

/** @throws MillraceError `not_found` */
export async function getSchedule(engine: Engine, name: string): Promise<Schedule> {
  const { rows } = await databaseOf(engine).execute<Schedule>(
    sql`select ${COLUMNS} from workflow_schedules where name = ${name} and tenant = ${engine.control.tenant}`,
  )
  return rows[0] === undefined ? missing(name) : withDates(rows[0])
}

/** Its runs go on. @throws MillraceError `not_found` */
export async function removeSchedule(engine: Engine, name: string): Promise<void> {
  await inTransaction(databaseOf(engine), async (tx) => {
    const { rowCount } = await tx.execute(
      sql`delete from workflow_schedules where name = ${name} and tenant = ${engine.control.tenant}`,
    )
    if (rowCount === 0) missing(name)
    await note(engine, tx, 'remove', name)
  })
}

/** Times that pass while a schedule is paused start nothing; backfill can make up for them. */
export async function pauseSchedule(engine: Engine, name: string, paused: boolean): Promise<Schedule> {
  return inTransaction(databaseOf(engine), async (tx) => {
    const row = await lock(tx, { name, tenant: engine.control.tenant })
    if (row === undefined) return missing(name)
    const next = paused ? row.nextAt : following(engine, row, row.nowMs)
    const { rows } = await tx.execute<Schedule>(sql`
      update workflow_schedules set paused = ${paused}, revision = revision + 1, next_at = ${next}, buffered_at = null
      where name = ${name} and tenant = ${row.tenant} returning ${COLUMNS}`)
    if (!paused) await sendRing(engine, tx, { ...row, revision: row.revision + 1 }, next)
    await note(engine, tx, paused ? 'pause' : 'resume', name)
    return withDates(rows[0]!)
  })
}

/** Starts a run of the schedule now, whatever runs. @returns its id */
export async function triggerSchedule(engine: Engine, name: string): Promise<string> {
  const { runId } = await inTransaction(databaseOf(engine), async (tx) => {
    const row = await lock(tx, { name, tenant: engine.control.tenant })
    if (row === undefined) return missing(name)
    const started = await startAt(engine, tx, row, row.nowMs)
    await note(engine, tx, 'trigger', name, { runId: started.runId })
    return started
  })
  return runId
}

/**
 * Starts the runs of past times, side by side; times that had their run are left out. To have them one after the other,
 * give the schedule a concurrencyKey and its queue a limit.
 * @throws MillraceError `invalid_request` for more than 1,000 times
 */
export async function backfillSchedule(
  engine: Engine,
  name: string,
  from: Date,
  to: Date,
): Promise<{ at: Date; runId: string; outcome: 'started' | 'had run' }[]> {
  return inTransaction(databaseOf(engine), async (tx) => {
    const row = await lock(tx, { name, tenant: engine.control.tenant })
    if (row === undefined) return missing(name)
    const times: Date[] = []
    for (let at = following(engine, row, from.getTime() - 1); at < to && at.getTime() <= row.nowMs; ) {
      if (times.push(at) > BACKFILL_MAX)
        throw new MillraceError('invalid_request', `That is more than ${BACKFILL_MAX} times: backfill in parts`)
      at = following(engine, row, at.getTime())
    }
    const outcomes = []
    for (const at of times) {
      const { runId, isNew } = await startAt(engine, tx, row, at.getTime())
      outcomes.push({ at, runId, outcome: isNew ? ('started' as const) : ('had run' as const) })
    }
    await note(engine, tx, 'backfill', name, { from, to, runs: outcomes.length })
    return outcomes
  })
}

/**
 * Hears the rings of all schedules until stopped. Any number of processes may; a process that has loaded no workflow
 * too.
 */
export async function watchSchedules(engine: Engine): Promise<() => Promise<void>> {
  const jobs = jobsOf(engine)
  await jobs.work<Ring>(SCHEDULE_RINGS, { pollingIntervalSeconds: 0.5, batchSize: RINGS_MAX }, async (rung) => {
    const failures: unknown[] = []
    for (const { data } of rung) await ring(engine, data).catch((error) => failures.push(error))
    // pg-boss rings all of them again; those that have rung do nothing then.
    if (failures.length > 0) throw failures[0]
  })
  const lookAround = () => sendLostRings(engine).catch((error) => engine.deps.onError(error, 'looking for lost rings'))
  const looking = setInterval(lookAround, LOST_MS)
  await lookAround()
  return async () => {
    clearInterval(looking)
    await jobs.offWork(SCHEDULE_RINGS)
  }
}

/** @property tenant  absent: `default`, as a process of an earlier version says it */
type Ring = { tenant?: string; name: string; revision: number }

/** Starts what is due, and asks to be rung again. */
export async function ring(engine: Engine, { tenant = OPERATOR_TENANT, name, revision }: Ring): Promise<void> {
  const queues = new Set<string>()
  await inTransaction(databaseOf(engine), async (tx) => {
    const row = await lock(tx, { name, tenant })
    if (row === undefined || row.revision !== revision || row.paused) return
    let open = await openRuns(tx, row.running)
    const begin = async (atMs: number) => {
      const { runId, queue } = await startAt(engine, tx, row, atMs)
      queues.add(queue)
      open.push(runId)
      Object.assign(row, { lastAt: new Date(atMs), lastRunId: runId, bufferedAt: null })
      row.started += 1
    }
    if (row.bufferedAt !== null && open.length === 0) await begin(row.bufferedAt.getTime())
    const earliestMs = row.nowMs - row.catchUpMs
    if (row.nextAt.getTime() < earliestMs) row.nextAt = following(engine, row, earliestMs)
    while (row.nextAt.getTime() <= row.nowMs) {
      const at = row.nextAt
      row.nextAt = following(engine, row, at.getTime())
      if (open.length > 0 && row.overlap === 'terminate') open = await terminateAll(engine, open)
      if (open.length === 0 || row.overlap === 'allow') await begin(at.getTime())
      else if (row.overlap === 'skip' || (row.overlap === 'buffer' && row.bufferedAt !== null)) row.skipped += 1
      else {
        row.bufferedAt = at
        if (row.overlap === 'cancel') await cancelRuns(engine.control, open)
      }
    }
    await tx.execute(sql`
      update workflow_schedules set next_at = ${row.nextAt}, running = ${`{${open.join(',')}}`}::uuid[],
        buffered_at = ${row.bufferedAt}, last_at = ${row.lastAt}, last_run_id = ${row.lastRunId},
        started = ${row.started}, skipped = ${row.skipped}
      where name = ${name} and tenant = ${tenant}`)
    const lookAt = new Date(Math.min(row.nextAt.getTime(), row.nowMs + BUFFER_LOOK_MS))
    await sendRing(engine, tx, row, row.bufferedAt === null ? row.nextAt : lookAt)
  })
  publishWakes(engine.deps.broker, { queues: [...queues], runs: [] })
}

const note = (engine: Engine, tx: Transaction, act: string, target: string, detail?: object) =>
  recordAct(tx, engine.control.by, { action: `schedule.${act}`, target, detail })

const databaseOf = (engine: Engine): Database => engine.deps.database.db

function missing(name: string): never {
  throw new MillraceError('not_found', `There is no schedule ${name}`)
}

async function lock(tx: Transaction, { name, tenant }: { name: string; tenant: string }): Promise<Row | undefined> {
  const { rows } = await tx.execute<Row>(
    sql`select ${COLUMNS}, ${LOCKED} from workflow_schedules where name = ${name} and tenant = ${tenant} for update`,
  )
  return rows[0] === undefined ? undefined : withDates(rows[0])
}

/** Drizzle gives times as text; as JSON they are ISO 8601. */
function withDates<R extends Schedule>(row: R): R {
  const dated = { ...row, nextAt: new Date(row.nextAt) }
  if (row.bufferedAt !== null) dated.bufferedAt = new Date(row.bufferedAt)
  if (row.lastAt !== null) dated.lastAt = new Date(row.lastAt)
  return dated
}

async function nowOf(tx: Transaction): Promise<number> {
  const { rows } = await tx.execute<{ ms: number }>(
    sql`select extract(epoch from clock_timestamp())::float8 * 1000 as ms`,
  )
  return rows[0]!.ms
}

type Times = Pick<Schedule, 'cron' | 'everyMs' | 'timezone'>

/** The first time after this one. @throws MillraceError `invalid_request` for an expression without one */
function following(engine: Engine, { cron, everyMs, timezone }: Times, afterMs: number): Date {
  if (everyMs !== null) return new Date((Math.floor(afterMs / everyMs) + 1) * everyMs)
  let next: Date | undefined
  try {
    next = jobsOf(engine).previewSchedule(cron!, { tz: timezone, from: new Date(afterMs), count: 1 })[0]
  } catch (error) {
    throw new MillraceError('invalid_request', `${cron} in ${timezone} is no schedule: ${(error as Error).message}`)
  }
  if (next === undefined) throw new MillraceError('invalid_request', `${cron} never comes again`)
  return next
}

async function startAt(engine: Engine, tx: Transaction, row: Row, atMs: number) {
  const id = `${row.name}/${new Date(atMs).toISOString()}`
  const definition = await findDefinition(engine.control.pool, row.workflow, row.version)
  const run = newRun(row.tenant, definition, row.input ?? undefined, { ...row.options, id })
  if (await insertRunIn(tx, run)) return { runId: run.runId, queue: run.queue, isNew: true }
  const { rows } = await tx.execute<{ run_id: string }>(
    sql`select run_id from workflow_runs where id = ${id} and tenant = ${row.tenant} order by generation desc limit 1`,
  )
  return { runId: rows[0]!.run_id, queue: run.queue, isNew: false }
}

/** Those that are open, or that go on under a later run of theirs. */
async function openRuns(tx: Transaction, running: string[]): Promise<string[]> {
  if (running.length === 0) return []
  const { rows } = await tx.execute<{ run_id: string }>(sql`
    select c.run_id from unnest(${`{${running.join(',')}}`}::uuid[]) k(run_id), lateral (
      select run_id, status from workflow_runs where run_id = k.run_id
      union all select run_id, status from workflow_runs where chain_id = k.run_id) c
    where c.status in ('queued', 'running', 'waiting', 'stuck')`)
  return rows.map((row) => row.run_id)
}

async function terminateAll(engine: Engine, runIds: string[]): Promise<string[]> {
  for (const runId of runIds)
    await terminateRun(engine.control, runId).catch((error) => {
      // It has ended by itself.
      if (!(error instanceof MillraceError && error.code === 'conflict')) throw error
    })
  return []
}

async function sendRing(
  engine: Engine,
  tx: Transaction,
  { tenant, name, revision }: Required<Ring>,
  at: Date,
): Promise<void> {
  const singletonKey = tenant === OPERATOR_TENANT ? `${name}/${revision}` : `${tenant}/${name}/${revision}`
  await jobsOf(engine).send(
    SCHEDULE_RINGS,
    { tenant, name, revision },
    { startAfter: new Date(at), singletonKey, db: within(tx) },
  )
}

async function sendLostRings(engine: Engine): Promise<void> {
  await inTransaction(databaseOf(engine), async (tx) => {
    const { rows } = await tx.execute<Required<Ring> & { nextAt: Date }>(sql`
      select tenant, name, revision, to_json(next_at) as "nextAt" from workflow_schedules
      where not paused and next_at < clock_timestamp() - ${LOST_MS}::float8 * interval '1 ms'`)
    // One that is there already keeps another out (policy `short`).
    for (const { nextAt, ...ring } of rows) await sendRing(engine, tx, ring, nextAt)
  })
}
