/**
 * Load beyond capacity: measures how fast the system commits a backlog, then offers three times
 * that, then next to nothing. Refusals must say when to come back, what is accepted must not wait longer and longer,
 * memory must stay flat, and afterwards the first light request must go through as on an idle system.
 */

import { join } from 'node:path'
import { setTimeout as pause } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import pg from 'pg'
import type { LoadOptions } from './load.ts'
import { judge, type Verdict } from './oracle.ts'
import { footprint, startChild } from './processes.ts'
import { type Rig, startRig } from './rig.ts'
import { DEFAULT_LOAD } from './run-fault.ts'
import { percentile } from './statistics.ts'
import { waitFor } from './wait.ts'

const LOAD = fileURLToPath(new URL('load.ts', import.meta.url))

const MEASURE_MS = 6_000
const FLOOD_MS = 20_000
const TIMES = 3
const EVENTS_PER_REQUEST = 50
/** Behind by more, and the API refuses: seconds of what the workers commit, as an operator would set it. */
const DEPTH_SECONDS_MAX = 3

/** The promises; the p99 is what a full queue and a busy processor may cost a request, not what an idle one costs. */
const ACCEPTED_P99_MS_MAX = 5_000
/** Over what each process held before; buffers fill and the collector takes its time, but nothing may pile up. */
const MEMORY_GROWTH_MB_MAX = 150
const RECOVERY_MS_MAX = 20_000

/** One worker of fixed batches, so that the limit is the commit and the machine still has room for the load. */
const NARROW = {
  WORKER_POOL_SIZE: '1',
  WORKER_ADAPTIVE: 'false',
  WORKER_BATCH_SIZE: '20',
  WORKER_BATCH_TIMEOUT: '0',
  STREAM_BYTES_MAX: String(2 ** 30),
}

export async function runOverload(): Promise<string[]> {
  const first = await startRig({ natsNodes: 1, apis: 1, workers: 1, env: NARROW })
  const capacity = await measureCapacity(first).finally(first.stop)
  const depthMax = String(Math.ceil(capacity * DEPTH_SECONDS_MAX))
  const rig = await startRig({ natsNodes: 1, apis: 1, workers: 1, env: { ...NARROW, QUEUE_DEPTH_MAX: depthMax } })
  try {
    return await flood(rig, capacity)
  } finally {
    await rig.stop()
  }
}

/** A backlog that the paused worker finds, and how fast it commits it with the machine to itself. */
async function measureCapacity(rig: Rig): Promise<number> {
  const worker = rig.workers[0]!
  worker.signal('SIGSTOP')
  const load = start(rig, 'backlog', { requestsPerSecond: 10_000, concurrencyMax: 16 })
  await pause(MEASURE_MS)
  load.child.signal('SIGTERM')
  await load.child.exited
  worker.signal('SIGCONT')
  await waitFor('the backlog to drain', 120_000, async () => (await rig.depth()) === 0)
  const { rows } = await query<{ rate: number }>(
    rig,
    `select count(*) / extract(epoch from max(at) - min(at))::float8 as rate from oracle.inserts where source = 'backlog'
     and at > (select min(at) + interval '1 second' from oracle.inserts where source = 'backlog')`,
  )
  return rows[0]!.rate
}

async function flood(rig: Rig, capacity: number): Promise<string[]> {
  const offered = TIMES * capacity
  const memory = watchMemory(rig)
  const load = start(rig, 'flood', { requestsPerSecond: offered / EVENTS_PER_REQUEST, concurrencyMax: 256, retryMs: 0 })
  await pause(FLOOD_MS)
  load.child.signal('SIGTERM')
  await load.child.exited
  const endedMs = Date.now()
  const peaks = memory.stop()

  const light = start(rig, 'light', { requestsPerSecond: 5, eventsPerRequest: 1, concurrencyMax: 8, retryMs: 100 })
  await waitFor('a light request to be stored after the flood', 60_000, async () => {
    const { rows } = await query<{ stored: number }>(
      rig,
      `select count(*)::int as stored from oracle.inserts where source = 'light'`,
    )
    return rows[0]!.stored > 0
  })
  const recoveryMs = Date.now() - endedMs
  light.child.signal('SIGTERM')
  await light.child.exited
  await waitFor('everything to be acknowledged', 120_000, async () => (await rig.depth()) === 0)

  const verdict = await judge(rig.databaseUrl, 'flood', load.ledger, 0)
  return report({ verdict, capacity, offered, recoveryMs, ...peaks })
}

