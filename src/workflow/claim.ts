/** Takes runs from the queues, in sets, and reads what they had done before. */

import type pg from 'pg'
import type { Recorded, RunRow } from './live.ts'
import { inSession } from './session.ts'

const TAKEN = `returning r.run_id, r.id, r.generation, r.name, r.version, r.queue, r.priority, r.concurrency_key,
    r.input::text as input, r.epoch, r.wakes, r.parent_id, r.chain_id, r.traceparent, r.tenant,
    extract(epoch from r.created_at)::float8 * 1000 as created_at,
    extract(epoch from coalesce(picked.due_at, case when r.epoch = 1 then r.created_at end))::float8 * 1000 as wanted_at,
    extract(epoch from r.deadline_at)::float8 * 1000 as deadline_at`

/**
 * Runs whose time has come go before those in the queue: they have begun. Only code that this worker has loaded is
 * taken, and only while its lease holds. The time is the statement's: clock_timestamp() is volatile, and the index on
 * due times would be read whole.
 */
const CLAIM = `
  with lease as materialized (
    select id from workflow_workers
    where id = $1 and not exists (select from workflow_queues where queue = $2) for key share),
  codes as (select name, version from unnest($3::text[], $4::text[]) c(name, version)),
  due as materialized (
    select run_id, due_at from workflow_runs
    where status = 'waiting' and due_at <= statement_timestamp() and queue = $2 and (name, version) in (select * from codes)
    order by due_at limit $5 for update skip locked),
  queued as materialized (
    select run_id from workflow_runs
    where status = 'queued' and queue = $2 and (name, version) in (select * from codes)
    order by priority, run_id limit greatest(0, $5 - (select count(*) from due)) for update skip locked)
  update workflow_runs r set status = 'running', worker = $1, epoch = r.epoch + 1, due_at = null
  from lease, (select run_id, due_at from due union all select run_id, null from queued) picked
  where r.run_id = picked.run_id
  ${TAKEN}`

/** Claims of a queue with limits go one after the other: each must see what the one before has taken. */
const LOCK_QUEUE = 'select 1 from workflow_queues where queue = $1 for update'

/**
 * As above within the limits of the queue. Runs that hold a place since they began are taken first and always; a new
 * one must find a place in the queue and for its key, and a token. Of keys that are full no run is looked at.
 */
const CLAIM_LIMITED = `
  with lease as materialized (select id from workflow_workers where id = $1 for key share),
  codes as (select name, version from unnest($3::text[], $4::text[]) c(name, version)),
  limits as materialized (
    select concurrency, per_key, least(rate, tokens
      + rate * extract(epoch from statement_timestamp() - refilled_at)::float8 * 1000 / rate_ms) as tokens
    from workflow_queues where queue = $2),
  holding as materialized (
    select run_id, status, due_at, concurrency_key from workflow_runs
    where holds and finished_at is null and queue = $2),
  held as materialized (select concurrency_key, count(*) as n from holding group by concurrency_key),
  begun as materialized (
    select r.run_id, h.due_at from holding h join workflow_runs r on r.run_id = h.run_id
    where (h.status = 'queued' or (h.status = 'waiting' and h.due_at <= statement_timestamp()))
      and r.status = h.status and (r.name, r.version) in (select * from codes)
    order by h.due_at nulls first limit $5 for update of r skip locked),
  due as materialized (
    select run_id, due_at, concurrency_key, priority from workflow_runs r
    where status = 'waiting' and due_at <= statement_timestamp() and queue = $2 and not holds
      and (name, version) in (select * from codes)
      and not exists (select from held h, limits l where h.concurrency_key = r.concurrency_key and h.n >= l.per_key)
    order by due_at limit $5 for update skip locked),
  queued as materialized (
    select run_id, due_at, concurrency_key, priority from workflow_runs r
    where status = 'queued' and queue = $2 and not holds and (name, version) in (select * from codes)
      and not exists (select from held h, limits l where h.concurrency_key = r.concurrency_key and h.n >= l.per_key)
    order by priority, run_id limit $5 for update skip locked),
  ranked as (
    select w.run_id, w.due_at, w.priority, w.concurrency_key,
      row_number() over (partition by w.concurrency_key order by w.priority, w.run_id) + coalesce(h.n, 0) as nth
    from (select * from due union all select * from queued) w
      left join held h on h.concurrency_key = w.concurrency_key),
  fresh as materialized (
    select run_id, due_at from ranked, limits
    where ranked.concurrency_key is null or limits.per_key is null or ranked.nth <= limits.per_key
    order by ranked.priority, run_id
    limit (select greatest(0, least(
      $5 - (select count(*) from begun),
      coalesce(concurrency - (select count(*) from holding), $5),
      coalesce(floor(tokens), $5)))::bigint from limits)),
  spent as (
    update workflow_queues q set tokens = l.tokens - (select count(*) from fresh), refilled_at = statement_timestamp()
    from limits l where q.queue = $2 and q.rate is not null)
  update workflow_runs r set status = 'running', worker = $1, epoch = r.epoch + 1, due_at = null, holds = true
  from lease, (select * from begun union all select * from fresh) picked
  where r.run_id = picked.run_id
  ${TAKEN}`

