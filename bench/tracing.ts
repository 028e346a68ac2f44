/**
 * `make bench`, second part: what traces cost. Three services, without traces, with 1% and with 100% sampled into a real
 * Jaeger, stand side by side, warm; short loads go to each in turn, so that what else the machine does falls on all
 * three. Told are the medians of the rounds' ratios, and the least processor time of any turn: others on the machine can
 * only add to it. BENCH_TURN_SECONDS (2), BENCH_ROUNDS (15), BENCH_EVENTS per request (100).
 */

import { spawn } from 'node:child_process'
import { existsSync, mkdirSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as pause } from 'node:timers/promises'
import pg from 'pg'
import { connectBroker } from '../src/broker/connect.ts'
import { readQueue } from '../src/broker/queue.ts'
import { migrateDatabase } from '../src/db/migrate.ts'
import { startNats } from '../src/embedded/nats.ts'
import { freePort } from '../src/embedded/port.ts'
import { startPostgres } from '../src/embedded/postgres.ts'
import type { LoadResult } from './load.ts'
import { line, meter, runNode, startNode, stopNode } from './processes.ts'

const seconds = Number(process.env.BENCH_TURN_SECONDS ?? 2)
const rounds = Number(process.env.BENCH_ROUNDS ?? 15)
const eventsPerRequest = Number(process.env.BENCH_EVENTS ?? 100)
const JAEGER = '.venv/bin/jaeger'
if (!existsSync(JAEGER)) {
  console.log('There is no Jaeger to send traces to, so their cost was not measured: `make .venv/bin/jaeger` builds it')
  process.exit(0)
}

const dir = join(process.cwd(), '.millrace/bench-tracing')
rmSync(dir, { recursive: true, force: true })
const postgres = await startPostgres(join(dir, 'postgres'))
const [otlp, query, queryGrpc, health] = await Promise.all([freePort(), freePort(), freePort(), freePort()])
const jaeger = spawn(JAEGER, ['--config', 'otel/jaeger.yaml'], {
  stdio: 'ignore',
  env: {
    ...process.env,
    JAEGER_OTLP_PORT: String(otlp),
    JAEGER_QUERY_PORT: String(query),
    JAEGER_QUERY_GRPC_PORT: String(queryGrpc),
    JAEGER_HEALTH_PORT: String(health),
  },
})
const collector = { OTEL_EXPORTER_OTLP_ENDPOINT: `http://127.0.0.1:${otlp}` }
const CASES = {
  off: {},
  '1%': { ...collector, OTEL_TRACES_SAMPLER_ARG: '0.01' },
  '100%': { ...collector, OTEL_TRACES_SAMPLER_ARG: '1' },
}
type Case = keyof typeof CASES
type Turn = { committedPerSecond: number; cpuUs: number; queueP50Ms: number; queueP99Ms: number }
type Service = Awaited<ReturnType<typeof startService>>

/** A nats-server, a database, an API and a worker process, all its own. */
async function startService(name: Case) {
  const database = `millrace_${Object.keys(CASES).indexOf(name)}`
  const admin = new pg.Client({ connectionString: postgres.url })
  await admin.connect()
  await admin.query(`create database ${database}`)
  await admin.end()
  const nats = await startNats(join(dir, database))
  const env = {
    DATABASE_URL: postgres.url.replace(/[^/]*$/, database),
    NATS_URL: nats.url,
    PORT: '0',
    API_KEYS: 'off',
    HOST: '127.0.0.1',
    LOG_LEVEL: 'info',
  }
  await migrateDatabase(env.DATABASE_URL)
  const [api, worker] = ['api', 'worker'].map((role) => startNode(['src/cli.ts', role], { ...env, ...CASES[name] }))
  const [port] = await Promise.all([line(api!, /"port":(\d+)/), line(worker!, /pulling/)])
  const broker = await connectBroker({ NATS_URL: nats.url }, 'bench')
  const db = new pg.Client({ connectionString: env.DATABASE_URL })
  await db.connect()
  const meters = [meter(api!.pid!), meter(worker!.pid!)]
  return {
    broker,
    db,
    port: Number(port[1]),
    cpuMs: () => meters.reduce((sum, each) => sum + each.cpuMs(), 0),
    stop: async () => {
      await Promise.all([stopNode(api!), stopNode(worker!)])
      await db.end()
      await broker.close()
      await nats.stop()
    },
  }
}

