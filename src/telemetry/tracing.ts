/**
 * Traces by OpenTelemetry, sent over OTLP/HTTP. An event's way is one trace, whichever processes handle it:
 *   1. SERVER     its request                                                        startRequest
 *   2. PRODUCER   `send EVENTS`, until JetStream has the request's events on disk    startSend
 *   3. CONSUMER   `process EVENTS`, from JetStream's store time to the commit        traceBatch (batch-trace.ts)
 *   4. a dead letter and its replay, always sampled                                  traceDeadLetter, startReplay
 * With OTEL_EXPORTER_OTLP_ENDPOINT empty nothing is loaded or recorded, but every event still gets a trace id.
 */

import {
  type Attributes,
  type Context,
  createContextKey,
  DiagLogLevel,
  diag,
  ROOT_CONTEXT,
  type Span,
  type SpanContext,
  SpanKind,
  SpanStatusCode,
  TraceFlags,
  type Tracer,
  trace,
} from '@opentelemetry/api'
import type { Sampler } from '@opentelemetry/sdk-trace'
import {
  ATTR_ERROR_TYPE,
  ATTR_HTTP_REQUEST_METHOD,
  ATTR_HTTP_RESPONSE_STATUS_CODE,
  ATTR_HTTP_ROUTE,
  ATTR_URL_PATH,
} from '@opentelemetry/semantic-conventions'
import { STREAM } from '../broker/streams.ts'
import type { Config } from '../config.ts'
import { withoutSecrets } from '../secrets.ts'
import { EXPORT_MS_MAX, identify } from './resource.ts'
import {
  ATTR_CLOUDEVENTS_EVENT_ID,
  ATTR_CLOUDEVENTS_EVENT_SOURCE,
  ATTR_MESSAGING_BATCH_MESSAGE_COUNT,
  ATTR_MESSAGING_DESTINATION_NAME,
  ATTR_MESSAGING_OPERATION_NAME,
  ATTR_MESSAGING_OPERATION_TYPE,
  ATTR_MESSAGING_SYSTEM_NAME,
} from './semconv.ts'
import { formatTraceparent, newSpanContext, parseTraceparent } from './traceparent.ts'

/** @property tracer  undefined when traces are off */
export type Tracing = { tracer: Tracer | undefined; stop: () => Promise<void> }

/** A request of a million events, sampled, must not become a trace that no one can open. */
const EVENT_SPANS_PER_REQUEST_MAX = 128

/** One second of spans at full sampling waits here at most; more is dropped, and the log says so. */
const SPANS_WAITING_MAX = 8_192
const EXPORT_DELAY_MS = 1_000

/** The exporter fails at every export while its collector is away; once a minute says it. */
const COMPLAINT_MS_MIN = 60_000

const ALWAYS = createContextKey('millrace always sample')

const SEND_ATTRIBUTES: Attributes = {
  [ATTR_MESSAGING_SYSTEM_NAME]: 'nats',
  [ATTR_MESSAGING_DESTINATION_NAME]: STREAM,
  [ATTR_MESSAGING_OPERATION_NAME]: 'send',
  [ATTR_MESSAGING_OPERATION_TYPE]: 'send',
}

/**
 * Loads the SDK and starts exporting where OTEL_EXPORTER_OTLP_ENDPOINT names a collector; a collector that is away
 * costs spans, never events.
 */
