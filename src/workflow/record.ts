/** A step's record inside a user's own transaction: the journal's statement and fence, for one row. */

import { sql } from 'drizzle-orm'
import type { Transaction } from '../db/connect.ts'
import type { StepRow } from './journal-sql.ts'
import type { LiveRun } from './live.ts'

/** @returns false when the run is no longer this worker's: the transaction must not commit */
export async function recordIn(tx: Transaction, worker: string, row: StepRow): Promise<boolean> {
  const { rowCount } = await tx.execute(sql`
    with lease as materialized (select id from workflow_workers where id = ${worker} for key share)
    insert into workflow_steps (run_id, pos, ord, kind, name, output, attempt, at, ms)
    select ${row.runId}::uuid, ${row.pos}::int, ${row.ord}::int, ${row.kind}, ${row.name}, ${row.output}::json,
      ${row.attempt}::smallint, to_timestamp(${row.at}::float8 / 1000), ${row.ms}::float8
    from lease, workflow_runs r
    where r.run_id = ${row.runId}::uuid and r.epoch = ${row.epoch} and r.worker = ${worker}::uuid and r.status = 'running'
    on conflict (run_id, pos) do update set
      ord = excluded.ord, output = excluded.output, error = null, attempt = excluded.attempt, due_at = null,
      at = excluded.at, ms = excluded.ms
    where workflow_steps.ord is null`)
  return rowCount === 1
}

export async function isRecorded(run: LiveRun, pos: number): Promise<boolean> {
  const { rows } = await run.runner.db.execute(
    sql`select 1 from workflow_steps where run_id = ${run.row.runId}::uuid and pos = ${pos} and ord is not null`,
  )
  return rows.length === 1
}
