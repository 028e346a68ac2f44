/** The engine's connections to Postgres: apart from the users' own, and with settings of their own. */

import pg from 'pg'
import { connectionString } from '../db/address.ts'

/**
 * A plan made while a table is empty reads it whole, and stays when it is full. All statements of the engine go by
 * key or by a partial index, so its connections know only index lookups.
 */
const PLANNER = [
  'plan_cache_mode=force_generic_plan',
  'enable_seqscan=off',
  'enable_hashjoin=off',
  'enable_mergejoin=off',
]
/** A process that stops in the middle of a commit must not hold its lease's row for ever. */
const BOUNDS = ['idle_in_transaction_session_timeout=10000', 'lock_timeout=10000']

/** Commits when `work` resolves, rolls back when it throws. */
export async function inSession<T>(pool: pg.Pool, work: (client: pg.PoolClient) => Promise<T>): Promise<T> {
  const client = await pool.connect()
  let failure: Error | undefined
  try {
    await client.query('begin')
    const result = await work(client)
    await client.query('commit')
    return result
  } catch (error) {
    failure = error as Error
    throw error
  } finally {
    // A client that failed may still be inside its transaction.
    client.release(failure)
  }
}

/** @param pipeline  statements are sent without waiting for the answer to the one before */
export function openSessions(
  url: string,
  name: string,
  { max, pipeline }: { max: number; pipeline: boolean },
): pg.Pool {
  const pool = new pg.Pool({
    connectionString: connectionString(url),
    max,
    pipeline,
    connectionTimeoutMillis: 5_000,
    keepAlive: true,
    application_name: `millrace ${name}`,
    options: [...PLANNER, ...BOUNDS].map((setting) => `-c ${setting}`).join(' '),
  })
  // A lost connection is replaced when one is needed, and a failed statement reaches its caller. The pool hears only its
  // idle clients: one lost in the middle of a transaction would, unheard, end the process.
  pool.on('error', () => {})
  pool.on('connect', (client) => client.on('error', () => {}))
  return pool
}
