/** What may be done to a run from outside. Every change is one guarded statement, and a hint to whoever holds the run. */

import type pg from 'pg'
import type { PgBoss } from 'pg-boss'
import { type Actor, recordActOn } from '../access/audit.ts'
import type { Broker } from '../broker/connect.ts'
import { MillraceError } from '../errors.ts'
import { closeLetter } from './dead-runs.ts'
import { inSession } from './session.ts'
import { encode } from './values.ts'
import { publishWakes } from './wakes.ts'

/**
 * @property jobs  where failed runs are dead letters, or null
 * @property tenant  whose runs are started and found; what has the id of a run has found it
 * @property by    who acts, for the audit trail; null: the program itself
 */
export type ControlDeps = {
  pool: pg.Pool
  broker: Broker | null
  jobs: PgBoss | null
  tenant: string
  by: Actor | null
}

type Touched = { run_id: string; status: string; queue: string }

/** A signal is in the database before this resolves, and the run takes signals of a name in the order sent. */
const SIGNAL = `
  with target as materialized (
    select run_id from workflow_runs
    where run_id = $1 and status in ('queued', 'running', 'waiting', 'stuck') for update),
  sent as (insert into workflow_signals (run_id, name, payload) select run_id, $2, $3::json from target)
  update workflow_runs r set wakes = r.wakes + 1,
    status = case r.status when 'waiting' then 'queued' else r.status end
  from target where r.run_id = target.run_id
  returning r.run_id, r.status, r.queue`

/** A run that has not begun ends at once; one that has is asked to. */
const CANCEL = `
  update workflow_runs set
    cancel_requested_at = coalesce(cancel_requested_at, clock_timestamp()),
    wakes = wakes + 1,
    finished_at = case when epoch = 0 then clock_timestamp() end,
    status = case when epoch = 0 then 'cancelled' when status = 'waiting' then 'queued' else status end
  where run_id = any($1::uuid[]) and status in ('queued', 'running', 'waiting')
  returning run_id, status, queue`

/** The epoch ends whatever the holder still writes. Open children, and theirs, end with it. */
const TERMINATE = `
  with recursive family as (
    select run_id from workflow_runs where run_id = $1
    union
    select (s.output #>> '{}')::uuid from family f join workflow_steps s on s.run_id = f.run_id
    where s.kind = 'child' and s.ord is null),
  waits as (delete from workflow_waits w using family f where w.run_id = f.run_id),
  signals as (delete from workflow_signals s using family f where s.run_id = f.run_id)
  update workflow_runs r set status = 'terminated', epoch = r.epoch + 1, finished_at = clock_timestamp()
  from family f
  where r.run_id = f.run_id and r.status in ('queued', 'running', 'waiting', 'stuck')
  returning r.run_id, r.status, r.queue`

const RESUME = `
  update workflow_runs set status = 'queued', error = null, finished_at = null, worker = null, holds = false
  where run_id = $1 and status = 'stuck'
  returning run_id, status, queue`

/**
 * A new run under the same id with the journal up to a position. The line of an open child is not taken over: that
 * child belongs to the old run.
 */
const RESTART = `
  with old as materialized (
    select * from workflow_runs
    where run_id = $1 and status in ('completed', 'failed', 'cancelled', 'terminated', 'stuck') for update),
  replaced as (
    update workflow_runs r set status = 'terminated' from old where r.run_id = old.run_id and old.status = 'stuck'),
  started as (
    insert into workflow_runs (run_id, id, generation, name, version, queue, priority, concurrency_key, status, input,
      attributes, traceparent, epoch, deadline_at, tenant)
    select $2, id, case when id is null then 1 else
        1 + (select max(generation) from workflow_runs l where l.id = old.id and l.tenant = old.tenant) end,
      name, coalesce($4, version), queue, priority, concurrency_key, 'queued', input, attributes, traceparent, 1,
      clock_timestamp() + (deadline_at - created_at), tenant
    from old
    where id is null or not exists (
      select from workflow_runs o where o.id = old.id and o.tenant = old.tenant and o.run_id <> old.run_id
        and o.status in ('queued', 'running', 'waiting', 'stuck'))
    returning run_id, status, queue)
  , copied as (
    insert into workflow_steps (run_id, pos, ord, kind, name, output, error, attempt, due_at, at, ms)
    select started.run_id, s.pos, s.ord, s.kind, s.name, s.output, s.error, s.attempt, s.due_at, s.at, s.ms
    from started, workflow_steps s
    where s.run_id = $1 and s.pos >= 0 and s.pos < $3 and s.ord is not null
      and s.ord < coalesce((select min(ord) from workflow_steps c where c.run_id = $1 and c.kind = 'cancel'), s.ord + 1))
  select * from started`

