/**
 * True latency by SQL, over every row: from the request and from JetStream's store time to the commit of the row's batch.
 * The histograms of /metrics measure the same per process; a test holds the two together.
 */

import { sql } from 'drizzle-orm'
import { type Database, inTransaction } from '../db/connect.ts'

/** In ms; null where there is no event. */
type Percentiles = { p50: number | null; p90: number | null; p99: number | null; max: number | null }
export type LatencyStats = { count: number; event: Percentiles; queue: Percentiles }

/** Sorting the latencies of a few million rows takes seconds; more is a question for a shorter time. */
const STATEMENT_MS_MAX = 30_000

/**
 * Rows stored in JetStream in [from, to), whose batch's commit time is written down.
 * @param type  null for all types
 * @throws what Postgres says, `57014` where it took longer than 30 s
 */
export async function latencyStats(
  { db }: { db: Database },
  { tenant, from, to, type }: { tenant: string; from: Date; to: Date; type: string | null },
): Promise<LatencyStats> {
  return inTransaction(db, async (tx) => {
    await tx.execute(sql`select set_config('statement_timeout', ${String(STATEMENT_MS_MAX)}, true)`)
    const { rows } = await tx.execute<{
      count: string
      event: number[] | null
      event_max: number | null
      queue: number[] | null
      queue_max: number | null
    }>(sql`
      select count(*),
             percentile_disc(array[0.5, 0.9, 0.99]) within group (order by event_ms) as event, max(event_ms) as event_max,
             percentile_disc(array[0.5, 0.9, 0.99]) within group (order by queue_ms) as queue, max(queue_ms) as queue_max
      from (
        select greatest(0, extract(epoch from batches.committed_at - events.received_at) * 1000)::float8 as event_ms,
               greatest(0, extract(epoch from batches.committed_at - events.published_at) * 1000)::float8 as queue_ms
        from events join batches on batches.id = events.batch_id
        where events.tenant = ${tenant} and events.published_at >= ${from.toISOString()}::timestamptz
          and events.published_at < ${to.toISOString()}::timestamptz
          and (${type}::text is null or events.type = ${type}::text)
      ) as latency`)
    const { count, event, event_max, queue, queue_max } = rows[0]!
    return { count: Number(count), event: percentiles(event, event_max), queue: percentiles(queue, queue_max) }
  })
}

function percentiles(values: number[] | null, max: number | null): Percentiles {
  const [p50 = null, p90 = null, p99 = null] = values ?? []
  return { p50, p90, p99, max }
}
