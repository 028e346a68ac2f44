/**
 * `make bench`: how fast events are accepted and committed, beside the direct limit and a naive peer, in one run on
 * one machine. Starts its own servers (fsync on everywhere), drives HTTP from a separate process, waits until every
 * event is committed and verifies the row count. BENCH_SECONDS per case (10), BENCH_BACKLOG events (1,000,000; 0: none).
 */

import { mkdirSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as pause } from 'node:timers/promises'
import pg from 'pg'
import pino from 'pino'
import { connectBroker } from '../src/broker/connect.ts'
import { CONSUMER, ensureStream, STREAM } from '../src/broker/streams.ts'
import { loadConfig } from '../src/config.ts'
import { migrateDatabase } from '../src/db/migrate.ts'
import { startNats } from '../src/embedded/nats.ts'
import { startPostgres } from '../src/embedded/postgres.ts'
import { createPublisher } from '../src/ingest/publish.ts'
import { startTelemetry } from '../src/telemetry/telemetry.ts'
import type { LoadResult } from './load.ts'
import { line, type Meter, meter, runNode, startNode, stopNode } from './processes.ts'
import { sampleEvent, sampleTraceparents } from './sample.ts'

const WARM_SECONDS = 3
const seconds = Number(process.env.BENCH_SECONDS ?? 10)
const backlog = Number(process.env.BENCH_BACKLOG ?? 1_000_000)
const sizes = (process.env.BENCH_SIZES ?? '1,10,100,500')
  .split(',')
  .map(Number)
  .filter((size) => size > 0)
const dir = join(process.cwd(), '.millrace/bench')
rmSync(dir, { recursive: true, force: true })
const [postgres, nats] = await Promise.all([
  startPostgres(join(dir, 'postgres'), { detached: true }),
  startNats(join(dir, 'nats'), { detached: true }),
])
const env = {
  DATABASE_URL: postgres.url,
  NATS_URL: nats.url,
  PORT: '0',
  HOST: '127.0.0.1',
  LOG_LEVEL: 'info',
  API_KEYS: 'off',
}
const config = loadConfig({ ...process.env, ...env })
await migrateDatabase(config.DATABASE_URL)
const broker = await connectBroker(config, 'bench')
await ensureStream(broker, config)
const log = pino({ level: 'warn' })
const telemetry = await startTelemetry({ log }, config, 'millrace-bench')
const db = new pg.Client({ connectionString: postgres.url })
await db.connect()

const meters: Record<string, Meter> = { postgres: meter(postgres.process.pid!), nats: meter(nats.process.pid!) }
const cpu = () => Object.fromEntries(Object.entries(meters).map(([name, { cpuMs }]) => [name, cpuMs()]))
const peaks: Record<string, number> = {}

async function clear(): Promise<void> {
  await db.query('truncate events, event_ids, batches')
  await db.query('checkpoint')
}

const count = async (table = 'events') => Number((await db.query(`select count(*) from ${table}`)).rows[0].count)

/** Waits until the consumer has nothing left, then until the batch lines are written. */
async function settled(events: number): Promise<void> {
  const deadline = Date.now() + 300_000
  const inTime = () => {
    if (Date.now() > deadline) throw new Error('the workers did not settle within 5 minutes')
  }
  for (;;) {
    inTime()
    const info = await broker.jsm.consumers.info(STREAM, CONSUMER)
    if (info.num_pending === 0 && info.num_ack_pending === 0) break
    await pause(50)
  }
  const stored = await count()
  if (stored !== events) throw new Error(`${events} events were accepted, ${stored} are stored`)
  for (;;) {
    inTime()
    const { rows } = await db.query('select coalesce(sum(inserted), 0)::int as n from batches')
    if (rows[0].n === events) return
    await pause(50)
  }
}

type Case = Record<string, string | number>

async function direct(run: string): Promise<number> {
  await clear()
  const result = await runNode<{ committed: number; seconds: number }>(
    ['bench/direct.ts', JSON.stringify({ run, seconds: Math.max(3, seconds / 2) })],
    env,
  )
  if ((await count()) !== result.committed) throw new Error('the direct limit lost rows')
  return result.committed / result.seconds
}

async function load(
  path: string,
  port: number,
  eventsPerRequest: number,
  run: string,
  forSeconds = seconds,
): Promise<LoadResult> {
  const connections = eventsPerRequest === 1 ? 256 : eventsPerRequest === 10 ? 64 : 16
  return runNode<LoadResult>([
    'bench/load.ts',
    JSON.stringify({ ports: [port], path, run, eventsPerRequest, connections, seconds: forSeconds }),
  ])
}

async function ingest(port: number, eventsPerRequest: number): Promise<Case> {
  await clear()
  const before = cpu()
  const result = await load('/v1/events', port, eventsPerRequest, `m${eventsPerRequest}`)
  if (result.refused > 0) console.error(`${result.refused} requests were refused`)
  await settled(result.accepted)
  const { rows } = await db.query(`
    select extract(epoch from max(b.committed_at) - min(e.received_at)) as seconds,
           percentile_cont(0.5) within group (order by extract(epoch from b.committed_at - e.received_at)) * 1000 as p50,
           percentile_cont(0.99) within group (order by extract(epoch from b.committed_at - e.received_at)) * 1000 as p99,
           (select avg(size) from batches) as batch
    from events e join batches b on b.id = e.batch_id`)
  const after = cpu()
  const perEvent = (name: string) => Number((((after[name]! - before[name]!) * 1_000) / result.accepted).toFixed(1))
  return {
    'events/request': eventsPerRequest,
    'accepted/s': Math.round(result.accepted / result.seconds),
    'committed/s': Math.round(result.accepted / Number(rows[0].seconds)),
    'request p50 ms': Number(result.p50Ms.toFixed(1)),
    'request p99 ms': Number(result.p99Ms.toFixed(1)),
    'queue p50 ms': Number(Number(rows[0].p50).toFixed(1)),
    'queue p99 ms': Number(Number(rows[0].p99).toFixed(1)),
    'events/batch': Math.round(Number(rows[0].batch)),
    'api us': perEvent('api'),
    'worker us': perEvent('worker'),
    'nats us': perEvent('nats'),
    'postgres us': perEvent('postgres'),
  }
}

