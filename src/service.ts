/** The processes of Millrace: what `millrace api`, `worker` and `dev` start, and end in good order. */

import { join } from 'node:path'
import type { PgBoss } from 'pg-boss'
import type { Logger } from 'pino'
import type { Broker } from './broker/connect.ts'
import type { Config } from './config.ts'
import type { DatabaseConnection } from './db/connect.ts'
import { startJobs } from './db/jobs.ts'
import { startNats } from './embedded/nats.ts'
import { startPostgres } from './embedded/postgres.ts'
import { announceServers } from './embedded/running.ts'
import { describe } from './errors.ts'
import { serveWorkerProbes, startApi } from './ingest/api.ts'
import { consume } from './ingest/consume.ts'
import { createPublisher } from './ingest/publish.ts'
import { reachServers } from './reach-servers.ts'
import { watchGrowth } from './retention/watch.ts'
import { withLocalJaeger } from './telemetry/jaeger.ts'
import { createLog } from './telemetry/log.ts'
import { startTelemetry, type Telemetry } from './telemetry/telemetry.ts'
import { workflowRoutes } from './workflow/api.ts'
import { codeOf, type Workflow } from './workflow/define.ts'
import { startEngine } from './workflow/engine.ts'
import { loadWorkflows } from './workflow/load.ts'
import { queueRoutes } from './workflow/queue-routes.ts'
import { scheduleRoutes } from './workflow/schedule-routes.ts'
import { watchSchedules } from './workflow/schedules.ts'

/** Serves the HTTP API until the signal, from when Postgres and NATS are there. */
export async function serveApi(config: Config, signal: AbortSignal): Promise<void> {
  await observed('api', config, (telemetry) => runApi(config, telemetry, signal))
}

/**
 * Runs the pull workers until the signal, then finishes what is in hand.
 * @param modules  whose workflows to run too
 */
export async function serveWorker(config: Config, modules: string[], signal: AbortSignal): Promise<void> {
  const workflows = await loadWorkflows(modules)
  await observed('worker', config, (telemetry) => runWorker(config, telemetry, workflows, config.WORKER_PORT, signal))
}

/** Brings Postgres and JetStream to what this version needs, once both are there. Processes do so too, where they may. */
export async function migrate(config: Config, signal: AbortSignal): Promise<void> {
  await observed('migrate', config, async (telemetry) => {
    const log = createLog(config, 'migrate')
    const reached = await reachServers({ log, telemetry }, config, 'migrate', undefined, signal)
    await reached?.broker.close()
    await reached?.database.close()
  })
}

/**
 * The whole service in one process over embedded servers.
 * @param folder  where Postgres and nats-server keep their data
 * @param modules  whose workflows to run
 */
export async function serveDev(given: Config, folder: string, modules: string[], signal: AbortSignal): Promise<void> {
  const workflows = await loadWorkflows(modules)
  const [postgres, nats] = await Promise.all([
    startPostgres(join(folder, 'postgres'), { detached: true }),
    startNats(join(folder, 'nats'), { detached: true }),
  ])
  const config = await withLocalJaeger({ ...given, DATABASE_URL: postgres.url, NATS_URL: nats.url })
  const forget = announceServers(folder, { DATABASE_URL: postgres.url, NATS_URL: nats.url })
  await observed('dev', config, (telemetry) =>
    Promise.all([runApi(config, telemetry, signal), runWorker(config, telemetry, workflows, undefined, signal)]),
  )
  forget()
  await Promise.all([nats.stop(), postgres.stop()])
}

const aborted = (signal: AbortSignal) =>
  signal.aborted
    ? Promise.resolve()
    : new Promise((resolve) => signal.addEventListener('abort', resolve, { once: true }))

async function runApi(config: Config, telemetry: Telemetry, signal: AbortSignal): Promise<void> {
  const log = createLog(config, 'api')
  const reached = await reachServers({ log, telemetry }, config, 'api', config.PORT, signal)
  if (reached === undefined) return
  const { database, broker, door } = reached
  const publisher = createPublisher({ broker, telemetry }, config)
  const jobs = await startJobs(config.DATABASE_URL, {
    onError: (error) => log.warn({ error: describe(error) }, 'pg-boss'),
  })
  const engine = await openEngine(config, { database, broker, jobs, log, telemetry }, [])
  const server = await startApi(
    { db: database.db, broker, jobs, publisher, log, telemetry },
    config,
    [workflowRoutes(engine, config), queueRoutes(engine, config), scheduleRoutes(engine, config)],
    door,
  )
  if (config.API_KEYS === 'off') log.warn('API_KEYS=off: whoever reaches this port may do everything')
  log.info({ port: server.port }, 'listening')
  await aborted(signal)
  log.info('stopping')
  // Together: who waits for a result is told that this process closes.
  await Promise.all([server.close(), engine.stop()])
  await publisher.drain()
  await jobs.stop()
  await broker.close()
  await database.close()
}

/** @param port  of its own server; undefined in a process whose API serves the same */
async function runWorker(
  config: Config,
  telemetry: Telemetry,
  workflows: Workflow[],
  port: number | undefined,
  signal: AbortSignal,
): Promise<void> {
  const log = createLog(config, 'worker')
  const reached = await reachServers({ log, telemetry }, config, 'worker', port, signal)
  if (reached === undefined) return
  const { database, broker, door } = reached
  const jobs = await startJobs(config.DATABASE_URL, {
    maintain: true,
    onError: (error) => log.warn({ error: describe(error) }, 'pg-boss'),
  })
  const deps = { db: database.db, broker, jobs, log, telemetry }
  const engine = await openEngine(config, { database, ...deps }, workflows)
  const stopSchedules = await watchSchedules(engine)
  const stopGrowth = await watchGrowth(deps, config, signal)
  const probes = door === undefined ? undefined : await serveWorkerProbes(deps, config, door)
  log.info({ pool: config.WORKER_POOL_SIZE, port: door?.port, workflows: workflows.map(codeOf) }, 'pulling')
  signal.addEventListener('abort', () => log.info('stopping'), { once: true })
  await Promise.all([
    consume(deps, config, signal),
    aborted(signal).then(stopGrowth).then(stopSchedules).then(engine.stop),
  ])
  await door?.close()
  probes?.close()
  await jobs.stop()
  await broker.close()
  await database.close()
}

const openEngine = (
  config: Config,
  { log, ...deps }: { database: DatabaseConnection; broker: Broker; jobs: PgBoss; log: Logger; telemetry: Telemetry },
  workflows: Workflow[],
) =>
  startEngine(
    {
      ...deps,
      databaseUrl: config.DATABASE_URL,
      onError: (error, doing) => log.warn({ error: describe(error) }, doing),
    },
    { workflows },
  )

/** Runs what a process does under its telemetry. */
async function observed(
  name: 'api' | 'worker' | 'dev' | 'migrate',
  config: Config,
  run: (telemetry: Telemetry) => Promise<unknown>,
): Promise<void> {
  const log = createLog(config, name)
  const telemetry = await startTelemetry({ log }, config, `millrace-${name}`)
  try {
    await run(telemetry)
  } finally {
    await telemetry.stop()
  }
}
