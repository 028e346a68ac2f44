/** What bench/scale.ts measures: one or three nats-servers, Postgres, and as many API and worker processes as a case has. */

import type { ChildProcess } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as pause } from 'node:timers/promises'
import pg from 'pg'
import { connectBroker } from '../src/broker/connect.ts'
import { readQueue } from '../src/broker/queue.ts'
import { ensureStream, isJetStreamAway, STREAM } from '../src/broker/streams.ts'
import { loadConfig } from '../src/config.ts'
import { migrateDatabase } from '../src/db/migrate.ts'
import { startNats } from '../src/embedded/nats.ts'
import { freePort } from '../src/embedded/port.ts'
import { startPostgres } from '../src/embedded/postgres.ts'
import type { LoadResult } from './load.ts'
import { line, type Meter, meter, runNode, startNode, stopNode, TICK_MS } from './processes.ts'
import type { Costs, Fleet } from './scale-model.ts'

/** Enough that a slowed process always has some waiting: each of them is answered once in a period at most. */
const CONNECTIONS: Record<number, number> = { 1: 512, 10: 512, 100: 256 }
/** Before a case counts: batches find their size, code gets warm. */
const WARM_S = 1
const PERIOD_MS = 50

type Process = { child: ChildProcess; meter: Meter; port: number }

/**
 * What one case came to, from the first request to the last commit.
 * @property rate  events committed each second
 * @property apiLoad, workerLoad  how much of the time that its processes could run they were at work: 1 is all of it
 * @property busy, others  cores that the benchmark, and other programs, used
 */
export type Measured = {
  fleet: Fleet
  size: number
  accepted: number
  rate: number
  apiLoad: number
  workerLoad: number
  busy: number
  others: number
  /** What Postgres wrote ahead for an event. */
  walBytes: number
  costs: Costs
}

export async function startRig(dir: string, { replicas, seconds }: { replicas: 1 | 3; seconds: number }) {
  const [postgres, nats] = await Promise.all([
    startPostgres(join(dir, 'postgres'), { detached: true }),
    startNatsServers(dir, replicas),
  ])
  const env = {
    DATABASE_URL: postgres.url,
    NATS_URL: nats.map(({ url }) => url).join(','),
    NATS_REPLICAS: String(replicas),
    PORT: '0',
    HOST: '127.0.0.1',
    LOG_LEVEL: 'info',
    API_KEYS: 'off',
  }
  const config = loadConfig({ ...process.env, ...env })
  await migrateDatabase(config.DATABASE_URL)
  const broker = await connectBroker(config, 'bench')
  // A cluster takes a moment to find its leader.
  for (;;) {
    try {
      await ensureStream(broker, config)
      break
    } catch (error) {
      if (!isJetStreamAway(error)) throw error
      await pause(250)
    }
  }
  const db = new pg.Client({ connectionString: postgres.url })
  await db.connect()

  const apis: Process[] = []
  const workers: Process[] = []
  const servers = nats.map((server) => meter(server.process.pid!))
  const postgresMeter = meter(postgres.process.pid!)
  const sum = (meters: Meter[]) => meters.reduce((total, { cpuMs }) => total + cpuMs(), 0)
  const spent = () => ({
    api: sum(apis.map((each) => each.meter)),
    worker: sum(workers.map((each) => each.meter)),
    nats: sum(servers),
    postgres: postgresMeter.cpuMs(),
  })

  async function setCount(processes: Process[], role: 'api' | 'worker', count: number): Promise<void> {
    while (processes.length < count) processes.push(await start(role, env))
    while (processes.length > count) await stopNode(processes.pop()!.child)
  }

  async function settled(events: number): Promise<void> {
    const deadline = performance.now() + 180_000
    for (;;) {
      if ((await readQueue(broker)).depth === 0) {
        const { rows } = await db.query(`
          select (select count(*) from events)::int as stored, coalesce(sum(inserted), 0)::int as told from batches`)
        if (rows[0].stored === events && rows[0].told === events) return
      }
      if (performance.now() > deadline) throw new Error(`${events} events were accepted, and not all of them stored`)
      await pause(50)
    }
  }

  let runs = 0

  /** One load on so many processes, until everything of it is stored. */
  async function measure(size: number, fleet: Fleet): Promise<Measured> {
    await setCount(apis, 'api', fleet.apis)
    await setCount(workers, 'worker', fleet.workers)
    await db.query('truncate events, event_ids, batches')
    await broker.jsm.streams.purge(STREAM)
    await db.query('checkpoint')
    runs++
    const ports = apis.map(({ port }) => port)
    const load = (run: string, forSeconds: number) => {
      const order = { ports, path: '/v1/events', run, eventsPerRequest: size, connections: CONNECTIONS[size] }
      return runNode<LoadResult>(['bench/load.ts', JSON.stringify({ ...order, seconds: forSeconds })])
    }
    const warm = await load(`w${runs}`, WARM_S)
    await settled(warm.accepted)

    const end = slowDown([...apis, ...workers], fleet.speed)
    const wal = await walAt(db)
    const before = { at: Date.now(), machine: machineMs(), own: spent() }
    const result = await load(`r${runs}`, seconds)
    await settled(warm.accepted + result.accepted)
    const after = { at: Date.now(), machine: machineMs(), own: spent() }
    const speed = end()
    if (result.refused > 0) console.error(`${result.refused} requests were refused`)

    const { rows } = await db.query('select extract(epoch from max(committed_at))::float8 * 1000 as last from batches')
    const walBytes = ((await walAt(db)) - wal) / result.accepted
    const elapsedMs = after.at - before.at
    const ms = (name: keyof typeof after.own) => after.own[name] - before.own[name]
    const busyMs = ms('api') + ms('worker') + ms('nats') + ms('postgres') + result.cpuMs
    const perEvent = (spentMs: number) => (spentMs * 1_000) / result.accepted
    return {
      fleet: { ...fleet, speed },
      size,
      accepted: result.accepted / result.seconds,
      rate: result.accepted / ((rows[0].last - before.at) / 1_000),
      // The APIs have nothing to do once the load has ended.
      apiLoad: ms('api') / (result.seconds * 1_000) / fleet.apis / speed,
      workerLoad: ms('worker') / elapsedMs / fleet.workers / speed,
      busy: busyMs / elapsedMs,
      others: Math.max(0, (after.machine - before.machine - busyMs) / elapsedMs),
      walBytes,
      costs: {
        api: perEvent(ms('api')),
        worker: perEvent(ms('worker')),
        nats: perEvent(ms('nats')),
        postgres: perEvent(ms('postgres')),
        load: perEvent(result.cpuMs),
      },
    }
  }

  async function stop(): Promise<void> {
    await Promise.all([...apis, ...workers].map(({ child }) => stopNode(child)))
    await db.end()
    await broker.close()
    await Promise.all([postgres.stop(), ...nats.map((server) => server.stop())])
  }

  return { measure, stop }
}

