import { spawnSync } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { loadConfig } from '../../src/config.ts'
import { fetchSpans } from '../../src/telemetry/jaeger.ts'
import { type Metrics, startMetrics } from '../../src/telemetry/metrics.ts'
import { createPool } from '../../src/telemetry/pool.ts'
import { startTelemetry } from '../../src/telemetry/telemetry.ts'
import { endRequest, startRequest } from '../../src/telemetry/tracing.ts'
import { until } from '../service.ts'
import { jaegerIsBuilt, startCollector, startJaeger } from './jaeger.ts'

const root = fileURLToPath(new URL('../..', import.meta.url))
const read = (path: string) => readFileSync(`${root}${path}`, 'utf8')

/** Lets everything happen once that is counted or measured. */
function exercise(metrics: Metrics): void {
  metrics.requestAnswered('POST', '/v1/events', 202, 0.1)
  metrics.eventsAccepted(1)
  metrics.eventRejected('invalid_event')
  metrics.batchPublished(1, 0.1)
  metrics.publishFailed('unavailable')
  metrics.redelivered(1)
  metrics.batchCommitted({ inserted: 1, duplicates: 1, fillMs: 1, insertMs: 1 })
  metrics.eventsCommitted(0, 1, 2, 1)
  metrics.batchFailed('57P03')
  metrics.deadLettered('22P05')
  metrics.suspected(true)
  metrics.observeGrowth(async () => {
    return { eventBytes: 1, identityBytes: 1, partitions: 1, oldestSeconds: 1, aheadSeconds: 1, strays: 0 }
  })
  metrics.observeQueue(async () => ({ depth: 1, lagSeconds: 1, unacknowledged: 1 }))
  const pool = createPool(1, 60_000)
  pool.started(0)
  metrics.observePool(pool.report)
}

const namesOf = (exposition: string) =>
  new Set([...exposition.matchAll(/^([a-z_]+)(?:\{| )/gm)].map(([, name]) => name!))

/** Every metric there is. */
async function exposed(): Promise<Set<string>> {
  const metrics = await startMetrics(loadConfig({}), 'millrace-test')
  exercise(metrics)
  const text = await metrics.render()
  await metrics.stop()
  return namesOf(text)
}

const names = (text: string) => new Set(text.match(/\b(?:millrace|process|nodejs|http_server)_[a-z_]+\b/g) ?? [])

test('alerts and dashboard ask only for metrics that there are', async () => {
  const there = await exposed()
  const dashboard = JSON.parse(read('otel/dashboard.json'))
  const asked = dashboard.panels.flatMap((panel: { targets?: { expr: string }[] }) => panel.targets ?? [])
  assert.ok(asked.length > 30)
  for (const { expr } of asked) for (const name of names(expr)) assert.ok(there.has(name), `dashboard: ${name}`)
  const rules = [...read('otel/alerts.yaml').matchAll(/expr:([\s\S]*?)(?:for|labels):/g)]
  assert.ok(rules.length > 15)
  for (const [, expr] of rules) for (const name of names(expr!)) assert.ok(there.has(name), `alerts: ${name}`)
})

test('the manual names every metric, and nothing that there is not', async () => {
  const there = await exposed()
  const manual = read('docs/operations.md')
  for (const name of there)
    if (name.startsWith('millrace_'))
      assert.ok(names(manual).has(name.replace(/_(bucket|sum|count)$/, '')) || names(manual).has(name), name)
  const bases = new Set([...there].map((name) => name.replace(/_(bucket|sum|count)$/, '')))
  for (const name of names(manual)) assert.ok(there.has(name) || bases.has(name), `docs/operations.md: ${name}`)
})

test('every alert has its section in the manual', () => {
  const anchors = new Set(
    [...read('docs/operations.md').matchAll(/^#+ (.*)$/gm)].map(([, title]) =>
      title!
        .toLowerCase()
        .replace(/[^a-z0-9 -]/g, '')
        .replaceAll(' ', '-'),
    ),
  )
  const runbooks = [...read('otel/alerts.yaml').matchAll(/runbook: docs\/operations\.md#(.*)/g)].map(([, to]) => to!)
  assert.ok(runbooks.length > 15)
  for (const anchor of runbooks) assert.ok(anchors.has(anchor), anchor)
})

/** From Debian's package `prometheus`; `make test` gets it where apt can. */
const promtool = [`${root}.venv/bin/promtool`, '/usr/bin/promtool', '/usr/local/bin/promtool'].find(existsSync)
if (promtool === undefined) console.log('skipped: there is no promtool to check the alerts with')
else
  test('promtool accepts the rules, and each fault of the scenarios raises its alert', () => {
    const run = (...args: string[]) => {
      const { status, stdout, stderr } = spawnSync(promtool, args, { cwd: `${root}otel`, encoding: 'utf8' })
      assert.is(status, 0, `${stdout}${stderr}`)
    }
    run('check', 'config', 'prometheus.yaml')
    run('test', 'rules', 'alerts.test.yaml')
  })

if (!jaegerIsBuilt()) console.log('skipped: there is no Jaeger, which carries a collector')
else
  test('traces and metrics reach Jaeger and Prometheus by way of a collector', async () => {
    const jaeger = await startJaeger()
    const collector = await startCollector(jaeger.otlpUrl)
    const config = loadConfig({
      OTEL_EXPORTER_OTLP_ENDPOINT: collector.otlpUrl,
      OTEL_EXPORTER_OTLP_METRICS_ENDPOINT: `${collector.otlpUrl}/v1/metrics`,
      OTEL_TRACES_SAMPLER_ARG: '1',
    })
    const warnings: object[] = []
    const telemetry = await startTelemetry({ log: { warn: (facts) => warnings.push(facts) } }, config, 'millrace-test')
    const request = startRequest(telemetry.tracing, { method: 'GET', path: '/x', traceparent: undefined })
    endRequest(request, { method: 'GET', route: '/x', status: 500 })
    exercise(telemetry.metrics)
    await telemetry.stop()
    assert.equal(warnings, [])
    const [span] = await until(async () => {
      const spans = await fetchSpans(jaeger.queryUrl, request.context.traceId)
      return spans.length === 1 && spans
    })
    assert.is(span!.name, 'GET /x')
    assert.is(span!.tags.get('error.type'), '500')
    const text = await until(async () => {
      const scraped = await (await fetch(collector.metricsUrl)).text()
      return scraped.includes('millrace_queue_latency_seconds_bucket') && scraped
    })
    const arrived = namesOf(text)
    for (const name of await exposed()) assert.ok(arrived.has(name), name)
    assert.match(text, /^millrace_events_accepted_total\{.*service_name="millrace-test".*\} 1$/m)
    assert.match(text, /^millrace_queue_latency_seconds_bucket\{.*le="0.001"\} 1$/m)
    await collector.stop()
    await jaeger.stop()
  })

test.run()