export async function startTracing(
  { log }: { log: { warn: (facts: object, message: string) => void } },
  config: Pick<Config, 'OTEL_EXPORTER_OTLP_ENDPOINT' | 'OTEL_TRACES_SAMPLER_ARG'>,
  service: string,
): Promise<Tracing> {
  if (config.OTEL_EXPORTER_OTLP_ENDPOINT === '') return { tracer: undefined, stop: async () => {} }
  const [sdk, { OTLPTraceExporter }] = await Promise.all([
    import('@opentelemetry/sdk-trace'),
    import('@opentelemetry/exporter-trace-otlp-proto'),
  ])
  let complainedAt = Number.NEGATIVE_INFINITY
  const complain = (message: string) => {
    if (performance.now() - complainedAt < COMPLAINT_MS_MIN) return
    complainedAt = performance.now()
    log.warn({ error: firstMessage(message) }, 'telemetry is not getting through')
  }
  const quiet = () => {}
  diag.setLogger({ error: complain, warn: complain, info: quiet, debug: quiet, verbose: quiet }, DiagLogLevel.WARN)

  const byRatio = new sdk.ParentBasedSampler({ root: new sdk.TraceIdRatioBasedSampler(config.OTEL_TRACES_SAMPLER_ARG) })
  const sampler: Sampler = {
    shouldSample: (parent, ...rest) =>
      parent.getValue(ALWAYS) === true
        ? { decision: sdk.SamplingDecision.RECORD_AND_SAMPLED }
        : byRatio.shouldSample(parent, ...rest),
    toString: () => `dead letters and replays, else ${byRatio}`,
  }
  const exporter = new OTLPTraceExporter({
    url: `${config.OTEL_EXPORTER_OTLP_ENDPOINT.replace(/\/$/, '')}/v1/traces`,
    timeoutMillis: EXPORT_MS_MAX,
  })
  const provider = new sdk.TracerProvider({
    resource: await identify(service),
    sampler,
    spanProcessors: [
      new sdk.BatchSpanProcessor({
        exporter,
        maxQueueSize: SPANS_WAITING_MAX,
        scheduledDelayMillis: EXPORT_DELAY_MS,
      }),
    ],
  })
  return { tracer: provider.getTracer('millrace'), stop: () => provider.shutdown() }
}

/** The SDK hands over errors as JSON text of all their properties. */
function firstMessage(text: string): string {
  try {
    return String(JSON.parse(text).message)
  } catch {
    return text
  }
}

/** The context under which a new span has this remote parent. */
export const under = (parent: SpanContext): Context => trace.setSpanContext(ROOT_CONTEXT, parent)
export const always = (parent: Context): Context => parent.setValue(ALWAYS, true)

export type RequestTrace = {
  /** Of every event of the request, and for the caller: returned as the `traceparent` response header. */
  traceparent: string
  context: SpanContext
  /** Absent when the request is not sampled. */
  span: Span | undefined
  eventsSampled: number
}

/** Starts the SERVER span of a request, in the caller's trace when it sent a valid traceparent. */
export function startRequest(
  { tracer }: Tracing,
  { method, path, traceparent }: { method: string; path: string; traceparent: string | undefined },
): RequestTrace {
  const parent = parseTraceparent(traceparent)
  if (tracer === undefined) return asRequest(parent ?? newSpanContext())
  const span = tracer.startSpan(
    method,
    { kind: SpanKind.SERVER, attributes: { [ATTR_HTTP_REQUEST_METHOD]: method, [ATTR_URL_PATH]: path } },
    parent === undefined ? ROOT_CONTEXT : under(parent),
  )
  return asRequest(span.spanContext(), span.isRecording() ? span : undefined)
}

const asRequest = (context: SpanContext, span?: Span): RequestTrace => ({
  traceparent: formatTraceparent(context),
  context,
  span,
  eventsSampled: 0,
})

/** Ends the SERVER span; a 5xx is an error of ours, a 4xx is the caller's (HTTP semantic conventions). */
export function endRequest({ span }: RequestTrace, answer: { method: string; route: string; status: number }): void {
  if (span === undefined) return
  span.updateName(`${answer.method} ${answer.route}`)
  span.setAttributes({ [ATTR_HTTP_ROUTE]: answer.route, [ATTR_HTTP_RESPONSE_STATUS_CODE]: answer.status })
  if (answer.status >= 500) {
    span.setAttribute(ATTR_ERROR_TYPE, String(answer.status))
    span.setStatus({ code: SpanStatusCode.ERROR })
  }
  span.end()
}

export type Send = {
  /** What the message of the next event carries. */
  traceparent: () => string
  end: (error?: unknown) => void
}

