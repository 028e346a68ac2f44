/** The one NATS connection of a process. */

import { type JetStreamClient, type JetStreamManager, jetstream, jetstreamManager } from '@nats-io/jetstream'
import { connect, type NatsConnection } from 'nats'
import type { Config } from '../config.ts'
import { MillraceError } from '../errors.ts'

export type Broker = {
  nc: NatsConnection
  js: JetStreamClient
  jsm: JetStreamManager
  /** False between a lost connection and its recovery: publish nothing then, the client would buffer without bound. */
  connected: () => boolean
  close: () => Promise<void>
}

/** Atomic batch publish came with nats-server 2.12 (ADR-50). */
const SERVER_MIN = [2, 12] as const

/**
 * Connects, and goes on reconnecting for ever once connected.
 * @throws MillraceError `broker_too_old` for a nats-server older than 2.12, `unavailable` where none answers
 */
export async function connectBroker(config: Pick<Config, 'NATS_URL'>, name: string): Promise<Broker> {
  let nc: NatsConnection
  try {
    nc = await connect({
      servers: config.NATS_URL.split(','),
      name: `millrace ${name}`,
      maxReconnectAttempts: -1,
      reconnectTimeWait: 250,
      // A server that is frozen keeps its connections open and says nothing: left within 6 s, for another of the cluster,
      // which must answer in time too (the client's own patience is 20 s).
      pingInterval: 2_000,
      maxPingOut: 2,
      timeout: 3_000,
    })
  } catch (error) {
    throw new MillraceError('unavailable', `No NATS server answers at ${config.NATS_URL}: start one, or set NATS_URL`, {
      cause: error,
    })
  }
  const version = nc.info?.version ?? '0.0.0'
  const [major = 0, minor = 0] = version.split('.').map(Number)
  if (major < SERVER_MIN[0] || (major === SERVER_MIN[0] && minor < SERVER_MIN[1])) {
    await nc.close()
    throw new MillraceError(
      'broker_too_old',
      `nats-server ${version} cannot publish atomic batches: run ${SERVER_MIN.join('.')} or newer (2.15 syncs once per batch)`,
    )
  }
  let up = true
  void (async () => {
    for await (const status of nc.status()) {
      if (status.type === 'disconnect') up = false
      if (status.type === 'reconnect') up = true
    }
  })()
  return {
    nc,
    js: jetstream(nc),
    jsm: await jetstreamManager(nc, { checkAPI: false }),
    connected: () => up && !nc.isClosed(),
    close: () => nc.close(),
  }
}
