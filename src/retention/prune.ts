/** Rows that go with what was dropped, in steps small enough for nobody to notice. */

import type pg from 'pg'
import { listPartitions } from '../db/partitions.ts'

const ROWS_PER_STEP = 5_000

/** Batches whose events are all dropped: a batch holds no event published after its commit. */
const DROP_BATCHES = `
  delete from batches where id in (select id from batches where committed_at < $1 order by committed_at limit $2)`

/**
 * Runs that ended before $1. Those stay that an open run may still ask for (its child, its chain), and those whose dead
 * letter nobody has handled. $3: the first id of that time, as UUIDv7 sort by their creation.
 */
const DROP_RUNS = `
  with old as (
    select run_id from workflow_runs r
    where run_id < $3 and finished_at < $1 and status in ('completed', 'failed', 'cancelled', 'terminated', 'continued')
      and not exists (select from workflow_runs p where p.run_id = r.parent_id and p.finished_at is null)
      and not exists (select from workflow_runs c where c.finished_at is null
        and c.chain_id is not null and c.chain_id = coalesce(r.chain_id, r.run_id))
      and not exists (select from pgboss.job j where j.name = 'dead-runs' and j.id = r.run_id and j.state < 'completed')
    order by run_id limit $2 for update skip locked),
  steps as (delete from workflow_steps where run_id in (select run_id from old)),
  signals as (delete from workflow_signals where run_id in (select run_id from old)),
  waits as (delete from workflow_waits where run_id in (select run_id from old))
  delete from workflow_runs where run_id in (select run_id from old)`

/** @returns how many lines of batches were deleted */
export async function pruneBatches(client: pg.ClientBase, signal: AbortSignal): Promise<number> {
  const oldest = (await listPartitions(client))[0]
  if (oldest === undefined || !Number.isFinite(oldest.from)) return 0
  return inSteps(client, DROP_BATCHES, [new Date(oldest.from), ROWS_PER_STEP], signal)
}

/**
 * A run's id may be used again once it is deleted: an event that comes again for its key starts it anew.
 * @returns how many runs were deleted
 */
export function pruneRuns(client: pg.ClientBase, endedBefore: Date, signal: AbortSignal): Promise<number> {
  const ms = endedBefore.getTime().toString(16).padStart(12, '0')
  const firstId = `${ms.slice(0, 8)}-${ms.slice(8)}-7000-8000-000000000000`
  return inSteps(client, DROP_RUNS, [endedBefore, ROWS_PER_STEP, firstId], signal)
}

async function inSteps(client: pg.ClientBase, text: string, values: unknown[], signal: AbortSignal): Promise<number> {
  let dropped = 0
  for (;;) {
    signal.throwIfAborted()
    const { rowCount } = await client.query(text, values)
    dropped += rowCount ?? 0
    if (!rowCount) return dropped
  }
}