/**
 * Starts the PRODUCER span of a request's events, or of one part of a streamed request. Beyond
 * EVENT_SPANS_PER_REQUEST_MAX the events of a request keep its trace id, but are not sampled.
 */
export function startSend({ tracer }: Tracing, request: RequestTrace, count: number): Send {
  if (tracer === undefined || request.span === undefined) {
    return { traceparent: () => request.traceparent, end: () => {} }
  }
  const span = tracer.startSpan(
    `send ${STREAM}`,
    { kind: SpanKind.PRODUCER, attributes: { ...SEND_ATTRIBUTES, [ATTR_MESSAGING_BATCH_MESSAGE_COUNT]: count } },
    under(request.context),
  )
  const sampled = formatTraceparent(span.spanContext())
  const unsampled = formatTraceparent({ ...span.spanContext(), traceFlags: TraceFlags.NONE })
  return {
    traceparent: () => (request.eventsSampled++ < EVENT_SPANS_PER_REQUEST_MAX ? sampled : unsampled),
    end: (error) => end(span, error),
  }
}

/** Ends a span, with the error that it ended in. */
export function end(span: Span, error?: unknown, endMs?: number): void {
  if (error !== undefined) {
    const { code, name, message } = error as Error & { code?: string }
    span.setAttribute(ATTR_ERROR_TYPE, code ?? name ?? 'error')
    span.setStatus({ code: SpanStatusCode.ERROR, message: withoutSecrets(message) })
  }
  span.end(endMs)
}

/**
 * Records that an event became a dead letter: in the event's own trace, always sampled, linked to its first attempt.
 * @param traceparent  of the event's message
 * @returns what the dead letter keeps, so that its replay continues from here
 */
export function traceDeadLetter(
  { tracer }: Tracing,
  letter: { traceparent: string; id: string; source: string; deadLetterId: string; cause: string; message: string },
): string {
  const first = parseTraceparent(letter.traceparent) ?? newSpanContext()
  if (tracer === undefined) return formatTraceparent(first)
  const span = tracer.startSpan(
    `dead-letter ${STREAM}`,
    {
      kind: SpanKind.CONSUMER,
      links: [{ context: first, attributes: { 'millrace.link': 'first attempt' } }],
      attributes: {
        [ATTR_MESSAGING_SYSTEM_NAME]: 'nats',
        [ATTR_MESSAGING_DESTINATION_NAME]: STREAM,
        [ATTR_MESSAGING_OPERATION_NAME]: 'dead-letter',
        [ATTR_MESSAGING_OPERATION_TYPE]: 'settle',
        [ATTR_CLOUDEVENTS_EVENT_ID]: letter.id,
        [ATTR_CLOUDEVENTS_EVENT_SOURCE]: letter.source,
        'millrace.dead_letter.id': letter.deadLetterId,
      },
    },
    always(under(first)),
  )
  end(span, { code: letter.cause, message: letter.message })
  return formatTraceparent(span.spanContext())
}

/**
 * Starts the PRODUCER span of a dead letter's replay: in the event's own trace, always sampled, linked to the attempt
 * that failed and to the operator's request.
 */
export function startReplay(
  { tracer }: Tracing,
  letter: { traceparent: string; deadLetterId: string },
  request?: RequestTrace,
): Send {
  const failed = parseTraceparent(letter.traceparent) ?? newSpanContext()
  if (tracer === undefined) return { traceparent: () => formatTraceparent(failed), end: () => {} }
  const links = [{ context: failed, attributes: { 'millrace.link': 'failed attempt' } }]
  if (request?.span !== undefined)
    links.push({ context: request.context, attributes: { 'millrace.link': 'operator request' } })
  const span = tracer.startSpan(
    `replay ${STREAM}`,
    {
      kind: SpanKind.PRODUCER,
      links,
      attributes: {
        ...SEND_ATTRIBUTES,
        [ATTR_MESSAGING_OPERATION_NAME]: 'replay',
        'millrace.dead_letter.id': letter.deadLetterId,
      },
    },
    always(under(failed)),
  )
  return { traceparent: () => formatTraceparent(span.spanContext()), end: (error) => end(span, error) }
}
