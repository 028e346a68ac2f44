/** The HTTP API of ingestion: which routes there are, and what stands around them. */

import Koa from 'koa'
import type { Broker } from '../broker/connect.ts'
import { readQueue } from '../broker/queue.ts'
import type { Config } from '../config.ts'
import type { Database } from '../db/connect.ts'
import { answerErrors } from '../http/errors.ts'
import { openapiRoutes } from '../http/openapi.ts'
import type { Routes } from '../http/routes.ts'
import { listen } from '../http/server.ts'
import { observeRequests, serveMetrics, type TracedState } from '../telemetry/http.ts'
import type { Telemetry } from '../telemetry/telemetry.ts'
import { createCommitWait } from './commit-wait.ts'
import { createDepth } from './depth.ts'
import { eventReadRoutes } from './event-read.ts'
import type { Log } from './log.ts'
import { postEventsRoutes } from './post-events.ts'
import type { Publisher } from './publish.ts'
import type { ReadinessDeps } from './readiness.ts'
import { schemaRoutes } from './schema-routes.ts'
import { openSchemas } from './schemas.ts'
import { probeRoutes, statusRoutes } from './status.ts'

export type ApiDeps = { db: Database; broker: Broker; publisher: Publisher; log: Log; telemetry: Telemetry }

/**
 * Starts everything the API needs and listens on HOST:PORT.
 * @param more  routes of other parts, such as the workflows'
 * @returns the port, and `close`, which lets requests in progress finish
 */
export async function startApi(deps: ApiDeps, config: Config, more: Routes[] = []) {
  const { db, broker, log, telemetry } = deps
  const schemas = await openSchemas({ db, broker, log }, config)
  const commits = createCommitWait({ db, broker, log }, config)
  const depth = createDepth({ broker }, config)

  const app = new Koa<TracedState>()
  telemetry.metrics.observeQueue(() => readQueue(broker))
  app.use(observeRequests(telemetry)).use(serveMetrics(telemetry)).use(answerErrors({ log }))
  const routes = [
    postEventsRoutes({ ...deps, schemas, commits, depth }, config),
    eventReadRoutes({ db }),
    schemaRoutes({ db, schemas }, config),
    statusRoutes(deps),
    probeRoutes(deps, 'api'),
    ...more,
  ]
  for (const { router } of [...routes, openapiRoutes(routes)]) app.use(router.routes()).use(router.allowedMethods())

  const server = await listen(app, config)
  const close = async () => {
    // Those who wait for a commit are told what is known by now.
    commits.close()
    await server.close()
    depth.close()
    schemas.close()
  }
  return { port: server.port, close }
}

/** What a worker process serves to those who watch it: `/healthz`, `/readyz` and `/metrics`. */
export async function startWorkerServer(deps: ReadinessDeps, config: Pick<Config, 'HOST' | 'PORT'>) {
  const app = new Koa<TracedState>()
  deps.telemetry.metrics.observeQueue(() => readQueue(deps.broker))
  app.use(serveMetrics(deps.telemetry)).use(probeRoutes(deps, 'worker').router.routes())
  return listen(app, config)
}
