/**
 * The database's clock, told by this process's monotonic one: a jump of the machine's wall clock moves no timer, and
 * all processes agree on what time it is.
 */

import { performance } from 'node:perf_hooks'
import type pg from 'pg'

/** @property now  ms since 1970 */
export type Clock = { now: () => number; set: (databaseMs: number, askedAt: number) => void }

export function createClock(): Clock {
  let offset = performance.timeOrigin
  return {
    now: () => performance.now() + offset,
    set: (databaseMs, askedAt) => {
      const answeredAt = performance.now()
      offset = databaseMs - (askedAt + answeredAt) / 2
    },
  }
}

export async function synchronise(clock: Clock, pool: pg.Pool): Promise<void> {
  const askedAt = performance.now()
  const { rows } = await pool.query('select extract(epoch from clock_timestamp())::float8 * 1000 as ms')
  clock.set(rows[0].ms, askedAt)
}
