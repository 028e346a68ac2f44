/**
 * What Millrace counts and measures, once, for every reader: `/metrics` in Prometheus text on each API and worker
 * process, and OTLP where OTEL_EXPORTER_OTLP_METRICS_ENDPOINT is set. Labels are few and bounded: no type, source, tenant
 * or worker id. The pipeline calls one function per thing that happened; docs/operations.md says what each metric tells.
 */

import { PrometheusExporter, PrometheusSerializer } from '@opentelemetry/exporter-prometheus'
import { type IMetricReader, MeterProvider, PeriodicExportingMetricReader } from '@opentelemetry/sdk-metrics'
import type { QueueState } from '../broker/queue.ts'
import type { Config } from '../config.ts'
import type { Growth } from '../db/growth.ts'

import { createLatencyHistograms } from './latency.ts'
import type { PoolReport } from './pool.ts'
import { observeProcess } from './process.ts'
import { EXPORT_MS_MAX, identify } from './resource.ts'

const OTLP_INTERVAL_MS = 10_000

/** Upper bounds in seconds of what one step takes: a publish, an insert, a request. */
const STEP_SECONDS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30]
const EVENT_COUNTS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000]

export type Metrics = Awaited<ReturnType<typeof startMetrics>>

/** Starts counting for one process; `service` is `millrace-api`, `millrace-worker` or `millrace-dev`. */
export async function startMetrics(config: Pick<Config, 'OTEL_EXPORTER_OTLP_METRICS_ENDPOINT'>, service: string) {
  const latency = createLatencyHistograms()
  const prometheus = new PrometheusExporter({ preventServerStart: true, metricProducers: [latency.producer] })
  const readers: IMetricReader[] = [prometheus]
  if (config.OTEL_EXPORTER_OTLP_METRICS_ENDPOINT !== '') {
    const { OTLPMetricExporter } = await import('@opentelemetry/exporter-metrics-otlp-proto')
    readers.push(
      new PeriodicExportingMetricReader({
        exporter: new OTLPMetricExporter({
          url: config.OTEL_EXPORTER_OTLP_METRICS_ENDPOINT,
          timeoutMillis: EXPORT_MS_MAX,
        }),
        exportIntervalMillis: OTLP_INTERVAL_MS,
        exportTimeoutMillis: OTLP_INTERVAL_MS,
        metricProducers: [latency.producer],
      }),
    )
  }
  const provider = new MeterProvider({ resource: await identify(service), readers })
  const meter = provider.getMeter('millrace')
  const counter = (name: string, description: string) => meter.createCounter(`millrace_${name}`, { description })
  const histogram = (name: string, description: string, explicitBucketBoundaries: number[], unit = '') =>
    meter.createHistogram(name, { description, unit, advice: { explicitBucketBoundaries } })
  const gauge = (name: string, description: string, unit = '') =>
    meter.createObservableGauge(`millrace_${name}`, { description, unit })

  const requests = histogram('http_server_request_duration_seconds', 'HTTP requests answered', STEP_SECONDS, 's')
  const accepted = counter('events_accepted', 'Events answered with accepted: they are on disk in JetStream')
  const rejected = counter('events_rejected', 'Events refused, by code')
  const publishes = counter('publish_batches', 'Flights to JetStream, by outcome: what is published at once')
  const publishSize = histogram('millrace_publish_batch_events', 'Events per flight', EVENT_COUNTS)
  const publishTime = histogram('millrace_publish_seconds', 'Time until JetStream stored a flight', STEP_SECONDS, 's')
  const redeliveries = counter('redeliveries', 'Events delivered to a worker more than once')
  const batches = counter('batches', 'Batches of the workers, by outcome')
  const batchSize = histogram('millrace_batch_events', 'Events per committed batch', EVENT_COUNTS)
  const fillTime = histogram('millrace_batch_fill_seconds', 'Time a batch gathered events', STEP_SECONDS, 's')
  const insertTime = histogram('millrace_insert_seconds', 'Time from BEGIN to COMMIT', STEP_SECONDS, 's')
  const committed = counter('events_committed', 'Events whose row was inserted')
  const duplicates = counter('events_duplicate', 'Events that were stored before and changed nothing')
  const deadLetters = counter('dead_letters', 'Events set aside, by SQLSTATE or code')
  const suspicion = meter.createGauge('millrace_system_suspected', {
    description: '1 while most events are refused, so that dead letters are held back',
  })
  const runsEnded = counter('workflow_runs_ended', 'Workflow runs that ended, by status')
  const steps = counter('workflow_step_attempts', 'Attempts of workflow steps, by outcome')
  const scheduleToStart = histogram(
    'millrace_workflow_schedule_to_start_seconds',
    'Time from when a run was due to start or wake until a worker had it',
    STEP_SECONDS,
    's',
  )
  const leasesLost = counter(
    'workflow_leases_lost',
    'Runs this process dropped because their lease was gone, or could not be renewed in time',
  )
  observeProcess(provider.getMeter('process'))

  return {
    requestAnswered: (method: string, route: string, status: number, seconds: number) =>
      requests.record(seconds, {
        'http.request.method': method,
        'http.route': route,
        'http.response.status_code': String(status),
      }),
    eventsAccepted: (count: number) => accepted.add(count),
    eventRejected: (code: string) => rejected.add(1, { code }),
    batchPublished: (size: number, seconds: number) => {
      publishes.add(1, { outcome: 'stored' })
      publishSize.record(size)
      publishTime.record(seconds)
    },
    publishFailed: (code: string) => publishes.add(1, { outcome: code }),
    redelivered: (count: number) => redeliveries.add(count),
    /** After COMMIT, beside one call of `eventsCommitted` for each message. */
    batchCommitted: (batch: { inserted: number; duplicates: number; fillMs: number; insertMs: number }) => {
      batches.add(1, { outcome: 'committed' })
      batchSize.record(batch.inserted + batch.duplicates)
      fillTime.record(batch.fillMs / 1_000)
      insertTime.record(batch.insertMs / 1_000)
      committed.add(batch.inserted)
      duplicates.add(batch.duplicates)
    },
    eventsCommitted: latency.record,
    /** A batch that Postgres did not take, by class of SQLSTATE: `08`, `53`, `57`, `40` ... */
    batchFailed: (sqlstate: string) => batches.add(1, { outcome: `failed_${sqlstate.slice(0, 2)}` }),
    deadLettered: (cause: string) => deadLetters.add(1, { cause }),
    suspected: (yes: boolean) => suspicion.record(yes ? 1 : 0),

    runEnded: (status: string) => runsEnded.add(1, { status }),
    stepAttempted: (outcome: 'completed' | 'failed') => steps.add(1, { outcome }),
    runBegun: (waitedSeconds: number) => scheduleToStart.record(waitedSeconds),
    leaseLost: (runs: number) => leasesLost.add(runs),
    observeRuns: (read: () => number) => {
      const runs = gauge('workflow_runs_in_memory', 'Workflow runs this process has in memory')
      runs.addCallback((result) => result.observe(read()))
    },

    /** Reads the queue at each collection; a queue that cannot be read is no sample, not a zero. */
    observeQueue: (read: () => Promise<QueueState>) => {
      const depth = gauge(
        'queue_depth',
        'Messages stored and not yet committed; one holds the events of a request that share a type',
      )
      const lag = gauge('queue_lag_seconds', 'Age of the oldest message not yet committed', 's')
      const unacknowledged = gauge('queue_unacknowledged', 'Messages in the hands of workers')
      meter.addBatchObservableCallback(
        async (result) => {
          const state = await read()
          result.observe(depth, state.depth)
          result.observe(lag, state.lagSeconds)
          result.observe(unacknowledged, state.unacknowledged)
        },
        [depth, lag, unacknowledged],
      )
    },
    /** What is stored, the same in every process. Reads sizes, no rows. */
    observeGrowth: (read: () => Promise<Growth>) => {
      const events = gauge('events_bytes', 'Size of all partitions of events with their indexes', 'By')
      const identities = gauge('event_identities_bytes', 'Size of the identities, which are kept for ever', 'By')
      const partitions = gauge('event_partitions', 'Partitions of events')
      const oldest = gauge('event_partition_oldest_seconds', 'Age of the oldest partition', 's')
      const ahead = gauge('event_partition_ahead_seconds', 'Until the end of the newest partition', 's')
      const strays = gauge('events_without_partition', 'Rows in the default partition, to be moved')
      meter.addBatchObservableCallback(
        async (result) => {
          const growth = await read()
          result.observe(events, growth.eventBytes)
          result.observe(identities, growth.identityBytes)
          result.observe(partitions, growth.partitions)
          if (growth.oldestSeconds !== null) result.observe(oldest, growth.oldestSeconds)
          result.observe(ahead, growth.aheadSeconds)
          result.observe(strays, growth.strays)
        },
        [events, identities, partitions, oldest, ahead, strays],
      )
    },
    observePool: (read: () => PoolReport) => {
      const target = gauge('batch_target_events', 'Events the next batch may hold')
      const linger = gauge('batch_linger_seconds', 'How long the next batch may gather', 's')
      const workers = gauge('workers', 'Pull workers of this process by state')
      const restarts = meter.createObservableCounter('millrace_worker_restarts', {
        description: 'Workers that died and were started again',
      })
      meter.addBatchObservableCallback(
        (result) => {
          const { batchSize, lingerMs, workers: reports } = read()
          if (reports.every((report) => report.state === 'ended')) return
          result.observe(target, batchSize)
          result.observe(linger, lingerMs / 1_000)
          result.observe(
            restarts,
            reports.reduce((sum, report) => sum + report.restarts, 0),
          )
          const counts = { pulling: 0, holding: 0, draining: 0, dead: 0, ended: 0, stuck: 0 }
          for (const report of reports) counts[report.stuck ? 'stuck' : report.state]++
          for (const [state, count] of Object.entries(counts)) result.observe(workers, count, { state })
        },
        [target, linger, workers, restarts],
      )
    },

    /** All of it in the Prometheus text format. */
    render: async (): Promise<string> => {
      const { resourceMetrics } = await prometheus.collect()
      return new PrometheusSerializer('', false, undefined, false, true).serialize(resourceMetrics)
    },
    stop: () => provider.shutdown(),
  }
}
