/** The one NATS connection of a process. */

import { type JetStreamClient, type JetStreamManager, jetstream, jetstreamManager } from '@nats-io/jetstream'
import { type ConnectionOptions, connect, type NatsConnection, TimeoutError } from 'nats'
import { MillraceError } from '../errors.ts'
import { accessOptions, connectionRefused, type NatsAddress } from './access.ts'

export type Broker = {
  nc: NatsConnection
  js: JetStreamClient
  jsm: JetStreamManager
  /** False between a lost connection and its recovery: publish nothing then, the client would buffer without bound. */
  connected: () => boolean
  close: () => Promise<void>
}

/** The client's own patience is 20 s. */
const TIMEOUT_MS = 3_000

/** Atomic batch publish came with nats-server 2.12 (ADR-50). */
const SERVER_MIN = [2, 12] as const

/**
 * Connects, and goes on reconnecting for ever once connected.
 * @param onTrouble  hears what the server refuses later, such as a subject that this user may not publish to
 * @throws MillraceError `broker_too_old` for a nats-server older than 2.12, `unavailable` where none answers,
 *   `invalid_config` where one refuses this process or is refused by it
 */
export async function connectBroker(
  address: NatsAddress,
  name: string,
  onTrouble: (error: Error) => void = () => {},
): Promise<Broker> {
  const access = accessOptions(address)
  let nc: NatsConnection
  try {
    nc = await connect({
      ...access,
      name: `millrace ${name}`,
      maxReconnectAttempts: -1,
      reconnectTimeWait: 250,
      // Credentials may expire and be replaced while this process runs: refused twice is not refused for ever.
      ignoreAuthErrorAbort: true,
      // A server that is frozen keeps its connections open and says nothing: left within 6 s, for another of the cluster,
      // which must answer in time too.
      pingInterval: 2_000,
      maxPingOut: 2,
      timeout: TIMEOUT_MS,
    })
  } catch (error) {
    throw connectionRefused(await reasonOf(error, access), address)
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
      if (status.type === 'error') onTrouble(status.error)
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

/**
 * A server that drops a connection during its first greeting, because it wants a certificate, shows in the client as a
 * time-out. A client that does not reconnect says why.
 */
async function reasonOf(error: unknown, access: ConnectionOptions): Promise<unknown> {
  if (!(error instanceof TimeoutError) || access.tls === undefined) return error
  return connect({ ...access, reconnect: false, timeout: TIMEOUT_MS }).then(
    (nc) => nc.close().then(() => error),
    (reason: unknown) => reason,
  )
}
