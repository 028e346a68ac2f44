/** The HTTP API of ingestion: which routes there are, and what stands around them. */

import Koa from 'koa'
import type { PgBoss } from 'pg-boss'
import { auditRoutes } from '../access/audit-routes.ts'
import { guardRoutes } from '../access/guard.ts'
import { keyRoutes } from '../access/key-routes.ts'
import { openKeyring } from '../access/keyring.ts'
import type { Broker } from '../broker/connect.ts'
import { readQueue } from '../broker/queue.ts'
import type { Config } from '../config.ts'
import type { Database } from '../db/connect.ts'
import { describe } from '../errors.ts'
import type { RequestState } from '../http/caller.ts'
import { answerErrors } from '../http/errors.ts'
import { openapiRoutes } from '../http/openapi.ts'
import type { Routes } from '../http/routes.ts'
import { type Door, openDoor } from '../http/server.ts'
import { observeRequests } from '../telemetry/http.ts'
import type { Telemetry } from '../telemetry/telemetry.ts'
import { createCommitWait } from './commit-wait.ts'
import { deadLetterRoutes } from './dead-letter-routes.ts'
import { createDepth } from './depth.ts'
import { eventReadRoutes } from './event-read.ts'
import type { Log } from './log.ts'
import { postEventsRoutes } from './post-events.ts'
import type { Publisher } from './publish.ts'
import type { ReadinessDeps } from './readiness.ts'
import { schemaRoutes } from './schema-routes.ts'
import { openSchemas } from './schemas.ts'
import { metricsRoutes, probeRoutes, statusRoutes } from './status.ts'

export type ApiDeps = {
  db: Database
  broker: Broker
  jobs: PgBoss
  publisher: Publisher
  log: Log
  telemetry: Telemetry
}

/** nats-server counts them as part of a message: identity within KEY_BYTES_MAX of validate.ts, trace, batch. */
const HEADERS_BYTES_MAX = 4_096

/**
 * Starts everything the API needs and listens on HOST:PORT.
 * @param more  routes of other parts, such as the workflows'
 * @param door  to answer at in place of HOST:PORT
 * @returns the port, and `close`, which lets requests in progress finish
 */
export async function startApi(deps: ApiDeps, given: Config, more: Routes[] = [], door?: Door) {
  const { db, broker, publisher, log, telemetry } = deps
  const config = { ...given, EVENT_BYTES_MAX: Math.min(given.EVENT_BYTES_MAX, eventBytesMaxOf(broker)) }
  if (config.EVENT_BYTES_MAX < given.EVENT_BYTES_MAX)
    log.warn({ bytes: config.EVENT_BYTES_MAX }, 'max_payload of nats-server allows smaller events than EVENT_BYTES_MAX')
  const keyring = await openKeyring(deps, config)
  const schemas = await openSchemas({ db, broker, log }, config)
  const commits = createCommitWait({ db, broker, log }, config)
  const depth = createDepth({ broker, publisher }, config)

  const app = new Koa<RequestState>()
  // Koa would print it: an answer that could not be sent, mostly because the client has gone.
  app.on('error', (error) => log.warn({ error: describe(error) }, 'an answer was not delivered'))
  telemetry.metrics.observeQueue(() => readQueue(broker))
  app.use(observeRequests(telemetry)).use(answerErrors({ log }))
  const parts = [
    postEventsRoutes({ ...deps, schemas, commits, depth }, config),
    eventReadRoutes({ db }),
    schemaRoutes({ db, schemas }, config),
    statusRoutes(deps),
    probeRoutes(deps, 'api'),
    metricsRoutes(deps),
    keyRoutes(deps, config),
    auditRoutes(deps),
    deadLetterRoutes({ ...deps, schemas }, config),
    ...more,
  ]
  const routes = guardRoutes(parts, keyring, config)
  for (const { router } of [...routes, openapiRoutes(routes)]) app.use(router.routes()).use(router.allowedMethods())

  door?.serve(app)
  const server = door ?? (await openDoor(app, config))
  const close = async () => {
    // Those who wait for a commit are told what is known by now.
    commits.close()
    await server.close()
    depth.close()
    schemas.close()
    keyring?.close()
  }
  return { port: server.port, close }
}

/** A larger message would cost the connection. */
const eventBytesMaxOf = ({ nc }: Broker): number => (nc.info?.max_payload ?? 1024 * 1024) - HEADERS_BYTES_MAX

/** What a worker process serves to those who watch it: `/healthz`, `/readyz` and `/metrics`. */
export async function serveWorkerProbes(deps: ReadinessDeps & { log: Log }, config: Config, door: Door) {
  const app = new Koa<RequestState>()
  const keyring = await openKeyring(deps, config)
  deps.telemetry.metrics.observeQueue(() => readQueue(deps.broker))
  app.use(answerErrors(deps))
  for (const { router } of guardRoutes([probeRoutes(deps, 'worker'), metricsRoutes(deps)], keyring, config))
    app.use(router.routes())
  door.serve(app)
  return { close: () => keyring?.close() }
}
