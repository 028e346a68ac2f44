/**
 * The trace of one attempt at a batch, made when it is over and all times are known:
 *   batch ingest_workers            from the first event taken to the last answer, a trace of its own
 *     receive EVENTS                filling the batch
 *     INSERT events                 BEGIN to COMMIT, with every try that halving made
 *     ack EVENTS                    the answers to JetStream
 * and for each sampled event, in the event's own trace:
 *   process EVENTS                  from JetStream's store time to the commit
 * Batch and event spans link to each other, since links are all that joins two traces.
 */

import { type Attributes, ROOT_CONTEXT, type Span, SpanKind, type Tracer, trace } from '@opentelemetry/api'
import {
  ATTR_DB_COLLECTION_NAME,
  ATTR_DB_OPERATION_BATCH_SIZE,
  ATTR_DB_OPERATION_NAME,
  ATTR_DB_QUERY_TEXT,
  ATTR_DB_SYSTEM_NAME,
  DB_SYSTEM_NAME_VALUE_POSTGRESQL,
} from '@opentelemetry/semantic-conventions'
import { CONSUMER, STREAM } from '../broker/streams.ts'
import {
  ATTR_CLOUDEVENTS_EVENT_ID,
  ATTR_CLOUDEVENTS_EVENT_SOURCE,
  ATTR_MESSAGING_BATCH_MESSAGE_COUNT,
  ATTR_MESSAGING_CLIENT_ID,
  ATTR_MESSAGING_DESTINATION_NAME,
  ATTR_MESSAGING_DESTINATION_SUBSCRIPTION_NAME,
  ATTR_MESSAGING_MESSAGE_ID,
  ATTR_MESSAGING_OPERATION_NAME,
  ATTR_MESSAGING_OPERATION_TYPE,
  ATTR_MESSAGING_SYSTEM_NAME,
} from './semconv.ts'
import { parseTraceparent } from './traceparent.ts'
import { always, end, type Tracing, under } from './tracing.ts'

/** What OpenTelemetry allows on a span, and more than anyone reads. */
export const LINKS_MAX = 128
/** The statement is static; its beginning identifies it. */
const SQL_CHARS_MAX = 512

/** A sampled event of a batch. */
export type AttemptedEvent = {
  id: string
  source: string
  seq: number
  place: number
  traceparent: string
  publishedMs: number
  deliveries: number
  /** What became of it: inserted, duplicate, poison (and why), postponed. */
  outcome: { kind: string; sqlstate?: string; error?: string }
}

/** All times in ms since 1970. */
export type Attempt = {
  batchId: string
  worker: string
  /** How many events it had. */
  size: number
  /** The sampled ones, LINKS_MAX at most. */
  sampled: readonly AttemptedEvent[]
  /** When a free worker found the first event. */
  startedMs: number
  /** When the batch closed. */
  closedMs: number
  insertStartedMs: number
  /** After COMMIT, or when Postgres failed. */
  insertEndedMs: number
  answeredMs: number
  statement: string
  /** Why nothing was committed. */
  error?: { code: string; message: string }
}

export const isSampled = (traceparent: string): boolean => traceparent.endsWith('-01')

/** Records one attempt at a batch, if any of its events is sampled. */
export function traceBatch({ tracer }: Tracing, attempt: Attempt): void {
  if (tracer === undefined || attempt.sampled.length === 0) return
  const batch = tracer.startSpan(
    `batch ${CONSUMER}`,
    {
      kind: SpanKind.INTERNAL,
      startTime: attempt.startedMs,
      attributes: {
        'millrace.batch.id': attempt.batchId,
        'millrace.worker': attempt.worker,
        [ATTR_MESSAGING_BATCH_MESSAGE_COUNT]: attempt.size,
      },
    },
    always(ROOT_CONTEXT),
  )
  traceSteps(tracer, batch, attempt)
  for (const event of attempt.sampled) traceEvent(tracer, batch, attempt, event)
  end(batch, attempt.error, attempt.answeredMs)
}

