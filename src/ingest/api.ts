/** The HTTP API of ingestion. */

import type { Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import { Router } from '@koa/router'
import Koa from 'koa'
import type { Broker } from '../broker/connect.ts'
import { readQueue } from '../broker/queue.ts'
import type { Config } from '../config.ts'
import type { Database } from '../db/connect.ts'
import { describe, MillraceError } from '../errors.ts'
import { observeRequests, serveMetrics, type TracedState } from '../telemetry/http.ts'
import type { Telemetry } from '../telemetry/telemetry.ts'
import { type RequestTrace, startSend } from '../telemetry/tracing.ts'
import type { OutgoingEvent } from './event.ts'
import type { Log } from './log.ts'
import type { Publisher } from './publish.ts'
import { BATCH_MESSAGES_MAX } from './publish.ts'
import type { ReadinessDeps } from './readiness.ts'
import { probeRoutes, statusRoutes } from './status.ts'
import { type Rejection, validateEvent } from './validate.ts'

export type ApiDeps = { db: Database; broker: Broker; publisher: Publisher; log: Log; telemetry: Telemetry }

const STATUS: Partial<Record<MillraceError['code'], number>> = {
  invalid_request: 400,
  invalid_event: 400,
  not_found: 404,
  conflict: 409,
  too_large: 413,
  unsupported_media_type: 415,
  unavailable: 503,
  overloaded: 503,
}

/** Builds the Koa application. */
export function createApi(deps: ApiDeps, config: Config): Koa<TracedState> {
  const { metrics } = deps.telemetry
  const app = new Koa<TracedState>()
  const router = new Router<TracedState>()

  metrics.observeQueue(() => readQueue(deps.broker))
  app.use(observeRequests(deps.telemetry))
  app.use(serveMetrics(deps.telemetry))

  app.use(async (ctx, next) => {
    try {
      await next()
    } catch (error) {
      const status = error instanceof MillraceError ? (STATUS[error.code] ?? 500) : 500
      if (status === 500) deps.log.error({ error: describe(error), path: ctx.path }, 'request failed')
      if (status === 503) ctx.set('Retry-After', '1')
      ctx.status = status
      ctx.body = {
        error: error instanceof MillraceError ? error.code : 'internal',
        message: status === 500 ? 'internal error' : (error as Error).message,
        ...(error instanceof MillraceError ? error.details : {}),
      }
    }
  })

  router.post('/v1/events', async (ctx) => {
    const receivedMs = Date.now()
    const chunks: Buffer[] = []
    let bytes = 0
    for await (const chunk of ctx.req) {
      bytes += chunk.length
      if (bytes > config.JSON_BYTES_MAX)
        throw new MillraceError('too_large', `A JSON body holds at most ${config.JSON_BYTES_MAX} bytes`)
      chunks.push(chunk)
    }
    let body: unknown
    try {
      body = JSON.parse(Buffer.concat(chunks).toString())
    } catch (error) {
      throw new MillraceError('invalid_request', `The body is not JSON: ${(error as Error).message}`)
    }
    const inputs = Array.isArray(body) ? body : [body]
    const events: OutgoingEvent[] = []
    const outcomes: ({ status: 'accepted'; id: string } | Rejection)[] = inputs.map((input) => {
      const event = validateEvent(input, { receivedMs, traceparent: '', commitReply: '' })
      if ('status' in event) {
        metrics.eventRejected(event.code)
        return event
      }
      events.push(event)
      return { status: 'accepted', id: event.id }
    })
    const parts: OutgoingEvent[][] = []
    for (let i = 0; i < events.length; i += BATCH_MESSAGES_MAX) parts.push(events.slice(i, i + BATCH_MESSAGES_MAX))
    await Promise.all(parts.map((part) => publishPart(deps, ctx.state.trace, part)))
    ctx.status = events.length > 0 ? 202 : 400
    ctx.body = { accepted: events.length, rejected: inputs.length - events.length, events: outcomes }
  })

  app.use(probeRoutes(deps, 'api').routes()).use(statusRoutes(deps).routes())
  app.use(router.routes()).use(router.allowedMethods())
  return app
}

/** Publishes a request's events, or a part of them, under one PRODUCER span that each of them carries along. */
async function publishPart(
  { publisher, telemetry: { metrics, tracing } }: ApiDeps,
  request: RequestTrace,
  events: OutgoingEvent[],
): Promise<void> {
  const send = startSend(tracing, request, events.length)
  for (const event of events) event.traceparent = send.traceparent()
  try {
    await publisher.publish(events)
    metrics.eventsAccepted(events.length)
    send.end()
  } catch (error) {
    send.end(error)
    throw error
  }
}

/** What a worker process serves to those who watch it: `/healthz`, `/readyz` and `/metrics`. */
export function createWorkerApp(deps: ReadinessDeps): Koa {
  const app = new Koa()
  deps.telemetry.metrics.observeQueue(() => readQueue(deps.broker))
  app.use(serveMetrics(deps.telemetry)).use(probeRoutes(deps, 'worker').routes())
  return app
}

/** Listens on HOST:PORT; `close` lets requests in progress finish. */
export async function listen(app: Pick<Koa, 'listen'>, config: Pick<Config, 'HOST' | 'PORT'>) {
  const server: Server = await new Promise((resolve, reject) => {
    const started = app.listen(config.PORT, config.HOST, () => resolve(started))
    started.once('error', reject)
  })
  const { port } = server.address() as AddressInfo
  return {
    port,
    close: () =>
      new Promise<void>((resolve) => {
        server.close(() => resolve())
        server.closeIdleConnections()
      }),
  }
}
