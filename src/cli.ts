#!/usr/bin/env node
/** `millrace`: parses, calls, prints. */

import { join } from 'node:path'
import { Command } from 'commander'
import pino from 'pino'
import { connectBroker } from './broker/connect.ts'
import { ensureStream } from './broker/streams.ts'
import { type Config, loadConfig } from './config.ts'
import { connectDatabase } from './db/connect.ts'
import { startJobs } from './db/jobs.ts'
import { migrateDatabase } from './db/migrate.ts'
import { startNats } from './embedded/nats.ts'
import { startPostgres } from './embedded/postgres.ts'
import { describe } from './errors.ts'
import { startApi, startWorkerServer } from './ingest/api.ts'
import { consume } from './ingest/consume.ts'
import { createPublisher } from './ingest/publish.ts'
import { withLocalJaeger } from './telemetry/jaeger.ts'
import { showTrace } from './telemetry/show-trace.ts'
import { startTelemetry, type Telemetry } from './telemetry/telemetry.ts'

const program = new Command('millrace').description('Durable events and workflows on NATS JetStream and Postgres')

/** The first signal asks for an orderly end; a second one ends at once, which loses nothing. */
function stopSignal(): AbortSignal {
  const controller = new AbortController()
  for (const name of ['SIGTERM', 'SIGINT'] as const)
    process.on(name, () => (controller.signal.aborted ? process.exit(1) : controller.abort()))
  return controller.signal
}

const aborted = (signal: AbortSignal) =>
  signal.aborted
    ? Promise.resolve()
    : new Promise((resolve) => signal.addEventListener('abort', resolve, { once: true }))

async function runApi(config: Config, telemetry: Telemetry, signal: AbortSignal): Promise<void> {
  const log = pino({ level: config.LOG_LEVEL, name: 'api' })
  const database = connectDatabase(config, (error) =>
    log.warn({ error: error.message }, 'lost a connection to Postgres'),
  )
  const broker = await connectBroker(config, 'api')
  await ensureStream(broker, config)
  const publisher = createPublisher({ broker, telemetry }, config)
  const server = await startApi({ db: database.db, broker, publisher, log, telemetry }, config)
  log.info({ port: server.port }, 'listening')
  await aborted(signal)
  await server.close()
  await publisher.drain()
  await broker.close()
  await database.close()
}

/** @param port  of its own server; undefined in a process whose API serves the same */
async function runWorker(
  config: Config,
  telemetry: Telemetry,
  port: number | undefined,
  signal: AbortSignal,
): Promise<void> {
  const log = pino({ level: config.LOG_LEVEL, name: 'worker' })
  const database = connectDatabase(config, (error) =>
    log.warn({ error: error.message }, 'lost a connection to Postgres'),
  )
  const broker = await connectBroker(config, 'worker')
  await ensureStream(broker, config)
  const jobs = await startJobs(config.DATABASE_URL, {
    maintain: true,
    onError: (error) => log.warn({ error: error.message }, 'pg-boss'),
  })
  const deps = { db: database.db, broker, jobs, log, telemetry }
  const server = port === undefined ? undefined : await startWorkerServer(deps, { HOST: config.HOST, PORT: port })
  log.info({ pool: config.WORKER_POOL_SIZE, port: server?.port }, 'pulling')
  await consume(deps, config, signal)
  await server?.close()
  await jobs.stop()
  await broker.close()
  await database.close()
}

/** Runs what a process does under its telemetry. */
async function observed(
  name: 'api' | 'worker' | 'dev',
  config: Config,
  run: (telemetry: Telemetry) => Promise<unknown>,
): Promise<void> {
  const log = pino({ level: config.LOG_LEVEL, name })
  const telemetry = await startTelemetry({ log }, config, `millrace-${name}`)
  try {
    await run(telemetry)
  } finally {
    await telemetry.stop()
  }
}

program
  .command('api')
  .description('serve the HTTP API against NATS_URL and DATABASE_URL')
  .action(async () => {
    const config = loadConfig()
    await migrateDatabase(config.DATABASE_URL)
    const signal = stopSignal()
    await observed('api', config, (telemetry) => runApi(config, telemetry, signal))
  })

program
  .command('worker')
  .description('run the pull workers against NATS_URL and DATABASE_URL')
  .action(async () => {
    const config = loadConfig()
    await migrateDatabase(config.DATABASE_URL)
    const signal = stopSignal()
    await observed('worker', config, (telemetry) => runWorker(config, telemetry, config.WORKER_PORT, signal))
  })

program
  .command('dev')
  .description('the whole service with embedded Postgres and nats-server')
  .option('--data <folder>', 'where the servers keep their data', '.millrace')
  .action(async ({ data }: { data: string }) => {
    const signal = stopSignal()
    const [postgres, nats] = await Promise.all([
      startPostgres(join(process.cwd(), data, 'postgres'), { detached: true }),
      startNats(join(process.cwd(), data, 'nats'), { detached: true }),
    ])
    const config = await withLocalJaeger({ ...loadConfig(), DATABASE_URL: postgres.url, NATS_URL: nats.url })
    await migrateDatabase(config.DATABASE_URL)
    await observed('dev', config, (telemetry) =>
      Promise.all([runApi(config, telemetry, signal), runWorker(config, telemetry, undefined, signal)]),
    )
    await Promise.all([nats.stop(), postgres.stop()])
  })

program
  .command('trace')
  .description('draw what happened to the events of one trace, from Jaeger and Postgres')
  .argument('<trace-id>', '32 hexadecimal digits, or the traceparent that the API returned')
  .action(async (traceId: string) => {
    const config = loadConfig()
    const database = connectDatabase(config)
    try {
      console.log(await showTrace(database, config, traceId, process.stdout.columns ?? 120))
    } finally {
      await database.close()
    }
  })

program.parseAsync().catch((error) => {
  console.error(`millrace: ${describe(error)}`)
  process.exit(1)
})