async function naive(eventsPerRequest: number): Promise<Case> {
  await clear()
  const child = startNode(['bench/naive.ts'], env)
  const port = Number((await line(child, /^(\d+)$/))[1])
  const result = await load('/', port, eventsPerRequest, `n${eventsPerRequest}`)
  await stopNode(child)
  if ((await count('naive_events')) !== result.accepted) throw new Error('the naive peer lost rows')
  return {
    'events/request': eventsPerRequest,
    'committed/s': Math.round(result.accepted / result.seconds),
    'request p50 ms': Number(result.p50Ms.toFixed(1)),
    'request p99 ms': Number(result.p99Ms.toFixed(1)),
  }
}

async function startWorker() {
  const child = startNode(['--max-semi-space-size=8', 'src/cli.ts', 'worker'], env)
  await line(child, /pulling/)
  meters.worker = meter(child.pid!)
  return child
}

/** Fills the stream with the workers stopped, then measures how fast a fresh worker empties it. */
async function drain(): Promise<Case> {
  await clear()
  const publisher = createPublisher({ broker, telemetry }, config)
  const traceparentOf = sampleTraceparents()
  for (let n = 0; n < backlog; n += 10_000)
    await Promise.all(
      Array.from({ length: 10 }, (_, part) =>
        // What requests of 100 leave on the stream: each has a traceparent of its own.
        publisher.publish(
          Array.from({ length: 1_000 }, (_, i) => {
            const index = n + part * 1_000 + i
            const payload = sampleEvent('b', index)
            const { id, source, type } = JSON.parse(payload)
            const traceparent = traceparentOf(index)
            return {
              id,
              source,
              type,
              payload,
              receivedMs: Date.now(),
              traceparent,
              commitReply: '',
              tenant: 'default',
              seq: 0,
              place: 0,
            }
          }),
        ),
      ),
    )
  const startedMs = Date.now()
  const worker = await startWorker()
  const before = cpu()
  const memory: number[] = []
  for (;;) {
    memory.push(meters.worker!.memoryPeakBytes())
    const info = await broker.jsm.consumers.info(STREAM, CONSUMER)
    if (info.num_pending === 0 && info.num_ack_pending === 0) break
    await pause(500)
  }
  await settled(backlog)
  const after = cpu()
  const { rows } = await db.query(
    `select extract(epoch from max(committed_at)) - $1::float8 as seconds, avg(size) as batch from batches`,
    [startedMs / 1_000],
  )
  await stopNode(worker)
  return {
    backlog,
    'committed/s': Math.round(backlog / Number(rows[0].seconds)),
    'events/batch': Math.round(Number(rows[0].batch)),
    ...Object.fromEntries(
      ['worker', 'nats', 'postgres'].map((name) => [
        `${name} us`,
        Number((((after[name]! - before[name]!) * 1_000) / backlog).toFixed(1)),
      ]),
    ),
    'worker MB at half': Math.round(memory[memory.length >> 1]! / 1e6),
    'worker MB at end': Math.round(memory.at(-1)! / 1e6),
  }
}

try {
  const api = startNode(['--max-semi-space-size=8', 'src/cli.ts', 'api'], env)
  const port = Number((await line(api, /"port":(\d+)/))[1])
  meters.api = meter(api.pid!)
  const worker = await startWorker()

  // Servers run for weeks: their first second, which goes into compiling, is not what is asked.
  await settled((await load('/v1/events', port, 100, 'warm', WARM_SECONDS)).accepted)

  const limits: number[] = []
  const cases: Case[] = []
  const peers: Case[] = []
  for (const size of sizes) {
    const limit = await direct(`d${size}`)
    limits.push(limit)
    const result = await ingest(port, size)
    cases.push({ ...result, 'of direct': Number((Number(result['committed/s']) / limit).toFixed(2)) })
    if (size <= 100) peers.push(await naive(size))
  }
  peaks.api = meters.api.memoryPeakBytes()
  peaks.worker = meters.worker!.memoryPeakBytes()
  await stopNode(worker)
  await stopNode(api)
  const drained = backlog > 0 ? await drain() : undefined
  if (drained) {
    limits.push(await direct('dd'))
    const limit = limits.at(-1)!
    drained['of direct'] = Number((Number(drained['committed/s']) / limit).toFixed(2))
  }

  console.log('\nMillrace, events over HTTP')
  console.table(cases)
  console.log('Naive peer (Koa, one INSERT per event, awaited)')
  console.table(peers)
  console.log(
    `Direct limit, events/s: ${limits.map((limit) => Math.round(limit)).join(', ')} (measured before each case)`,
  )
  if (drained) console.table([drained])
  console.log(`Peak memory: API ${Math.round(peaks.api / 1e6)} MB, worker ${Math.round(peaks.worker / 1e6)} MB`)
  mkdirSync('bench/reports', { recursive: true })
  const report = { at: new Date().toISOString(), seconds, cases, peers, limits, drained, peaks }
  writeFileSync('bench/reports/ingest.json', `${JSON.stringify(report, null, 2)}\n`)
  console.log(JSON.stringify(report))
} finally {
  await db.end()
  await broker.close()
  await telemetry.stop()
  await Promise.all([postgres.stop(), nats.stop()])
}
