/** Brings a database to this version's tables, once, however many processes start together. */

import { fileURLToPath } from 'node:url'
import { drizzle } from 'drizzle-orm/node-postgres'
import { migrate } from 'drizzle-orm/node-postgres/migrator'
import pg from 'pg'
import { connectionString } from './address.ts'
import { startJobs } from './jobs.ts'

const MIGRATIONS = fileURLToPath(new URL('../../migrations', import.meta.url))

/** Any constant: all Millrace processes must agree on it and no one else use it. */
const MIGRATION_LOCK = 7_461_203

/** Applies what is missing of migrations/ and of pg-boss's own schema, under an advisory lock. */
export async function migrateDatabase(url: string): Promise<void> {
  const client = new pg.Client({
    connectionString: connectionString(url),
    application_name: 'millrace migrate',
    connectionTimeoutMillis: 5_000,
  })
  // What fails rejects; an error that nobody hears would end the process.
  client.on('error', () => {})
  try {
    await client.connect()
    await client.query('select pg_advisory_lock($1)', [MIGRATION_LOCK])
    await migrate(drizzle(client), { migrationsFolder: MIGRATIONS })
    const jobs = await startJobs(url, { migrate: true })
    await jobs.stop()
  } finally {
    await client.end()
  }
}
