/** API and workers of a test in its own process, over the servers it owns. */

import pino from 'pino'
import { ensureStream } from '../src/broker/streams.ts'
import type { Config } from '../src/config.ts'
import { startJobs } from '../src/db/jobs.ts'
import { startApi } from '../src/ingest/api.ts'
import { consume } from '../src/ingest/consume.ts'
import { createPublisher } from '../src/ingest/publish.ts'
import { startTelemetry } from '../src/telemetry/telemetry.ts'
import { workflowRoutes } from '../src/workflow/api.ts'
import type { Workflow } from '../src/workflow/define.ts'
import { startEngine } from '../src/workflow/engine.ts'
import { queueRoutes } from '../src/workflow/queue-routes.ts'
import { scheduleRoutes } from '../src/workflow/schedule-routes.ts'
import type { Servers } from './servers.ts'

/** Starts both over `servers`, with `over` in place of its configuration. */
export async function startService(servers: Servers, over: Partial<Config> = {}, workflows: Workflow[] = []) {
  const config = { ...servers.config, ...over }
  const { db, broker } = servers
  const log = pino({ level: config.LOG_LEVEL })
  const telemetry = await startTelemetry({ log }, config, 'millrace-test')
  await ensureStream(broker, config)
  const publisher = createPublisher({ broker, telemetry }, config)
  const jobs = await startJobs(config.DATABASE_URL)
  const engine = await startEngine(
    {
      database: servers.database,
      databaseUrl: config.DATABASE_URL,
      broker,
      jobs,
      telemetry,
      onError: (error, doing) => log.warn({ error }, doing),
    },
    { workflows },
  )
  const server = await startApi({ db, broker, jobs, publisher, log, telemetry }, config, [
    workflowRoutes(engine, config),
    queueRoutes(engine, config),
    scheduleRoutes(engine, config),
  ])
  const stopping = new AbortController()
  const working = consume({ db, broker, jobs, log, telemetry }, config, stopping.signal)
  const url = `http://127.0.0.1:${server.port}`
  return {
    url,
    jobs,
    telemetry,
    engine,
    /** Posts JSON, and says what was answered. */
    post: async (body: unknown, headers: Record<string, string> = {}) => {
      const response = await fetch(`${url}/v1/events`, {
        method: 'POST',
        headers: { 'content-type': 'application/json', ...headers },
        body: JSON.stringify(body),
      })
      return { status: response.status, headers: response.headers, body: await response.json() }
    },
    get: async (path: string, headers: Record<string, string> = {}) => {
      const response = await fetch(`${url}${path}`, { headers })
      const text = await response.text()
      const json = response.headers.get('content-type')?.includes('json')
      return { status: response.status, body: json ? JSON.parse(text) : text }
    },
    /** Any request with this key, with the body as JSON. */
    ask: async (key: string | undefined, method: string, path: string, body?: unknown) => {
      const response = await fetch(`${url}${path}`, {
        method,
        headers: {
          ...(key === undefined ? {} : { authorization: `Bearer ${key}` }),
          ...(body === undefined ? {} : { 'content-type': 'application/json' }),
        },
        ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      })
      const text = await response.text()
      const json = response.headers.get('content-type')?.includes('json')
      return { status: response.status, headers: response.headers, body: json ? JSON.parse(text) : text }
    },
    stop: async () => {
      stopping.abort()
      await working
      await Promise.all([server.close(), engine.stop()])
      await jobs.stop()
      await publisher.drain()
      await telemetry.stop()
    },
  }
}

/** Asks until it is so; the runner's time limit is the only one. */
export async function until<T>(ask: () => Promise<T | undefined | false> | T | undefined | false): Promise<T> {
  for (;;) {
    const answer = await ask()
    if (answer !== undefined && answer !== false) return answer
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
}
