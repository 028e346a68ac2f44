/** The whole system on loopback, every part of which a fault can reach: servers, links, API and worker processes. */

import { rmSync } from 'node:fs'
import { join } from 'node:path'
import { connect, type NatsConnection } from 'nats'
import pg from 'pg'
import { startNats } from '../../src/embedded/nats.ts'
import { freePort } from '../../src/embedded/port.ts'
import type { EmbeddedServer } from '../../src/embedded/postgres.ts'
import { startTestPostgres, temporaryFolder } from '../servers.ts'
import { ORACLE_SQL } from './oracle.ts'
import { childrenOf, createService, type Service } from './processes.ts'
import { createLink, type Link } from './proxy.ts'
import { waitFor } from './wait.ts'

type Server = {
  start: () => Promise<void>
  /** kill -9 of the process and of its children. */
  kill: () => Promise<void>
  pause: () => void
  resume: () => void
  stop: () => Promise<void>
  pid: () => number
}

export type Rig = {
  dir: string
  databaseUrl: string
  postgres: Server
  nats: Server[]
  /** Index into `nats` of the stream's leader; 0 where there is no cluster. */
  leader: () => Promise<number>
  apis: Service[]
  workers: Service[]
  /** Between API and NATS, worker and NATS, and both and Postgres; only where asked for. */
  links: { apiNats: Link[]; workerNats: Link[]; postgres: Link[] }
  /** Messages that are not acknowledged: to be delivered, or delivered; NaN while NATS does not say. */
  depth: () => Promise<number>
  stop: () => Promise<void>
}

export type RigOptions = {
  natsNodes: 1 | 3
  apis: number
  workers: number
  /** Over the settings below. */
  env?: Record<string, string>
  links?: boolean
}

/** Short enough that a fault can outlast them within a test, small enough that the stream can be filled. */
const SETTINGS = {
  ACK_WAIT_MS: '2000',
  MAX_DELIVER: '3',
  RETRY_DELAY_MS: '100',
  PUBLISH_TIMEOUT_MS: '3000',
  STREAM_BYTES_MAX: String(32 * 1024 * 1024),
}

export async function startRig({ natsNodes, apis, workers, env = {}, links = false }: RigOptions): Promise<Rig> {
  const dir = temporaryFolder('rig')
  process.once('exit', () => rmSync(dir, { recursive: true, force: true }))
  const postgresPort = await freePort()
  const postgres = createServer(() => startTestPostgres(join(dir, 'pg'), { port: postgresPort }))
  const { servers: nats, ports } = await createNats(dir, natsNodes)
  await Promise.all([postgres.start(), ...nats.map((node) => node.start())])

  const databaseUrl = `postgres://postgres@127.0.0.1:${postgresPort}/millrace`
  const client = new pg.Client({ connectionString: databaseUrl })
  await client.connect()
  await client.query(ORACLE_SQL)
  await client.end()

  const linkTo = async (port: number) => (links ? [await createLink({ host: '127.0.0.1', port })] : [])
  const apiNats = (await Promise.all(ports.map(linkTo))).flat()
  const workerNats = (await Promise.all(ports.map(linkTo))).flat()
  const postgresLink = await linkTo(postgresPort)
  const urls = (through: Link[]) =>
    (links ? through.map((link) => link.port) : ports).map((port) => `nats://127.0.0.1:${port}`).join(',')
  const common = {
    ...SETTINGS,
    NATS_REPLICAS: String(natsNodes),
    DATABASE_URL: links ? databaseUrl.replace(`:${postgresPort}/`, `:${postgresLink[0]!.port}/`) : databaseUrl,
    ...env,
  }
  const services = (command: 'api' | 'worker', count: number, through: Link[]) =>
    Promise.all(Array.from({ length: count }, () => createService(command, { ...common, NATS_URL: urls(through) })))

  const observer = await connect({ servers: ports.map((port) => `127.0.0.1:${port}`), maxReconnectAttempts: -1 })
  const rig: Rig = {
    dir,
    databaseUrl,
    postgres,
    nats,
    leader: async () => (natsNodes === 1 ? 0 : Number((await streamInfo(observer)).cluster!.leader!.slice(1))),
    apis: await services('api', apis, apiNats),
    workers: await services('worker', workers, workerNats),
    links: { apiNats, workerNats, postgres: postgresLink },
    depth: () =>
      consumerInfo(observer).then(
        (info) => info.num_pending + info.num_ack_pending,
        () => Number.NaN,
      ),
    stop: async () => {
      await Promise.all(
        [...rig.apis, ...rig.workers].map(async (service) => {
          service.signal('SIGCONT')
          await service.kill()
        }),
      )
      await observer.close()
      for (const link of [...apiNats, ...workerNats, ...postgresLink]) link.close()
      await Promise.all([postgres.stop(), ...nats.map((node) => node.stop())])
    },
  }
  // The first one creates stream and consumer, so that what follows starts at once.
  await rig.apis[0]!.start()
  await Promise.all([...rig.apis.slice(1), ...rig.workers].map((service) => service.start()))
  return rig
}

