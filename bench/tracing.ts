/**
 * `make bench`, second part: what traces cost. The same load with tracing off, at 1% and at 100%, into a real Jaeger on
 * the same machine, in turns within one run, so that what else the machine does falls on all three. The medians of the
 * rounds are compared. BENCH_SECONDS per turn (10), BENCH_ROUNDS (5), BENCH_EVENTS per request (100).
 */

import { spawn } from 'node:child_process'
import { existsSync, mkdirSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as pause } from 'node:timers/promises'
import pg from 'pg'
import { connectBroker } from '../src/broker/connect.ts'
import { readQueue } from '../src/broker/queue.ts'
import { ensureStream } from '../src/broker/streams.ts'
import { loadConfig } from '../src/config.ts'
import { migrateDatabase } from '../src/db/migrate.ts'
import { startNats } from '../src/embedded/nats.ts'
import { freePort } from '../src/embedded/port.ts'
import { startPostgres } from '../src/embedded/postgres.ts'
import type { LoadResult } from './load.ts'
import { line, meter, runNode, startNode, stopNode } from './processes.ts'

const seconds = Number(process.env.BENCH_SECONDS ?? 10)
const rounds = Number(process.env.BENCH_ROUNDS ?? 5)
const eventsPerRequest = Number(process.env.BENCH_EVENTS ?? 100)
const JAEGER = '.venv/bin/jaeger'
if (!existsSync(JAEGER)) {
  console.log('There is no Jaeger to send traces to, so their cost was not measured: `make .venv/bin/jaeger` builds it')
  process.exit(0)
}

const dir = join(process.cwd(), '.millrace/bench-tracing')
rmSync(dir, { recursive: true, force: true })
const [postgres, nats] = await Promise.all([startPostgres(join(dir, 'postgres')), startNats(join(dir, 'nats'))])
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
const env = { DATABASE_URL: postgres.url, NATS_URL: nats.url, PORT: '0', HOST: '127.0.0.1', LOG_LEVEL: 'info' }
const collector = { OTEL_EXPORTER_OTLP_ENDPOINT: `http://127.0.0.1:${otlp}` }
const CASES = {
  off: {},
  '1%': { ...collector, OTEL_TRACES_SAMPLER_ARG: '0.01' },
  '100%': { ...collector, OTEL_TRACES_SAMPLER_ARG: '1' },
}
type Case = keyof typeof CASES
type Turn = { committedPerSecond: number; cpuUs: number; queueP50Ms: number; queueP99Ms: number }

const config = loadConfig({ ...process.env, ...env })
await migrateDatabase(config.DATABASE_URL)
const broker = await connectBroker(config, 'bench')
await ensureStream(broker, config)
const db = new pg.Client({ connectionString: postgres.url })
await db.connect()

/** One load on fresh processes, until every event is committed and counted. */
async function turn(name: Case, run: string): Promise<Turn> {
  await db.query('truncate events, batches')
  const [api, worker] = ['api', 'worker'].map((role) => startNode(['src/cli.ts', role], { ...env, ...CASES[name] }))
  const [port] = await Promise.all([line(api!, /"port":(\d+)/), line(worker!, /pulling/)])
  const order = { port: Number(port[1]), path: '/v1/events', eventsPerRequest, connections: 16 }
  const load = (part: string, forSeconds: number) =>
    runNode<LoadResult>(['bench/load.ts', JSON.stringify({ ...order, run: `${run}${part}`, seconds: forSeconds })])
  // A second to warm up: a process that was just started is no measure of one that runs for days.
  const warm = await load('w', 1)
  await settled(warm.accepted)
  const meters = [meter(api!.pid!), meter(worker!.pid!)]
  const cpuMs = () => meters.reduce((sum, each) => sum + each.cpuMs(), 0)
  const before = cpuMs()
  const measured = await load('m', seconds)
  await settled(warm.accepted + measured.accepted)
  const cpuUs = ((cpuMs() - before) * 1_000) / measured.accepted
  const { rows } = await db.query(
    `select extract(epoch from max(b.committed_at) - min(e.received_at))::float8 as seconds,
            percentile_cont(0.5) within group (order by extract(epoch from b.committed_at - e.received_at)) * 1000 as p50,
            percentile_cont(0.99) within group (order by extract(epoch from b.committed_at - e.received_at)) * 1000 as p99
     from events e join batches b on b.id = e.batch_id where e.id like $1`,
    [`${run}m-%`],
  )
  await Promise.all([stopNode(api!), stopNode(worker!)])
  return {
    committedPerSecond: measured.accepted / rows[0].seconds,
    cpuUs,
    queueP50Ms: Number(rows[0].p50),
    queueP99Ms: Number(rows[0].p99),
  }
}

async function settled(events: number): Promise<void> {
  while ((await readQueue(broker)).depth > 0) await pause(50)
  for (;;) {
    const { rows } = await db.query(
      `select (select count(*) from events)::int as stored, coalesce(sum(inserted), 0)::int as told from batches`,
    )
    if (rows[0].stored !== events) throw new Error(`${events} events were accepted, ${rows[0].stored} are stored`)
    if (rows[0].told === events) return
    await pause(50)
  }
}

const median = (values: number[]) => values.toSorted((a, b) => a - b)[values.length >> 1]!

try {
  const turns = new Map<Case, Turn[]>()
  const names = Object.keys(CASES) as Case[]
  for (let round = 0; round < rounds; round++)
    // Each round begins with another case, so that none is always measured on the fullest disk.
    for (let at = 0; at < names.length; at++) {
      const name = names[(round + at) % names.length]!
      turns.set(name, [...(turns.get(name) ?? []), await turn(name, `r${round}c${at}`)])
    }
  const of = (name: Case, what: keyof Turn) => median(turns.get(name)!.map((each) => each[what]))
  /** Against the turn without traces in the same round: the median of the rounds' ratios. */
  const ratio = (name: Case, what: keyof Turn) =>
    median(turns.get(name)!.map((each, round) => each[what] / turns.get('off')![round]![what]))
  const table = names.map((name) => ({
    traces: name,
    'committed/s': Math.round(of(name, 'committedPerSecond')),
    'of off': Number(ratio(name, 'committedPerSecond').toFixed(3)),
    'api + worker us/event': Number(of(name, 'cpuUs').toFixed(1)),
    'cpu of off': Number(ratio(name, 'cpuUs').toFixed(3)),
    'queue p50 ms': Number(of(name, 'queueP50Ms').toFixed(1)),
    'queue p99 ms': Number(of(name, 'queueP99Ms').toFixed(1)),
  }))
  console.log(`\nWhat traces cost, requests of ${eventsPerRequest} events, ${rounds} rounds of ${seconds} s`)
  console.table(table)
  mkdirSync('bench/reports', { recursive: true })
  const report = { at: new Date().toISOString(), seconds, rounds, eventsPerRequest, table }
  writeFileSync('bench/reports/tracing.json', `${JSON.stringify(report, null, 2)}\n`)
  console.log(JSON.stringify(report))
} finally {
  await db.end()
  await broker.close()
  jaeger.kill('SIGKILL')
  await Promise.all([postgres.stop(), nats.stop()])
}
