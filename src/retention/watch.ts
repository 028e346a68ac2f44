/** The hourly jobs: partitions ahead of time, by any worker; retention, by those that are configured for it. */

import type { PgBoss } from 'pg-boss'
import type { Config } from '../config.ts'
import type { Database } from '../db/connect.ts'
import { readGrowth } from '../db/growth.ts'
import { PARTITIONS, RETENTION } from '../db/jobs.ts'
import { ensurePartitions } from '../db/partitions.ts'
import type { Metrics } from '../telemetry/metrics.ts'
import { checkRetention, connectRetention, retains, runRetention } from './run.ts'

type Deps = {
  db: Database
  jobs: PgBoss
  log: Record<'info' | 'warn', (facts: object, message: string) => void>
  telemetry: { metrics: Metrics }
}

/**
 * @returns stops hearing the jobs; what is being archived is given up at the signal, and taken up again another time
 * @throws MillraceError `invalid_config`, see checkRetention
 */
export async function watchGrowth(
  { db, jobs, log, telemetry }: Deps,
  config: Config,
  signal: AbortSignal,
): Promise<() => Promise<void>> {
  checkRetention(config)
  telemetry.metrics.observeGrowth(() => readGrowth(db))
  await jobs.work(PARTITIONS, async () => {
    const client = await connectRetention(config)
    try {
      const left = await ensurePartitions(client, config.EVENTS_PARTITION_DAYS)
      if (left.length > 0) log.warn({ partitions: left }, 'someone reads events for long: not all partitions are made')
    } finally {
      await client.end()
    }
  })
  await jobs.schedule(PARTITIONS, '7 * * * *')
  if (retains(config)) {
    await jobs.work(RETENTION, async () => {
      const outcome = await runRetention(config, signal)
      if (outcome !== null) log.info(outcome, 'retention')
    })
    await jobs.schedule(RETENTION, '37 * * * *')
  }
  return async () => {
    await jobs.offWork(PARTITIONS)
    if (retains(config)) await jobs.offWork(RETENTION)
  }
}