/** A child that its worker did not end cannot tell its parent. */
const WAKE_PARENTS = `
  update workflow_runs p set wakes = p.wakes + 1,
    status = case p.status when 'waiting' then 'queued' else p.status end
  where p.status in ('running', 'waiting') and p.run_id in (
    select parent_id from workflow_runs where run_id = any($1::uuid[]) and status in ('cancelled', 'terminated'))
  returning p.run_id, p.status, p.queue`

/** @param acts  on the runs asked for; those touched with them are no acts of their own */
async function change(
  deps: ControlDeps,
  text: string,
  values: unknown[],
  { action, runIds, detail }: { action: string; runIds: string[]; detail?: object },
): Promise<Touched[]> {
  const rows = await inSession(deps.pool, async (client) => {
    const touched = (await client.query<Touched>(text, values)).rows
    for (const { run_id: target } of touched)
      if (runIds.includes(target)) await recordActOn(client, deps.by, { action, target, detail })
    const ended = touched.filter(({ status }) => status === 'cancelled' || status === 'terminated')
    if (ended.length === 0) return touched
    const parents = await client.query<Touched>(WAKE_PARENTS, [ended.map((row) => row.run_id)])
    return [...touched, ...parents.rows]
  })
  const queues = new Set(rows.filter((row) => row.status === 'queued').map((row) => row.queue))
  publishWakes(deps.broker, { queues: [...queues], runs: rows.map((row) => row.run_id) })
  return rows
}

const over = (runId: string) =>
  new MillraceError('conflict', `Run ${runId} has ended, or there is none: look at its status`)

/** @throws MillraceError `conflict` when the run has ended */
export async function signalRun(deps: ControlDeps, runId: string, name: string, payload?: unknown): Promise<void> {
  if (name === '' || name.length > 256 || name.includes('\u0000'))
    throw new MillraceError('invalid_request', 'The name of a signal must be text of 1 to 256 characters without NUL')
  const touched = await change(deps, SIGNAL, [runId, name, encode(payload, `The signal ${name}`)], {
    action: 'run.signal',
    runIds: [runId],
    detail: { name },
  })
  if (touched.length === 0) throw over(runId)
}

/**
 * Asks runs to end: their open calls reject with `cancelled`, their cleanup runs, compensations too.
 * @returns those that were open
 */
export async function cancelRuns(deps: ControlDeps, runIds: string[]): Promise<string[]> {
  const asked = new Set(runIds)
  const act = { action: 'run.cancel', runIds }
  return (await change(deps, CANCEL, [runIds], act)).map((row) => row.run_id).filter((runId) => asked.has(runId))
}

/** Ends a run at once, without cleanup, and its open children. @throws MillraceError `conflict` when it has ended */
export async function terminateRun(deps: ControlDeps, runId: string): Promise<void> {
  if ((await change(deps, TERMINATE, [runId], { action: 'run.terminate', runIds: [runId] })).length === 0)
    throw over(runId)
}

/** Lets a run that its code did not fit go on, with the code that is loaded now. */
export async function resumeRun(deps: ControlDeps, runId: string): Promise<void> {
  if ((await change(deps, RESUME, [runId], { action: 'run.resume', runIds: [runId] })).length === 0)
    throw new MillraceError('conflict', `Run ${runId} is not stuck: only a stuck run can be resumed`)
}

/**
 * Runs an ended (or stuck) run again from a step: results before it are kept, everything from it on happens anew. The
 * old run and its history stay as they are.
 * @param from     position in the journal, or the name of a step (its first); 0 is the whole run
 * @param version  of the code, if another than the old run's
 * @returns the new run's id
 * @throws MillraceError `not_found` for a step that is not there, `conflict` for a run that is open
 */
export async function restartRun(
  deps: ControlDeps,
  {
    runId,
    newRunId,
    from = 0,
    version = null,
  }: { runId: string; newRunId: string; from?: number | string; version?: string | null },
): Promise<string> {
  let pos = from
  if (typeof pos === 'string') {
    const { rows } = await deps.pool.query(
      'select min(pos) as pos from workflow_steps where run_id = $1 and name = $2',
      [runId, pos],
    )
    if (rows[0]?.pos == null) throw new MillraceError('not_found', `Run ${runId} has no step ${JSON.stringify(from)}`)
    pos = rows[0].pos as number
  }
  const touched = await inSession(deps.pool, async (client) => {
    const { rows } = await client.query<Touched>(RESTART, [runId, newRunId, pos, version])
    if (rows.length > 0 && deps.jobs !== null) await closeLetter(deps.jobs, client, runId, newRunId)
    if (rows.length > 0)
      await recordActOn(client, deps.by, { action: 'run.restart', target: runId, detail: { newRunId, from, version } })
    return rows
  })
  if (touched.length === 0)
    throw new MillraceError('conflict', `Run ${runId} cannot be restarted: it is open, or another run has its id`)
  publishWakes(deps.broker, { queues: touched.map((row) => row.queue), runs: [] })
  return newRunId
}
