/** A real Jaeger that a test owns, on free ports, with its spans in memory. */

import { spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import { setTimeout as pause } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { freePort } from '../../src/embedded/port.ts'
import { stopChild } from '../../src/embedded/postgres.ts'

/** Where `make test` builds it, on a machine that has Go. */
const BINARY = fileURLToPath(new URL('../../.venv/bin/jaeger', import.meta.url))
const settings = (name: string) => fileURLToPath(new URL(`../../otel/${name}`, import.meta.url))

export const jaegerIsBuilt = (): boolean => existsSync(BINARY)

export async function startJaeger() {
  const [otlp, query, queryGrpc, health] = await Promise.all([freePort(), freePort(), freePort(), freePort()])
  const { child, lastWords } = run('jaeger.yaml', {
    JAEGER_OTLP_PORT: otlp,
    JAEGER_QUERY_PORT: query,
    JAEGER_QUERY_GRPC_PORT: queryGrpc,
    JAEGER_HEALTH_PORT: health,
  })
  const deadline = Date.now() + 60_000
  for (;;) {
    if (child.exitCode !== null || Date.now() > deadline) throw new Error(`Jaeger did not start: ${lastWords()}`)
    const answer = await fetch(`http://127.0.0.1:${health}/status`).catch(() => undefined)
    if (answer?.ok && (await fetch(`http://127.0.0.1:${query}/api/services`).catch(() => undefined))?.ok) break
    await pause(50)
  }
  return {
    otlpUrl: `http://127.0.0.1:${otlp}`,
    queryUrl: `http://127.0.0.1:${query}`,
    // It keeps everything in memory, and would wait for idle connections.
    stop: () => stopChild(child, 'SIGKILL'),
  }
}

/** The collector that Jaeger is built on, with otel/collector.yaml, between Millrace and `jaegerUrl`. */
export async function startCollector(jaegerUrl: string) {
  const [otlp, prometheus] = await Promise.all([freePort(), freePort()])
  const { child, lastWords } = run('collector.yaml', {
    COLLECTOR_HOST: '127.0.0.1',
    COLLECTOR_OTLP_PORT: otlp,
    COLLECTOR_PROMETHEUS_PORT: prometheus,
    JAEGER_OTLP_URL: jaegerUrl,
  })
  const metricsUrl = `http://127.0.0.1:${prometheus}/metrics`
  const deadline = Date.now() + 60_000
  while (!(await fetch(metricsUrl).catch(() => undefined))?.ok) {
    if (child.exitCode !== null || Date.now() > deadline) throw new Error(`no collector started: ${lastWords()}`)
    await pause(50)
  }
  return { otlpUrl: `http://127.0.0.1:${otlp}`, metricsUrl, stop: () => stopChild(child, 'SIGKILL') }
}

function run(file: string, env: Record<string, string | number>) {
  const child = spawn(BINARY, ['--config', settings(file)], {
    stdio: ['ignore', 'ignore', 'pipe'],
    env: { ...process.env, ...Object.fromEntries(Object.entries(env).map(([name, value]) => [name, String(value)])) },
  })
  let said = ''
  child.stderr.on('data', (chunk) => {
    said = (said + chunk).slice(-4_000)
  })
  process.once('exit', () => child.kill('SIGKILL'))
  return { child, lastWords: () => said }
}
