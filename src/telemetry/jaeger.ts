/**
 * Jaeger: whether one is up beside `make dev`, and the spans of a trace as its query API tells them
 * (`GET /api/traces/:id`, JSON).
 */

import type { Config } from '../config.ts'
import { MillraceError } from '../errors.ts'

export type StoredSpan = {
  traceId: string
  spanId: string
  parentId: string | undefined
  /** Traces that this span links to, without its own. */
  linkedTraceIds: string[]
  name: string
  service: string
  startUs: number
  durationUs: number
  tags: Map<string, string | number | boolean>
}

type Reference = { refType: 'CHILD_OF' | 'FOLLOWS_FROM'; traceID: string; spanID: string }

type Answer = {
  data: {
    spans: {
      traceID: string
      spanID: string
      operationName: string
      references: Reference[]
      startTime: number
      duration: number
      tags: { key: string; value: string | number | boolean }[]
      processID: string
    }[]
    processes: Record<string, { serviceName: string }>
  }[]
}

const QUERY_MS_MAX = 10_000

/** Where `make jaeger` listens. */
const LOCAL_OTLP = 'http://127.0.0.1:4318'
const PROBE_MS_MAX = 500

/** For development: traces every request into a Jaeger on this machine, if one is up and nothing else was asked for. */
export async function withLocalJaeger(config: Config): Promise<Config> {
  if (config.OTEL_EXPORTER_OTLP_ENDPOINT !== '') return config
  const up = await fetch(`${LOCAL_OTLP}/v1/traces`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: '{}',
    signal: AbortSignal.timeout(PROBE_MS_MAX),
  }).then(
    (response) => response.ok,
    () => false,
  )
  return up ? { ...config, OTEL_EXPORTER_OTLP_ENDPOINT: LOCAL_OTLP, OTEL_TRACES_SAMPLER_ARG: 1 } : config
}

/**
 * @returns the spans of a trace by start, then by end; none when Jaeger does not know it
 * @throws MillraceError `unavailable` when no Jaeger answers there
 */
export async function fetchSpans(queryUrl: string, traceId: string): Promise<StoredSpan[]> {
  let answer: Answer
  try {
    const response = await fetch(`${queryUrl.replace(/\/$/, '')}/api/traces/${traceId}`, {
      signal: AbortSignal.timeout(QUERY_MS_MAX),
    })
    if (response.status === 404) return []
    if (!response.ok) throw new Error(`status ${response.status}`)
    answer = (await response.json()) as Answer
  } catch (error) {
    throw new MillraceError('unavailable', `No Jaeger answers at ${queryUrl}: \`make jaeger\` starts one`, {
      cause: error,
    })
  }
  return (
    (answer.data[0]?.spans ?? [])
      .map((span) => ({
        traceId: span.traceID,
        spanId: span.spanID,
        parentId: parentOf(span.references.filter((ref) => ref.traceID === span.traceID)),
        linkedTraceIds: span.references.map((ref) => ref.traceID).filter((id) => id !== span.traceID),
        name: span.operationName,
        service: answer.data[0]!.processes[span.processID]?.serviceName ?? '',
        startUs: span.startTime,
        durationUs: span.duration,
        tags: new Map(span.tags.map(({ key, value }) => [key, value])),
      }))
      // Attempts at one event all start when JetStream stored it.
      .sort((a, b) => a.startUs - b.startUs || a.durationUs - b.durationUs)
  )
}

/** Jaeger tells a parent that is linked as well only as the link. */
const parentOf = (references: Reference[]): string | undefined =>
  (references.find((reference) => reference.refType === 'CHILD_OF') ?? references[0])?.spanID