type StreamInfo = { cluster?: { leader?: string }; error?: { description: string } }
type ConsumerInfo = { num_pending: number; num_ack_pending: number; error?: { description: string } }

/** Asked by the plain protocol (NATS ADR-31 names the subjects), not by Millrace's connection. */
async function info<T extends { error?: { description: string } }>(nc: NatsConnection, what: string): Promise<T> {
  const answer = (await nc.request(`$JS.API.${what}`, '', { timeout: 1_000 })).json<T>()
  if (answer.error) throw new Error(`${what}: ${answer.error.description}`)
  return answer
}
const streamInfo = (nc: NatsConnection) => info<StreamInfo>(nc, 'STREAM.INFO.EVENTS')
const consumerInfo = (nc: NatsConnection) => info<ConsumerInfo>(nc, 'CONSUMER.INFO.EVENTS.ingest_workers')

async function createNats(dir: string, nodes: 1 | 3): Promise<{ servers: Server[]; ports: number[] }> {
  const ports = await Promise.all(Array.from({ length: nodes }, () => freePort()))
  const routes = await Promise.all(Array.from({ length: nodes }, () => freePort()))
  const cluster = (i: number) =>
    nodes === 1
      ? ''
      : `server_name: n${i}
cluster { name: faults, listen: "127.0.0.1:${routes[i]}", no_advertise: true,
  routes: [${routes.map((port) => `"nats://127.0.0.1:${port}"`).join(', ')}] }`
  const servers = ports.map((port, i) =>
    createServer(() => startNats(join(dir, `nats${i}`), { port, more: cluster(i) })),
  )
  return { servers, ports }
}

/** Starting again waits until the system has cleared away what was killed: ports, shared memory, lock files. */
const START_MS_MAX = 60_000

function createServer(begin: () => Promise<EmbeddedServer>): Server {
  let running: EmbeddedServer | undefined
  const current = () => {
    if (!running) throw new Error('the server was never started')
    return running
  }
  const pids = () => [current().process.pid!, ...childrenOf(current().process.pid!)]
  process.once('exit', () => running?.process.kill('SIGKILL'))
  const send = (pid: number, signal: NodeJS.Signals) => {
    try {
      process.kill(pid, signal)
    } catch {
      // It ended meanwhile.
    }
  }
  return {
    start: () =>
      waitFor('a server to start', START_MS_MAX, () =>
        begin().then(
          (server) => {
            running = server
            return true
          },
          (error: Error) => {
            if (!/shared memory|in use|lock file/.test(error.message)) throw error
            return false
          },
        ),
      ),
    kill: async () => {
      const { process: child } = current()
      const gone = new Promise((resolve) => child.once('exit', resolve))
      for (const pid of pids()) send(pid, 'SIGKILL')
      await gone
    },
    pause: () => pids().forEach((pid) => void send(pid, 'SIGSTOP')),
    resume: () => pids().forEach((pid) => void send(pid, 'SIGCONT')),
    stop: async () => {
      pids().forEach((pid) => void send(pid, 'SIGCONT'))
      await current().stop()
    },
    pid: () => current().process.pid!,
  }
}
