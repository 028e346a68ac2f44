/** The one pool of Postgres connections of a process, and Drizzle over it. */

import { drizzle, type NodePgDatabase } from 'drizzle-orm/node-postgres'
import pg from 'pg'
import type { Config } from '../config.ts'
import { MillraceError } from '../errors.ts'
import { explainHandshake } from '../tls.ts'
import { connectionString } from './address.ts'
import * as schema from './schema.ts'

export type Database = NodePgDatabase<typeof schema> & { $client: pg.Pool }
export type Transaction = Parameters<Parameters<Database['transaction']>[0]>[0]
export type DatabaseConnection = { db: Database; pool: pg.Pool; close: () => Promise<void> }

/** A connection that dies without a word (a cut cable, a frozen host) is given up after this; the work is tried again. */
const QUERY_MS_MAX = 30_000
/**
 * A process that is frozen between its INSERT and its COMMIT holds locks on the keys of its batch, on which the worker
 * that gets the redelivery waits. Postgres ends such a transaction after this.
 */
const IDLE_IN_TRANSACTION_MS_MAX = 10_000

/**
 * Opens a pool; connects on first use. A connection that Postgres drops is replaced on the next use, so its error event
 * needs no more than the log line the caller gives it; unheard, it would end the process.
 * @throws MillraceError `invalid_config` for an address that cannot be used
 */
export function connectDatabase(
  config: Pick<Config, 'DATABASE_URL' | 'DATABASE_POOL_SIZE'>,
  onLost: (error: Error) => void = () => {},
): DatabaseConnection {
  const pool = new pg.Pool({
    connectionString: connectionString(config.DATABASE_URL),
    max: config.DATABASE_POOL_SIZE,
    connectionTimeoutMillis: 5_000,
    query_timeout: QUERY_MS_MAX,
    idle_in_transaction_session_timeout: IDLE_IN_TRANSACTION_MS_MAX,
    keepAlive: true,
    application_name: 'millrace',
  })
  // The pool listens only to its idle clients: one that is lost in the middle of a transaction is ours to hear.
  pool.on('connect', (client) => client.on('error', onLost))
  pool.on('error', () => {})
  return { db: drizzle(pool, { schema }), pool, close: () => pool.end() }
}

/**
 * Runs `work` in one transaction: commits when it resolves, rolls back and rethrows when it throws. Used in place of
 * Drizzle's `db.transaction`, which over a pool never gives back a client whose BEGIN failed: ten lost connections
 * would leave a process without any.
 */
export async function inTransaction<T>(db: Database, work: (tx: Transaction) => Promise<T>): Promise<T> {
  const client = await db.$client.connect()
  let held = true
  /** What failed for another reason than Postgres's own answer may still be waiting for one: that client is ended. */
  const release = (error?: unknown) => {
    if (held) client.release(error !== undefined && sqlStateOf(error) === undefined)
    held = false
  }
  try {
    return await drizzle(client, { schema }).transaction(async (tx) => {
      try {
        return await work(tx)
      } catch (error) {
        // Its ROLLBACK would wait as long again for the same silent server.
        if (isOutage(error)) release(error)
        throw error
      }
    })
  } catch (error) {
    release(error)
    throw error
  } finally {
    release()
  }
}

/** The SQLSTATE Postgres answered with, beneath the wrappers of Drizzle; undefined where no such answer came. */
export const sqlStateOf = (thrown: unknown): string | undefined => answerOf(thrown)?.code

/**
 * Whether a row met a change of partitions: one attached while its statement waited for another, or none that fits. It
 * fails as a row that breaks a check does (23514), but without the name of one, and finds its place the next time.
 */
export function isMisrouted(thrown: unknown): boolean {
  const answer = answerOf(thrown)
  return answer?.code === '23514' && answer.constraint === undefined
}

function answerOf(thrown: unknown): pg.DatabaseError | undefined {
  let error = thrown
  while (error instanceof Error && !(error instanceof pg.DatabaseError)) error = error.cause
  return error instanceof pg.DatabaseError ? error : undefined
}

/** Whether Postgres is away or cannot serve now, and the same statement may do later. */
export function isOutage(thrown: unknown): boolean {
  const sqlState = sqlStateOf(thrown)
  if (sqlState !== undefined) return /^(08|53|57)/.test(sqlState)
  for (let error = thrown; error instanceof Error; error = error.cause) {
    // The driver has no class or code for these.
    if (/timeout exceeded when trying to connect|Connection terminated|Query read timeout/.test(error.message))
      return true
    if ('syscall' in error && /^(connect|getaddrinfo|read|write)$/.test(String(error.syscall))) return true
  }
  return false
}

/** Why Postgres will not be talked to however long one waits, in words to act on; undefined where waiting may help. */
export function databaseRefused(thrown: unknown): MillraceError | undefined {
  const refused = (reason: string) =>
    new MillraceError('invalid_config', `Postgres at DATABASE_URL ${reason}`, { cause: thrown })
  const handshake = explainHandshake(thrown, { ca: 'sslrootcert in it', cert: 'sslcert in it' })
  if (handshake !== undefined) return refused(`is not to be trusted: ${handshake}`)
  const sqlState = sqlStateOf(thrown)
  if (sqlState?.startsWith('28'))
    return refused('does not let this user in: check user, password and sslmode in it (verify-full for TLS)')
  if (sqlState === '3D000') return refused('has no such database: create it, or check the address')
  return undefined
}