/** One load, until every event of it is committed and counted. */
async function turn({ db, broker, port, cpuMs }: Service, run: string): Promise<Turn> {
  await db.query('truncate events, event_ids, batches')
  const before = cpuMs()
  const order = {
    ports: [port],
    path: '/v1/events',
    eventsPerRequest,
    connections: eventsPerRequest === 1 ? 128 : 16,
    run,
    seconds,
  }
  const { accepted, refused } = await runNode<LoadResult>(['bench/load.ts', JSON.stringify(order)])
  if (refused > 0) throw new Error(`${refused} requests were refused`)
  await settled({ db, broker }, accepted)
  const cpuUs = ((cpuMs() - before) * 1_000) / accepted
  const { rows } = await db.query(
    `select extract(epoch from max(b.committed_at) - min(e.received_at))::float8 as seconds,
            percentile_cont(0.5) within group (order by extract(epoch from b.committed_at - e.received_at)) * 1000 as p50,
            percentile_cont(0.99) within group (order by extract(epoch from b.committed_at - e.received_at)) * 1000 as p99
     from events e join batches b on b.id = e.batch_id`,
  )
  return {
    committedPerSecond: accepted / rows[0].seconds,
    cpuUs,
    queueP50Ms: Number(rows[0].p50),
    queueP99Ms: Number(rows[0].p99),
  }
}

/** @throws when rows are missing, or nothing has moved for a minute */
async function settled({ db, broker }: Pick<Service, 'db' | 'broker'>, events: number): Promise<void> {
  const deadline = performance.now() + 60_000
  while ((await readQueue(broker)).depth > 0 && performance.now() < deadline) await pause(20)
  for (;;) {
    const { rows } = await db.query(
      `select (select count(*) from events)::int as stored, coalesce(sum(inserted), 0)::int as told from batches`,
    )
    if (rows[0].stored !== events) throw new Error(`${events} events were accepted, ${rows[0].stored} are stored`)
    if (rows[0].told === events) return
    if (performance.now() > deadline) throw new Error(`${events} events, but the batches tell of ${rows[0].told}`)
    await pause(20)
  }
}

const median = (values: number[]) => values.toSorted((a, b) => a - b)[values.length >> 1]!

const names = Object.keys(CASES) as Case[]
const services = new Map<Case, Service>()
try {
  for (const name of names) services.set(name, await startService(name))
  // The first turn of each warms it up and is forgotten.
  for (const name of names) await turn(services.get(name)!, `warm${names.indexOf(name)}`)
  const turns = new Map<Case, Turn[]>(names.map((name) => [name, []]))
  for (let round = 0; round < rounds; round++)
    // Each round begins with another case, so that none has always the same neighbour.
    for (let at = 0; at < names.length; at++) {
      const name = names[(round + at) % names.length]!
      turns.get(name)!.push(await turn(services.get(name)!, `r${round}`))
    }
  const of = (name: Case, what: keyof Turn) => median(turns.get(name)!.map((each) => each[what]))
  /** Against the turn without traces in the same round: the median of the rounds' ratios. */
  const ratio = (name: Case, what: keyof Turn) =>
    median(turns.get(name)!.map((each, round) => each[what] / turns.get('off')![round]![what]))
  const least = (name: Case) => Math.min(...turns.get(name)!.map((each) => each.cpuUs))
  const table = names.map((name) => ({
    traces: name,
    'committed/s': Math.round(of(name, 'committedPerSecond')),
    'of off': Number(ratio(name, 'committedPerSecond').toFixed(3)),
    'api + worker us/event': Number(of(name, 'cpuUs').toFixed(1)),
    'cpu of off': Number(ratio(name, 'cpuUs').toFixed(3)),
    'least us/event': Number(least(name).toFixed(1)),
    'least of off': Number((least(name) / least('off')).toFixed(3)),
    'queue p50 ms': Number(of(name, 'queueP50Ms').toFixed(1)),
    'queue p99 ms': Number(of(name, 'queueP99Ms').toFixed(1)),
  }))
  console.log(`\nWhat traces cost, requests of ${eventsPerRequest} events, ${rounds} rounds of ${seconds} s`)
  console.table(table)
  mkdirSync('bench/reports', { recursive: true })
  const report = {
    at: new Date().toISOString(),
    seconds,
    rounds,
    eventsPerRequest,
    table,
    turns: Object.fromEntries(turns),
  }
  writeFileSync('bench/reports/tracing.json', `${JSON.stringify(report, null, 2)}\n`)
  console.log(JSON.stringify({ ...report, turns: undefined }))
} finally {
  for (const service of services.values()) await service.stop()
  jaeger.kill('SIGKILL')
  await postgres.stop()
}
