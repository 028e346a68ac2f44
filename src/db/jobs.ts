/** pg-boss: where failed batches, dead letters and schedules are kept, in the same Postgres. */

import { sql } from 'drizzle-orm'
import type pg from 'pg'
import { type Db, fromDrizzle, PgBoss, type Queue } from 'pg-boss'
import { connectionString } from './address.ts'
import type { Transaction } from './connect.ts'

export const FAILED_BATCHES = 'failed-batches'
export const DEAD_LETTERS = 'dead-letters'
/** Workflow runs that failed, with their history; the job's id is the run's. */
export const DEAD_RUNS = 'dead-runs'
/** One waiting job for each schedule of workflows: it rings at the schedule's next time. */
export const SCHEDULE_RINGS = 'schedule-rings'
/** Rings each hour for whoever makes the next partitions of `events`. */
export const PARTITIONS = 'partitions'
/** Rings each hour for whoever archives and drops what is older than it shall be. */
export const RETENTION = 'retention'

const YEAR_SECONDS = 365 * 24 * 3600

/**
 * pg-boss keeps queued jobs 14 days by default; a dead letter stays until someone replays or discards it. Ten years is
 * the longest it allows in practice, and finished ones stay a year to answer "what became of it".
 */
const QUEUES: Queue[] = [
  { name: FAILED_BATCHES, retentionSeconds: YEAR_SECONDS, deleteAfterSeconds: 30 * 24 * 3600, retryLimit: 0 },
  { name: DEAD_LETTERS, retentionSeconds: 10 * YEAR_SECONDS, deleteAfterSeconds: YEAR_SECONDS, retryLimit: 0 },
  { name: DEAD_RUNS, retentionSeconds: 10 * YEAR_SECONDS, deleteAfterSeconds: YEAR_SECONDS, retryLimit: 0 },
  {
    name: SCHEDULE_RINGS,
    policy: 'short',
    retentionSeconds: 10 * YEAR_SECONDS,
    deleteAfterSeconds: 3600,
    expireInSeconds: 60,
    retryLimit: 100,
    retryDelay: 2,
  },
  { name: PARTITIONS, policy: 'short', retentionSeconds: 3600, deleteAfterSeconds: 7 * 24 * 3600, retryLimit: 3 },
  {
    name: RETENTION,
    policy: 'short',
    retentionSeconds: 3600,
    deleteAfterSeconds: 30 * 24 * 3600,
    // As long as the largest partition may take; an advisory lock keeps a second one away.
    expireInSeconds: 12 * 3600,
    retryLimit: 3,
    retryDelay: 60,
  },
]

/**
 * Starts pg-boss on its own two connections.
 * @param migrate  true only in migrateDatabase: creates pg-boss's schema and our queues
 * @param maintain true in one long-lived process at least: expiry, retention and cron
 */
export async function startJobs(
  url: string,
  { migrate = false, maintain = false, onError = (_: Error) => {} } = {},
): Promise<PgBoss> {
  const jobs = new PgBoss({
    connectionString: connectionString(url),
    application_name: 'millrace jobs',
    max: 2,
    migrate,
    createSchema: migrate,
    supervise: maintain,
    schedule: maintain,
    registerInstance: false,
  })
  jobs.on('error', onError)
  try {
    await jobs.start()
    if (migrate) for (const { name, ...options } of QUEUES) await jobs.createQueue(name, options)
    return jobs
  } catch (error) {
    // It may have been half started.
    await jobs.stop({ graceful: false }).catch(() => {})
    throw error
  }
}

/** The same for a transaction on a bare client. */
export const onClient = (client: pg.ClientBase): Db => ({
  executeSql: (text, values) => client.query(text, values),
})

/** Makes a pg-boss call part of our transaction: `jobs.send(queue, data, { db: within(tx) })`. */
export const within = (tx: Transaction) => fromDrizzle(tx, sql)
