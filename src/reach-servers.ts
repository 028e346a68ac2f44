/**
 * The start of a process that may be there before its servers: it listens at once, alive and not ready, says on /readyz
 * which server it waits for, and goes on when both are there. What waiting cannot mend, such as a wrong password, ends it.
 */

import { setTimeout as pause } from 'node:timers/promises'
import Koa from 'koa'
import type { Logger } from 'pino'
import { natsInsecurity } from './broker/access.ts'
import { type Broker, connectBroker } from './broker/connect.ts'
import { ensureStream, isJetStreamAway } from './broker/streams.ts'
import type { Config } from './config.ts'
import { databaseInsecurity } from './db/address.ts'
import { connectDatabase, type DatabaseConnection, databaseRefused, isOutage } from './db/connect.ts'
import { migrateDatabase } from './db/migrate.ts'
import { describe, MillraceError } from './errors.ts'
import type { RequestState } from './http/caller.ts'
import { answerErrors } from './http/errors.ts'
import { type Door, openDoor } from './http/server.ts'
import type { Telemetry } from './telemetry/telemetry.ts'

const AGAIN_MS = 250
const SAY_AGAIN_MS = 30_000

type Server = 'jetstream' | 'postgres'
type Checks = Record<Server, string>
export type Reached = { database: DatabaseConnection; broker: Broker; door: Door | undefined }

/**
 * Brings Postgres to this version's tables and JetStream to its stream, however long they are away.
 * @param port  to answer probes on meanwhile; undefined for none
 * @returns undefined when the signal came first
 * @throws MillraceError for what waiting cannot mend
 */
export async function reachServers(
  { log, telemetry }: { log: Logger; telemetry: Telemetry },
  config: Config,
  name: string,
  port: number | undefined,
  signal: AbortSignal,
): Promise<Reached | undefined> {
  for (const danger of [databaseInsecurity(config.DATABASE_URL), natsInsecurity(config)])
    if (danger !== undefined) log.warn(danger)
  const checks: Checks = { postgres: 'not reached yet', jetstream: 'not reached yet' }
  const door =
    port === undefined
      ? undefined
      : await openDoor(waitingRoom({ log, telemetry }, config, checks), { ...config, PORT: port })
  const failed = new AbortController()
  const giveUp = AbortSignal.any([signal, failed.signal])
  let broker: Broker | undefined
  try {
    const waits = [
      attempt({ log }, checks, 'postgres', () => reachPostgres(config), giveUp),
      attempt({ log }, checks, 'jetstream', () => reachJetStream({ log }, config, name), giveUp).then((reached) => {
        broker = reached
      }),
    ]
    await Promise.all(waits).finally(() => {
      failed.abort()
      return Promise.allSettled(waits)
    })
  } catch (error) {
    await broker?.close()
    await door?.close()
    if (signal.aborted) return undefined
    throw error
  }
  const onLost = (error: Error) => log.warn({ error: describe(error) }, 'lost a connection to Postgres')
  return { database: connectDatabase(config, onLost), broker: broker!, door }
}

/** An error that may go by itself. */
class Away extends Error {}

async function attempt<T>(
  { log }: { log: Logger },
  checks: Checks,
  server: Server,
  reach: () => Promise<T>,
  signal: AbortSignal,
): Promise<T> {
  let saidAt = Number.NEGATIVE_INFINITY
  for (;;) {
    signal.throwIfAborted()
    try {
      const reached = await reach()
      checks[server] = 'ok'
      return reached
    } catch (error) {
      if (!(error instanceof Away)) throw error
      checks[server] = describe(error.cause)
    }
    if (performance.now() - saidAt > SAY_AGAIN_MS) {
      log.warn({ error: checks[server] }, `waiting for ${server}`)
      saidAt = performance.now()
    }
    await pause(AGAIN_MS, undefined, { signal })
  }
}

async function reachPostgres(config: Config): Promise<void> {
  try {
    await migrateDatabase(config.DATABASE_URL, config.EVENTS_PARTITION_DAYS)
  } catch (error) {
    if (isOutage(error)) throw new Away(undefined, { cause: error })
    throw databaseRefused(error) ?? error
  }
}

async function reachJetStream({ log }: { log: Logger }, config: Config, name: string): Promise<Broker> {
  let broker: Broker | undefined
  try {
    broker = await connectBroker(config, name, (error) => log.error({ error: describe(error) }, 'NATS refuses'))
    await ensureStream(broker, config)
    return broker
  } catch (error) {
    await broker?.close()
    const away = error instanceof MillraceError ? error.code === 'unavailable' : isJetStreamAway(error)
    throw away ? new Away(undefined, { cause: error }) : error
  }
}

/** What is served until the servers are there. */
function waitingRoom(
  { log, telemetry }: { log: Logger; telemetry: Telemetry },
  { METRICS_OPEN }: Pick<Config, 'METRICS_OPEN'>,
  checks: Checks,
): Koa<RequestState> {
  const app = new Koa<RequestState>()
  app.on('error', (error) => log.warn({ error: describe(error) }, 'an answer was not delivered'))
  app.use(answerErrors({ log }))
  app.use(async (ctx) => {
    if (ctx.path === '/healthz') ctx.body = { status: 'ok' }
    else if (ctx.path === '/readyz') {
      ctx.status = 503
      ctx.body = { ready: false, checks: { ...checks, workers: 'not started' } }
    } else if (ctx.path === '/metrics' && METRICS_OPEN) ctx.body = await telemetry.metrics.render()
    else {
      const missing = Object.entries(checks).flatMap(([server, state]) => (state === 'ok' ? [] : [server]))
      const reason = missing.length === 0 ? 'Starting' : `Starting: waiting for ${missing.join(' and ')}`
      throw new MillraceError('unavailable', `${reason}; retry later`)
    }
  })
  return app
}
