/** A real Jaeger that a test owns, on free ports, with its spans in memory. */

import { spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import { setTimeout as pause } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { freePort } from '../../src/embedded/port.ts'
import { stopChild } from '../../src/embedded/postgres.ts'

/** Where `make test` builds it, on a machine that has Go. */
const BINARY = fileURLToPath(new URL('../../.venv/bin/jaeger', import.meta.url))
const SETTINGS = fileURLToPath(new URL('../../otel/jaeger.yaml', import.meta.url))

export const jaegerIsBuilt = (): boolean => existsSync(BINARY)

export async function startJaeger() {
  const [otlp, query, queryGrpc, health] = await Promise.all([freePort(), freePort(), freePort(), freePort()])
  const child = spawn(BINARY, ['--config', SETTINGS], {
    stdio: ['ignore', 'ignore', 'pipe'],
    env: {
      ...process.env,
      JAEGER_OTLP_PORT: String(otlp),
      JAEGER_QUERY_PORT: String(query),
      JAEGER_QUERY_GRPC_PORT: String(queryGrpc),
      JAEGER_HEALTH_PORT: String(health),
    },
  })
  let lastWords = ''
  child.stderr.on('data', (chunk) => {
    lastWords = (lastWords + chunk).slice(-4_000)
  })
  process.once('exit', () => child.kill('SIGKILL'))
  const deadline = Date.now() + 60_000
  for (;;) {
    if (child.exitCode !== null || Date.now() > deadline) throw new Error(`Jaeger did not start: ${lastWords}`)
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
