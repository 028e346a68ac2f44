/** What shall not be kept: checked, then taken away, by one process at a time. */

import pg from 'pg'
import type { Config } from '../config.ts'
import { connectionString } from '../db/address.ts'
import { MillraceError } from '../errors.ts'
import { pruneBatches, pruneRuns } from './prune.ts'
import { type Retired, retireEvents } from './retire.ts'

export type RetentionConfig = Pick<
  Config,
  'DATABASE_URL' | 'EVENTS_RETENTION_DAYS' | 'EVENTS_PARTITION_DAYS' | 'ARCHIVE_DIR' | 'WORKFLOW_RETENTION_DAYS'
>

/** Only who holds it retires anything. */
const RETENTION_LOCK = 7_461_205
const DAY_MS = 24 * 3600 * 1_000

/** @throws MillraceError `invalid_config` where events would be dropped without anyone having said so */
export function checkRetention({ EVENTS_RETENTION_DAYS, ARCHIVE_DIR }: RetentionConfig): void {
  if (EVENTS_RETENTION_DAYS > 0 && ARCHIVE_DIR === '')
    throw new MillraceError(
      'invalid_config',
      'EVENTS_RETENTION_DAYS drops events: say in ARCHIVE_DIR where to keep them, or ARCHIVE_DIR=none to keep none',
    )
}

/** Whether a process with this configuration takes anything away. */
export const retains = (config: RetentionConfig): boolean =>
  config.EVENTS_RETENTION_DAYS > 0 || config.WORKFLOW_RETENTION_DAYS > 0

export type RetentionOutcome = { events: Retired[]; batches: number; runs: number }

/**
 * Goes through everything once.
 * @returns null where another process is at it
 * @throws MillraceError `invalid_config`, see checkRetention
 */
export async function runRetention(
  config: RetentionConfig,
  signal: AbortSignal,
  nowMs = Date.now(),
): Promise<RetentionOutcome | null> {
  checkRetention(config)
  // Of its own, for an archive takes longer than the pool's queries may.
  const client = await connectRetention(config)
  try {
    const { rows } = await client.query('select pg_try_advisory_lock($1) as mine', [RETENTION_LOCK])
    if (!rows[0].mine) return null
    const outcome: RetentionOutcome = { events: [], batches: 0, runs: 0 }
    if (config.EVENTS_RETENTION_DAYS > 0) {
      const dir = config.ARCHIVE_DIR === 'none' ? null : config.ARCHIVE_DIR
      const days = config.EVENTS_RETENTION_DAYS
      const options = { days, dir, partitionDays: config.EVENTS_PARTITION_DAYS }
      outcome.events = await retireEvents(client, options, signal, nowMs)
      outcome.batches = await pruneBatches(client, signal)
    }
    if (config.WORKFLOW_RETENTION_DAYS > 0)
      outcome.runs = await pruneRuns(client, new Date(nowMs - config.WORKFLOW_RETENTION_DAYS * DAY_MS), signal)
    return outcome
  } finally {
    await client.end()
  }
}

export async function connectRetention({ DATABASE_URL }: Pick<Config, 'DATABASE_URL'>): Promise<pg.Client> {
  const client = new pg.Client({
    connectionString: connectionString(DATABASE_URL),
    application_name: 'millrace retention',
    keepAlive: true,
  })
  // A connection that is lost rejects the query; unheard, its error would end the process.
  client.on('error', () => {})
  await client.connect()
  return client
}