function traceSteps(tracer: Tracer, batch: Span, attempt: Attempt): void {
  const parent = trace.setSpan(ROOT_CONTEXT, batch)
  const step = (name: string, startMs: number, endMs: number, attributes: Attributes, error?: Attempt['error']) =>
    end(
      tracer.startSpan(name, { kind: SpanKind.CLIENT, startTime: startMs, attributes }, parent),
      error,
      Math.max(startMs, endMs),
    )
  step(`receive ${STREAM}`, attempt.startedMs, attempt.closedMs, {
    ...messaging('receive', 'receive', attempt.worker),
    [ATTR_MESSAGING_BATCH_MESSAGE_COUNT]: attempt.size,
  })
  step(
    'INSERT events',
    attempt.insertStartedMs,
    attempt.insertEndedMs,
    {
      [ATTR_DB_SYSTEM_NAME]: DB_SYSTEM_NAME_VALUE_POSTGRESQL,
      [ATTR_DB_OPERATION_NAME]: 'INSERT',
      [ATTR_DB_COLLECTION_NAME]: 'events',
      [ATTR_DB_OPERATION_BATCH_SIZE]: attempt.size,
      [ATTR_DB_QUERY_TEXT]: attempt.statement.slice(0, SQL_CHARS_MAX),
    },
    attempt.error,
  )
  step(`${attempt.error === undefined ? 'ack' : 'nak'} ${STREAM}`, attempt.insertEndedMs, attempt.answeredMs, {
    ...messaging(attempt.error === undefined ? 'ack' : 'nak', 'settle', attempt.worker),
    [ATTR_MESSAGING_BATCH_MESSAGE_COUNT]: attempt.size,
  })
}

function traceEvent(tracer: Tracer, batch: Span, attempt: Attempt, event: AttemptedEvent): void {
  const sent = parseTraceparent(event.traceparent)
  if (sent === undefined) return
  const { kind, sqlstate, error } = event.outcome
  // Another machine's clock may be ahead of ours; no span ends before it starts.
  const wait = (fromMs: number, toMs: number) => Math.max(0, toMs - fromMs)
  const span = tracer.startSpan(
    `process ${STREAM}`,
    {
      kind: SpanKind.CONSUMER,
      startTime: event.publishedMs,
      links: [{ context: batch.spanContext(), attributes: { 'millrace.link': 'batch' } }],
      attributes: {
        ...messaging('process', 'process', attempt.worker),
        [ATTR_MESSAGING_MESSAGE_ID]: event.place === 0 ? `${event.seq}` : `${event.seq}.${event.place}`,
        [ATTR_CLOUDEVENTS_EVENT_ID]: event.id,
        [ATTR_CLOUDEVENTS_EVENT_SOURCE]: event.source,
        'millrace.batch.id': attempt.batchId,
        'millrace.outcome': kind,
        'millrace.delivery_count': event.deliveries,
        'millrace.queue_wait_ms': wait(event.publishedMs, attempt.closedMs),
        'millrace.batch_wait_ms': wait(attempt.closedMs, attempt.insertStartedMs),
        'millrace.insert_ms': wait(attempt.insertStartedMs, attempt.insertEndedMs),
      },
    },
    under(sent),
  )
  const reason = error === undefined ? attempt.error : { code: sqlstate || 'unreadable', message: error }
  end(span, reason, Math.max(event.publishedMs, attempt.insertEndedMs))
  batch.addLink({ context: span.spanContext(), attributes: { [ATTR_CLOUDEVENTS_EVENT_ID]: event.id } })
}

const messaging = (name: string, type: string, worker: string): Attributes => ({
  [ATTR_MESSAGING_SYSTEM_NAME]: 'nats',
  [ATTR_MESSAGING_DESTINATION_NAME]: STREAM,
  [ATTR_MESSAGING_DESTINATION_SUBSCRIPTION_NAME]: CONSUMER,
  [ATTR_MESSAGING_CLIENT_ID]: worker,
  [ATTR_MESSAGING_OPERATION_NAME]: name,
  [ATTR_MESSAGING_OPERATION_TYPE]: type,
})
