import { execFileSync, spawnSync } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { loadConfig } from '../../src/config.ts'
import { startMetrics } from '../../src/telemetry/metrics.ts'
import { createPool } from '../../src/telemetry/pool.ts'
import { jaegerIsBuilt } from './jaeger.ts'

const root = fileURLToPath(new URL('../..', import.meta.url))
const read = (path: string) => readFileSync(`${root}${path}`, 'utf8')

/** Every metric there is, from a process in which everything happened once. */
async function exposed(): Promise<Set<string>> {
  const metrics = await startMetrics(loadConfig({}), 'millrace-test')
  metrics.requestAnswered('POST', '/v1/events', 202, 0.1)
  metrics.eventsAccepted(1)
  metrics.eventRejected('invalid_event')
  metrics.batchPublished(1, 0.1)
  metrics.publishFailed('unavailable')
  metrics.redelivered(1)
  metrics.batchCommitted({ inserted: 1, duplicates: 1, fillMs: 1, insertMs: 1 })
  metrics.eventCommitted(0, 1, 2)
  metrics.batchFailed('57P03')
  metrics.deadLettered('22P05')
  metrics.suspected(true)
  metrics.observeQueue(async () => ({ depth: 1, lagSeconds: 1, unacknowledged: 1 }))
  const pool = createPool(1, 60_000)
  pool.started(0)
  metrics.observePool(pool.report)
  const text = await metrics.render()
  await metrics.stop()
  return new Set([...text.matchAll(/^([a-z_]+)(?:\{| )/gm)].map(([, name]) => name!))
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

if (!jaegerIsBuilt()) console.log('skipped: there is no Jaeger, whose collector checks the configuration')
else
  test('a collector accepts its configuration', () => {
    execFileSync(`${root}.venv/bin/jaeger`, ['validate', '--config', `${root}otel/collector.yaml`])
  })

test.run()
