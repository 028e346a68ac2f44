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

/** A connection that dies without a word is given up after this, as in db/connect.ts. */
const QUERY_MS_MAX = 30_000

/** @property values  as text; arrays too, so that nothing is left to write */
type PreparedStatement = { name: string; text: string; values: (string | null)[] }

const prepared = new WeakMap<pg.Connection, Set<string>>()

/**
 * Runs statements as one transaction in one round trip, without BEGIN and COMMIT: in PostgreSQL's extended protocol
 * everything before a Sync is one implicit transaction, committed there ("Pipelining" in its chapter on message flow).
 * The client's own pipeline sends a Sync with each statement.
 * @returns one result each; after a rejection the client is to be destroyed
 */
export function runTogether(client: pg.PoolClient, statements: PreparedStatement[]): Promise<pg.QueryResult[]> {
  return new Promise((resolve, reject) => {
    // Its own handling of answers makes one result of each completed command.
    const query = new pg.Query('', (error, results) => {
      if (error) reject(error)
      else resolve(([] as pg.QueryResult[]).concat(results as unknown as pg.QueryResult | pg.QueryResult[]))
    })
    query.submit = (connection) => {
      const known = prepared.get(connection) ?? new Set()
      prepared.set(connection, known)
      connection.stream.cork()
      for (const { name, text, values } of statements) {
        if (!known.has(name)) connection.parse({ name, text, types: [] }, true)
        known.add(name)
        connection.bind({ statement: name, values }, true)
        connection.describe({ type: 'P' }, true)
        connection.execute({}, true)
      }
      connection.sync()
      connection.stream.uncork()
      return null
    }
    client.query(query)
  })
}

export function openSessions(url: string, name: string, max: number): pg.Pool {
  const pool = new pg.Pool({
    connectionString: connectionString(url),
    max,
    connectionTimeoutMillis: 5_000,
    query_timeout: QUERY_MS_MAX,
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