const HISTORY = `
  select run_id, pos, ord, kind, name, output::text as output, error::text as error, attempt,
    extract(epoch from due_at)::float8 * 1000 as due_at, extract(epoch from at)::float8 * 1000 as at
  from workflow_steps where run_id = any($1::uuid[]) order by run_id, pos`

/** @property wantedAt  when it was to start or wake, in ms since 1970; null for one that something came in for */
export type Claimed = { row: RunRow; recorded: Recorded[]; wantedAt: number | null }

/**
 * @param room     the most to take
 * @param limited  the queue has limits; nothing is taken where that is wrong
 */
export async function claimRuns(
  pool: pg.Pool,
  worker: string,
  queue: string,
  codes: { name: string; version: string }[],
  room: number,
  limited: boolean,
): Promise<Claimed[]> {
  const values = [worker, queue, codes.map((code) => code.name), codes.map((code) => code.version), room]
  const { rows } = limited
    ? await inSession(pool, async (client) => {
        await client.query({ name: 'millrace_lock_queue', text: LOCK_QUEUE, values: [queue] })
        return client.query({ name: 'millrace_claim_limited', text: CLAIM_LIMITED, values })
      })
    : await pool.query({ name: 'millrace_claim', text: CLAIM, values })
  const histories = await readHistories(
    pool,
    // A first claim, of a run that nothing has come in for, has no history.
    rows.filter((row) => row.epoch > 1).map((row) => row.run_id),
  )
  return rows.map((row) => ({
    row: {
      runId: row.run_id,
      id: row.id,
      generation: row.generation,
      name: row.name,
      version: row.version,
      queue: row.queue,
      priority: row.priority,
      concurrencyKey: row.concurrency_key,
      input: row.input,
      epoch: row.epoch,
      wakes: row.wakes,
      parentId: row.parent_id,
      chainId: row.chain_id,
      tenant: row.tenant,
      traceparent: row.traceparent,
      createdAt: row.created_at,
      deadlineAt: row.deadline_at,
    },
    recorded: histories.get(row.run_id) ?? [],
    wantedAt: row.wanted_at,
  }))
}

async function readHistories(pool: pg.Pool, runIds: string[]): Promise<Map<string, Recorded[]>> {
  const histories = new Map<string, Recorded[]>()
  if (runIds.length === 0) return histories
  const { rows } = await pool.query({ name: 'millrace_history', text: HISTORY, values: [runIds] })
  for (const { run_id, due_at, ...line } of rows) {
    const known = histories.get(run_id)
    const recorded: Recorded = { ...line, dueAt: due_at }
    if (known) known.push(recorded)
    else histories.set(run_id, [recorded])
  }
  return histories
}

/** When the next waiting run of these queues will be due, in ms from now; null when none waits. */
export async function nextDueMs(pool: pg.Pool, queues: string[]): Promise<number | null> {
  const { rows } = await pool.query({
    name: 'millrace_next_due',
    // What is due and was not taken waits for a place, or for a worker with its code: asking at once would not help.
    text: `select extract(epoch from due_at - clock_timestamp())::float8 * 1000 as ms
      from workflow_runs where status = 'waiting' and due_at > statement_timestamp() and queue = any($1)
      order by due_at limit 1`,
    values: [queues],
  })
  return rows[0]?.ms ?? null
}
