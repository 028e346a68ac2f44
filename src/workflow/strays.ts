/**
 * Runs that are this worker's in the database and not in its memory: a claim whose answer was lost with its connection,
 * for one. Nobody else may take them while the worker lives, so it looks for them and gives them back.
 */

import type pg from 'pg'

const HELD = `select run_id, epoch from workflow_runs where status = 'running' and worker = $1`

const GIVE_BACK = `
  update workflow_runs r set status = 'queued', worker = null
  from unnest($2::uuid[], $3::int[]) s(run_id, epoch)
  where r.run_id = s.run_id and r.epoch = s.epoch and r.worker = $1 and r.status = 'running'`

export type Strays = {
  /** @param holds  whether the run is in memory. @returns how many were given back */
  giveBack: (holds: (runId: string) => boolean) => Promise<number>
}

export function createStrays(pool: pg.Pool, worker: string): Strays {
  /** Missing at the last look, by epoch: a start or claim that was under way then is in memory by now. */
  let missing = new Map<string, number>()
  return {
    async giveBack(holds) {
      const { rows } = await pool.query<{ run_id: string; epoch: number }>({
        name: 'millrace_held',
        text: HELD,
        values: [worker],
      })
      const absent = rows.filter((row) => !holds(row.run_id))
      const strays = absent.filter((row) => missing.get(row.run_id) === row.epoch)
      missing = new Map(absent.map((row) => [row.run_id, row.epoch]))
      if (strays.length === 0) return 0
      const { rowCount } = await pool.query(GIVE_BACK, [
        worker,
        strays.map((row) => row.run_id),
        strays.map((row) => row.epoch),
      ])
      return rowCount ?? 0
    },
  }
}
