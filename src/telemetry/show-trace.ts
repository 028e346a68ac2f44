/** `millrace trace`: what happened to the events of one trace, from Jaeger and from Postgres. */

import { sql } from 'drizzle-orm'
import type { Config } from '../config.ts'
import type { Database } from '../db/connect.ts'
import { describe, MillraceError } from '../errors.ts'
import { fetchSpans, type StoredSpan } from './jaeger.ts'
import { drawWaterfall, type TracedRow } from './waterfall.ts'

/** Events of a large request share a trace; this many rows and batches are shown. */
const ROWS_MAX = 20
const BATCHES_MAX = 5

/**
 * Finds a trace and draws it.
 * @param given  a trace id, or a whole traceparent as the API returned it
 * @throws MillraceError `invalid_request` for what is no trace id, `not_found` where neither side knows it
 */
export async function showTrace(
  { db }: { db: Database },
  config: Pick<Config, 'JAEGER_QUERY_URL'>,
  given: string,
  columns: number,
): Promise<string> {
  const traceId = /^(?:[0-9a-f]{2}-)?([0-9a-f]{32})(?:-.*)?$/.exec(given.trim().toLowerCase())?.[1]
  if (traceId === undefined)
    throw new MillraceError('invalid_request', 'A trace id has 32 hexadecimal digits; a traceparent will do as well')
  const [rows, told] = await Promise.all([
    tracedRows(db, traceId),
    spansAndBatches(config.JAEGER_QUERY_URL, traceId).catch(describe),
  ])
  const spans = typeof told === 'string' ? [] : told
  if (rows.length === 0 && spans.length === 0)
    throw new MillraceError(
      'not_found',
      `Postgres has no row of trace ${traceId}, and ${typeof told === 'string' ? told : 'Jaeger has no span of it'}. Its event may wait in the stream, or be a dead letter: \`millrace dead-letters list\``,
    )
  const notes: string[] = []
  if (typeof told === 'string') notes.push(told)
  else if (spans.length === 0) notes.push('Jaeger has no span of this trace: it was not sampled, or is not there yet')
  if (rows.length === ROWS_MAX) notes.push(`the first ${ROWS_MAX} rows are shown`)
  return [drawWaterfall(spans, rows, columns), ...notes.map((note) => `(${note})`)].join('\n')
}

/** The trace itself, and the traces of the batches that its events were in. */
async function spansAndBatches(queryUrl: string, traceId: string): Promise<StoredSpan[]> {
  const spans = await fetchSpans(queryUrl, traceId)
  const linked = [...new Set(spans.flatMap((span) => span.linkedTraceIds))].slice(0, BATCHES_MAX)
  return [spans, ...(await Promise.all(linked.map((id) => fetchSpans(queryUrl, id))))].flat()
}

async function tracedRows(db: Database, traceId: string): Promise<TracedRow[]> {
  const { rows } = await db.execute<TracedRow>(sql`
    select events.source, events.id, events.type, events.stream_seq as "streamSeq", batches.worker,
           (extract(epoch from batches.committed_at - events.received_at) * 1000)::float8 as "eventMs",
           (extract(epoch from batches.committed_at - events.published_at) * 1000)::float8 as "queueMs"
    from events left join batches on batches.id = events.batch_id
    where events.trace_id = ${traceId}::uuid
    order by events.stream_seq limit ${ROWS_MAX}`)
  return rows
}
