/** Brings a database to this version's tables, once, however many processes start together. */

import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as pause } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import pg from 'pg'
import { MillraceError } from '../errors.ts'
import { connectionString } from './address.ts'
import { sqlStateOf } from './connect.ts'
import { identifyEvents } from './identify.ts'
import { startJobs } from './jobs.ts'
import { ensurePartitions, PARTITION_DAYS } from './partitions.ts'

const MIGRATIONS = fileURLToPath(new URL('../../migrations', import.meta.url))

/** Any constant: all Millrace processes must agree on it and no one else use it. */
const MIGRATION_LOCK = 7_461_203

/** A migration that waits for a lock makes others wait behind it: it gives up soon, lets them pass, and tries again. */
const LOCK_WAIT_MS = 2_000
const LOCK_TRIES_MAX = 100
const LOCK_NOT_AVAILABLE = '55P03'

/** What must be done in steps of their own before a migration, while other processes go on. */
const BEFORE: Record<string, (client: pg.ClientBase) => Promise<void>> = { '0010_event_partitions': identifyEvents }

/**
 * Applies what is missing of migrations/ and of pg-boss's own schema, and makes the next partitions, under an advisory
 * lock. Processes of the version before go on working, or hold what they cannot insert.
 * @param partitionDays  EVENTS_PARTITION_DAYS
 * @throws MillraceError `schema_too_new` where a newer version has changed the tables in a way that this one cannot serve
 */
export async function migrateDatabase(url: string, partitionDays = PARTITION_DAYS): Promise<void> {
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
    await applyMigrations(client)
    await ensurePartitions(client, partitionDays)
    const jobs = await startJobs(url, { migrate: true })
    await jobs.stop()
  } finally {
    await client.end()
  }
}

type Migration = { tag: string; when: number; statements: string[]; hash: string }

/** Files and journal are drizzle-kit's, and so is the table that says which are applied. */
function readMigrations(): Migration[] {
  const journal: { entries: { tag: string; when: number }[] } = JSON.parse(
    readFileSync(join(MIGRATIONS, 'meta/_journal.json'), 'utf8'),
  )
  return journal.entries.map(({ tag, when }) => {
    const text = readFileSync(join(MIGRATIONS, `${tag}.sql`), 'utf8')
    const hash = createHash('sha256').update(text).digest('hex')
    return { tag, when, statements: text.split('--> statement-breakpoint'), hash }
  })
}

/**
 * Each migration in its own transaction, so that none holds locks for another.
 * @param last  the tag to stop after; all by default
 */
export async function applyMigrations(client: pg.ClientBase, last?: string): Promise<void> {
  await client.query('create schema if not exists drizzle')
  await client.query(`create table if not exists drizzle.__drizzle_migrations (
    id serial primary key, hash text not null, created_at bigint)`)
  const migrations = readMigrations()
  await refuseNewer(client, migrations)
  const { rows } = await client.query('select max(created_at)::float8 as newest from drizzle.__drizzle_migrations')
  for (const migration of migrations) {
    if (migration.when > (rows[0].newest ?? 0)) {
      await BEFORE[migration.tag]?.(client)
      await withShortLocks(client, () => apply(client, migration))
    }
    if (migration.tag === last) break
  }
}

async function refuseNewer(client: pg.ClientBase, known: Migration[]): Promise<void> {
  const { rows: there } = await client.query(`select to_regclass('schema_breaks') is not null as kept`)
  if (!there[0].kept) return
  const { rows } = await client.query<{ migration: string }>('select migration from schema_breaks order by 1')
  const unknown = rows.map(({ migration }) => migration).filter((tag) => !known.some((one) => one.tag === tag))
  if (unknown.length > 0)
    throw new MillraceError(
      'schema_too_new',
      `The database belongs to a newer Millrace (${unknown.join(', ')}), and this version cannot work with it: start the newer one`,
    )
}

async function apply(client: pg.ClientBase, { statements, hash, when }: Migration): Promise<void> {
  for (const statement of statements) await client.query(statement)
  await client.query('insert into drizzle.__drizzle_migrations (hash, created_at) values ($1, $2)', [hash, when])
}

async function withShortLocks(client: pg.ClientBase, work: () => Promise<void>): Promise<void> {
  for (let tries = 1; ; tries++) {
    await client.query('begin')
    try {
      await client.query(`set local lock_timeout = ${LOCK_WAIT_MS}`)
      await work()
      await client.query('commit')
      return
    } catch (error) {
      await client.query('rollback')
      if (sqlStateOf(error) !== LOCK_NOT_AVAILABLE || tries === LOCK_TRIES_MAX) throw error
    }
    await pause(LOCK_WAIT_MS)
  }
}
