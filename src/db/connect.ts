/** The one pool of Postgres connections of a process, and Drizzle over it. */

import { drizzle, type NodePgDatabase } from 'drizzle-orm/node-postgres'
import pg from 'pg'
import type { Config } from '../config.ts'
import * as schema from './schema.ts'

export type Database = NodePgDatabase<typeof schema>
export type Transaction = Parameters<Parameters<Database['transaction']>[0]>[0]
export type DatabaseConnection = { db: Database; pool: pg.Pool; close: () => Promise<void> }

/**
 * Opens a pool; connects on first use. An idle connection that Postgres drops is replaced on the next use, so the
 * pool's own error event needs no more than the log line the caller gives it.
 */
export function connectDatabase(
  config: Pick<Config, 'DATABASE_URL' | 'DATABASE_POOL_SIZE'>,
  onIdleError: (error: Error) => void = () => {},
): DatabaseConnection {
  const pool = new pg.Pool({
    connectionString: config.DATABASE_URL,
    max: config.DATABASE_POOL_SIZE,
    connectionTimeoutMillis: 5_000,
    keepAlive: true,
    application_name: 'millrace',
  })
  pool.on('error', onIdleError)
  return { db: drizzle(pool, { schema }), pool, close: () => pool.end() }
}