async function startNatsServers(dir: string, replicas: 1 | 3) {
  if (replicas === 1) return [await startNats(join(dir, 'nats'), { detached: true })]
  const routes = await Promise.all(Array.from({ length: replicas }, () => freePort()))
  const list = routes.map((port) => `"nats://127.0.0.1:${port}"`).join(', ')
  return Promise.all(
    routes.map((port, n) =>
      startNats(join(dir, `nats${n}`), {
        detached: true,
        more: `server_name: n${n}\ncluster { name: bench, listen: "127.0.0.1:${port}", no_advertise: true, routes: [${list}] }`,
      }),
    ),
  )
}

async function start(role: 'api' | 'worker', env: Record<string, string>): Promise<Process> {
  const child = startNode(['--max-semi-space-size=8', 'src/cli.ts', role], env)
  const [, port] = await line(child, /"port":(\d+).*(?:listening|pulling)/)
  return { child, meter: meter(child.pid!), port: Number(port) }
}

/**
 * Lets each process run only `speed` of the time, one after another.
 * @returns ends it, and tells the share of the time that they ran
 */
function slowDown(processes: Process[], speed: number): () => number {
  if (speed === 1) return () => 1
  const startedAt = performance.now()
  let ended = false
  let ranMs = 0
  const turns = processes.map(async ({ child }, n) => {
    child.kill('SIGSTOP')
    await pause((PERIOD_MS * n) / processes.length)
    while (!ended) {
      const wokenAt = performance.now()
      child.kill('SIGCONT')
      await pause(PERIOD_MS * speed)
      child.kill('SIGSTOP')
      const turnMs = performance.now() - wokenAt
      ranMs += turnMs
      // What one turn took too long, the pause after it makes up for.
      await pause(turnMs / speed - turnMs)
    }
    child.kill('SIGCONT')
  })
  return () => {
    ended = true
    for (const { child } of processes) child.kill('SIGCONT')
    void Promise.all(turns)
    return ranMs / (performance.now() - startedAt) / processes.length
  }
}

async function walAt(db: pg.Client): Promise<number> {
  const { rows } = await db.query(`select pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::float8 as bytes`)
  return rows[0].bytes
}

/** What the whole machine has spent, other programs included (proc_stat(5)). */
function machineMs(): number {
  const [user, nice, system, , , irq, softirq] = readFileSync('/proc/stat', 'utf8')
    .split('\n')[0]!
    .split(/\s+/)
    .slice(1)
    .map(Number) as [number, number, number, number, number, number, number]
  return (user + nice + system + irq + softirq) * TICK_MS
}
