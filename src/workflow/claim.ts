/** Takes runs from the queues, in sets, and reads what they had done before. */

import type pg from 'pg'
import type { Recorded, RunRow } from './live.ts'

/**
 * Runs whose time has come go before those in the queue: they have begun. Only code that this worker has loaded is
 * taken, and only while its lease holds. The time is the statement's: clock_timestamp() is volatile, and the index on
 * due times would be read whole.
 */
const CLAIM = `
  with lease as materialized (select id from workflow_workers where id = $1 for key share),
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
  returning r.run_id, r.id, r.generation, r.name, r.version, r.queue, r.priority, r.concurrency_key,
    r.input::text as input, r.epoch, r.wakes, r.parent_id, r.chain_id, r.traceparent,
    extract(epoch from r.created_at)::float8 * 1000 as created_at,
    extract(epoch from coalesce(picked.due_at, case when r.epoch = 1 then r.created_at end))::float8 * 1000 as wanted_at,
    extract(epoch from r.deadline_at)::float8 * 1000 as deadline_at`

const HISTORY = `
  select run_id, pos, ord, kind, name, output::text as output, error::text as error, attempt,
    extract(epoch from due_at)::float8 * 1000 as due_at, extract(epoch from at)::float8 * 1000 as at
  from workflow_steps where run_id = any($1::uuid[]) order by run_id, pos`

/** @property wantedAt  when it was to start or wake, in ms since 1970; null for one that something came in for */
export type Claimed = { row: RunRow; recorded: Recorded[]; wantedAt: number | null }

/** @param room  the most to take */
export async function claimRuns(
  pool: pg.Pool,
  worker: string,
  queue: string,
  codes: { name: string; version: string }[],
  room: number,
): Promise<Claimed[]> {
  const { rows } = await pool.query({
    name: 'millrace_claim',
    text: CLAIM,
    values: [worker, queue, codes.map((code) => code.name), codes.map((code) => code.version), room],
  })
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

/** When the next waiting run of these queues is due, in ms from now; null when none waits. */
export async function nextDueMs(pool: pg.Pool): Promise<number | null> {
  const { rows } = await pool.query({
    name: 'millrace_next_due',
    text: `select extract(epoch from due_at - clock_timestamp())::float8 * 1000 as ms
      from workflow_runs where status = 'waiting' and due_at is not null order by due_at limit 1`,
  })
  return rows[0]?.ms ?? null
}
