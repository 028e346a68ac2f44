/**
 * Latency of every event, sampled or not, in two histograms. OpenTelemetry's own histogram takes 130-250 ns per value;
 * counting into an array takes 30, so every event can be counted, and a MetricProducer hands the counts to each reader.
 */

import { type HrTime, ValueType } from '@opentelemetry/api'
import { emptyResource } from '@opentelemetry/resources'
import {
  AggregationTemporality,
  DataPointType,
  type HistogramMetricData,
  type MetricProducer,
} from '@opentelemetry/sdk-metrics'

/** Upper bounds in seconds, six per decade from 1 ms to two hours: a quantile read from them is within a quarter or so. */
export const LATENCY_BOUNDS_SECONDS: readonly number[] = [-3, -2, -1, 0, 1, 2, 3].flatMap((decade) =>
  [1, 1.5, 2, 3, 5, 7].map((step) => Number((step * 10 ** decade).toPrecision(2))),
)

type Histogram = { counts: number[]; sum: number; min: number; max: number; count: number }

const emptyHistogram = (): Histogram => ({
  counts: new Array<number>(LATENCY_BOUNDS_SECONDS.length + 1).fill(0),
  sum: 0,
  min: Number.POSITIVE_INFINITY,
  max: 0,
  count: 0,
})

export type LatencyHistograms = {
  /** Counts `events` of one message: from their request and from JetStream's store time to their commit, in ms since 1970. */
  record: (receivedMs: number, publishedMs: number, committedMs: number, events: number) => void
  producer: MetricProducer
}

export function createLatencyHistograms(): LatencyHistograms {
  const startTime = hrTimeNow()
  const event = emptyHistogram()
  const queue = emptyHistogram()
  return {
    record: (receivedMs, publishedMs, committedMs, events) => {
      if (events === 0) return
      add(event, (committedMs - receivedMs) / 1_000, events)
      add(queue, (committedMs - publishedMs) / 1_000, events)
    },
    producer: {
      collect: async () => {
        const endTime = hrTimeNow()
        const metrics = [
          describe('millrace_event_latency_seconds', 'From the request to the commit, every event', event),
          describe('millrace_queue_latency_seconds', 'From JetStream storing it to the commit, every event', queue),
        ]
        return {
          resourceMetrics: {
            resource: emptyResource(),
            scopeMetrics: [{ scope: { name: 'millrace' }, metrics: metrics.map((make) => make(startTime, endTime)) }],
          },
          errors: [],
        }
      },
    },
  }
}

const hrTimeNow = (): HrTime => [Math.trunc(Date.now() / 1_000), (Date.now() % 1_000) * 1e6]

/** Clocks of two machines may differ by more than the latency; what seems negative counts as none. */
function add(histogram: Histogram, seconds: number, events: number): void {
  const value = Number.isFinite(seconds) ? Math.max(0, seconds) : 0
  let bucket = 0
  while (bucket < LATENCY_BOUNDS_SECONDS.length && value > LATENCY_BOUNDS_SECONDS[bucket]!) bucket++
  histogram.counts[bucket]! += events
  histogram.sum += value * events
  histogram.count += events
  if (value < histogram.min) histogram.min = value
  if (value > histogram.max) histogram.max = value
}

const describe =
  (name: string, description: string, { counts, sum, min, max, count }: Histogram) =>
  (startTime: HrTime, endTime: HrTime): HistogramMetricData => ({
    descriptor: { name, description, unit: 's', valueType: ValueType.DOUBLE },
    aggregationTemporality: AggregationTemporality.CUMULATIVE,
    dataPointType: DataPointType.HISTOGRAM,
    dataPoints: [
      {
        startTime,
        endTime,
        attributes: {},
        value: {
          buckets: { boundaries: [...LATENCY_BOUNDS_SECONDS], counts: [...counts] },
          sum,
          count,
          min: count === 0 ? undefined : min,
          max: count === 0 ? undefined : max,
        },
      },
    ],
  })