type Report = {
  verdict: Verdict
  capacity: number
  offered: number
  recoveryMs: number
  api: Growth
  worker: Growth
}

function report({ verdict, capacity, offered, recoveryMs, api, worker }: Report): string[] {
  const { record } = verdict
  const latencies = record.accepted.map(({ latencyMs }) => latencyMs)
  const p99 = percentile(latencies, 0.99)
  const broken = record.refused.filter(({ status }) => status === 0).length
  const of = (status: number) => record.refused.filter((refusal) => refusal.status === status).length
  const lines: [string, string | number][] = [
    ['committed/s from a backlog', Math.round(capacity)],
    ['offered/s', Math.round(offered)],
    ['requests accepted', record.accepted.length],
    ['requests answered 503 / 429, with Retry-After', `${of(503)} / ${of(429)}`],
    ['requests without an answer', broken],
    ['accepted p50 / p99 ms', `${percentile(latencies, 0.5).toFixed(0)} / ${p99.toFixed(0)}`],
    ['memory MB, start to peak: API / worker', `${grew(api)} / ${grew(worker)}`],
    ['recovery s', (recoveryMs / 1_000).toFixed(2)],
    [
      'answered / committed / lost / doubled',
      `${verdict.answered} / ${verdict.committed} / ${verdict.lost.length} / ${verdict.duplicated.length}`,
    ],
  ]
  for (const [what, figure] of lines) console.log(`  ${what.padEnd(46)}${figure}`)
  const checks: [boolean, string][] = [
    [of(503) + of(429) > 0, 'nothing was refused: the load was not beyond capacity'],
    [broken === 0, `${broken} requests had no answer`],
    [p99 <= ACCEPTED_P99_MS_MAX, `p99 of what was accepted was ${p99} ms`],
    [api.peakMb - api.fromMb <= MEMORY_GROWTH_MB_MAX, `memory of the API went from ${grew(api)} MB`],
    [worker.peakMb - worker.fromMb <= MEMORY_GROWTH_MB_MAX, `memory of the worker went from ${grew(worker)} MB`],
    [recoveryMs <= RECOVERY_MS_MAX, `recovery took ${recoveryMs} ms`],
    [verdict.lost.length === 0, `${verdict.lost.length} events lost`],
    [verdict.duplicated.length === 0, `${verdict.duplicated.length} events doubled`],
    [verdict.wrong.length === 0, `wrong: ${verdict.wrong.slice(0, 3).join('; ')}`],
  ]
  return checks.filter(([good]) => !good).map(([, complaint]) => `overload: ${complaint}`)
}

const grew = ({ fromMb, peakMb }: Growth) => `${fromMb.toFixed(0)} to ${peakMb.toFixed(0)}`

function start(rig: Rig, run: string, load: Partial<LoadOptions>) {
  const ledger = join(rig.dir, `${run}.ledger`)
  const options: LoadOptions = {
    ...DEFAULT_LOAD,
    eventsPerRequest: EVENTS_PER_REQUEST,
    poisonEvery: 0,
    ...load,
    run,
    urls: rig.apis.map((api) => api.url),
    ledger,
  }
  return { ledger, child: startChild(LOAD, [JSON.stringify(options)], {}) }
}

type Growth = { fromMb: number; peakMb: number }

function watchMemory(rig: Rig): { stop: () => { api: Growth; worker: Growth } } {
  const memoryMb = (service: Rig['apis'][number]) => footprint(service.child().pid).memoryMb
  const growth = (service: Rig['apis'][number]) => ({ fromMb: memoryMb(service), peakMb: 0 })
  const [apiProcess, workerProcess] = [rig.apis[0]!, rig.workers[0]!]
  const [api, worker] = [growth(apiProcess), growth(workerProcess)]
  const timer = setInterval(() => {
    api.peakMb = Math.max(api.peakMb, memoryMb(apiProcess))
    worker.peakMb = Math.max(worker.peakMb, memoryMb(workerProcess))
  }, 250)
  return {
    stop: () => {
      clearInterval(timer)
      return { api, worker }
    },
  }
}

async function query<Row extends pg.QueryResultRow>(rig: Rig, text: string) {
  const client = new pg.Client({ connectionString: rig.databaseUrl })
  await client.connect()
  try {
    return await client.query<Row>(text)
  } finally {
    await client.end()
  }
}
