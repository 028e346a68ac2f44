/**
 * `make benchmark-compare`: the stages of tuning side by side, each against what is expected of it.
 * For every stage of every round: a fresh database and a fresh nats-server, then
 * 1. a light load of single events, for the queue latency of a system that is not busy
 * 2. a backlog, which a new worker process drains for a few seconds while its round trips are counted
 * Rounds go through the stages in alternating order, so that noise of the machine hits all alike; a gain is the median
 * of the rounds' own ratios.
 */

import { mkdirSync, writeFileSync } from 'node:fs'
import { availableParallelism, loadavg } from 'node:os'
import { join } from 'node:path'
import { setTimeout as pause } from 'node:timers/promises'
import { fileURLToPath, pathToFileURL } from 'node:url'
import pino from 'pino'
import { type Broker, connectBroker } from '../../src/broker/connect.ts'
import { CONSUMER, ensureStream, STREAM } from '../../src/broker/streams.ts'
import { loadConfig } from '../../src/config.ts'
import type { OutgoingEvent } from '../../src/ingest/event.ts'
import { messageOf } from '../../src/ingest/parcel.ts'
import { BATCH_MESSAGES_MAX, createPublisher, type Publisher, store } from '../../src/ingest/publish.ts'
import { startTelemetry } from '../../src/telemetry/telemetry.ts'
import { positive } from './environment.ts'
import { type Comparison, type Measured, STAGES, type Stage } from './gains.ts'
import { dataFolder, once, ownNats, ownPostgres, ownProcess } from './service.ts'
import { stagesPage, stagesText } from './stages-page.ts'

const rounds = positive('BENCHMARK_ROUNDS', 3)
const backlog = positive('BENCHMARK_BACKLOG', 60_000)
const lightSeconds = positive('BENCHMARK_LIGHT_SECONDS', 3)
const drainSeconds = positive('BENCHMARK_DRAIN_SECONDS', 4)
const reports = process.env.BENCHMARK_REPORTS ?? fileURLToPath(new URL('../reports', import.meta.url))

/** Below what one worker with batches of one commits on a machine that has nothing else to do, so that no stage queues. */
const LIGHT_EVENTS_PER_S = 100
const CURVE_MS = 50

const readLatency = `
  select percentile_cont(array[0.5, 0.99]) within group (order by extract(epoch from committed_at - received_at)::float8 * 1000) as ms
  from events join batches on batches.id = batch_id where source = 'light'`

/** The first batch starts the clock: what it took to start and to fill it is not the stage's speed. */
const readDrain = `
  with backlog as (select distinct batch_id from events where source = 'backlog'),
       drained as (select * from batches where id in (select batch_id from backlog)),
       first as (select * from drained order by committed_at limit 1)
  select (sum(inserted) - (select inserted from first))::float8 as after_first, sum(inserted)::int as committed,
         extract(epoch from max(committed_at) - min(committed_at))::float8 as seconds, avg(size)::float8 as size, count(*)::int as batches,
         (select count(*)::int from events where source = 'backlog') as rows
  from drained`

const readCurve = `
  select at_s::float8, (sum(sum(inserted)) over (order by at_s))::int as events
  from (
    select ceil(extract(epoch from committed_at - min(committed_at) over ()) * 1000 / $1) * $1 / 1000 as at_s, inserted
    from batches where id in (select batch_id from events where source = 'backlog')
  ) as moments
  group by at_s order by at_s`

const readCommits = 'select xact_commit::int as commits from pg_stat_database where datname = $1'

/** A made-up order of about 300 bytes. */
function makeEvent(source: string, n: number): OutgoingEvent {
  const id = String(n).padStart(9, '0')
  const data = {
    orderId: id,
    customer: `c-${n % 5_000}`,
    lines: [{ sku: `sku-${n % 997}`, quantity: 1 + (n % 5), price: 19.9 }],
  }
  const event = { specversion: '1.0', id, source, type: 'order.placed', time: new Date().toISOString(), data }
  return {
    id,
    source,
    type: event.type,
    payload: JSON.stringify(event),
    receivedMs: Date.now(),
    traceparent: '',
    commitReply: '',
    tenant: 'default',
    seq: 0,
    place: 0,
  }
}

/** Single events at a steady pace; each counts from its own moment, late or not. */
async function publishLight(publisher: Publisher): Promise<void> {
  const startedAt = performance.now()
  for (let n = 0; n < LIGHT_EVENTS_PER_S * lightSeconds; n++) {
    await pause(Math.max(0, startedAt + (n * 1_000) / LIGHT_EVENTS_PER_S - performance.now()))
    await publisher.publish([makeEvent('light', n)])
  }
}

/** Each event in a message to itself, as the stages count messages. */
async function publishBacklog(broker: Broker): Promise<void> {
  for (let from = 0; from < backlog; from += BATCH_MESSAGES_MAX) {
    const count = Math.min(BATCH_MESSAGES_MAX, backlog - from)
    await store(
      broker,
      Array.from({ length: count }, (_, i) => messageOf([makeEvent('backlog', from + i)])),
      60_000,
    )
  }
}

/** Waits for what the consumer says to be so, or until the time is over. */
async function untilConsumer(
  { jsm }: Broker,
  holds: (consumer: { num_waiting: number; num_pending: number; num_ack_pending: number }) => boolean,
  msMax = 60_000,
): Promise<void> {
  const deadline = performance.now() + msMax
  while (performance.now() < deadline) {
    if (holds(await jsm.consumers.info(STREAM, CONSUMER))) return
    await pause(50)
  }
}

/** Messages that workers have sent to nats-server, ended ones included: pulls, acknowledgements and health reports. */
async function workerMessages(monitor: string): Promise<number> {
  const answer = await fetch(`${monitor}/connz?state=all&limit=1000`)
  const { connections } = (await answer.json()) as { connections: { name?: string; in_msgs: number }[] }
  return connections.filter(({ name }) => name === 'millrace worker').reduce((sum, { in_msgs }) => sum + in_msgs, 0)
}

type Rig = { dir: string; logFolder: string; postgres: Awaited<ReturnType<typeof ownPostgres>> }

async function runStage({ dir, logFolder, postgres }: Rig, stage: Stage, round: number): Promise<Measured> {
  const name = `stage_${stage.key}_${round}`
  const admin = postgres.url.replace(/millrace$/, 'postgres')
  await once(admin, `create database ${name} template millrace`)
  const databaseUrl = postgres.url.replace(/millrace$/, name)
  const nats = await ownNats(join(dir, name))
  const config = { ...loadConfig({}), DATABASE_URL: databaseUrl, NATS_URL: nats.url }
  const broker = await connectBroker(config, 'benchmark')
  await ensureStream(broker, config)
  const telemetry = await startTelemetry({ log: pino({ level: 'warn' }) }, config, 'millrace-benchmark')
  const publisher = createPublisher({ broker, telemetry }, config)
  const startWorker = () =>
    ownProcess(
      'worker',
      { ...stage.env, DATABASE_URL: databaseUrl, NATS_URL: nats.url },
      join(logFolder, `${name}.log`),
    )

  let worker = startWorker()
  await untilConsumer(broker, ({ num_waiting }) => num_waiting > 0)
  await publishLight(publisher)
  await untilConsumer(broker, ({ num_pending, num_ack_pending }) => num_pending + num_ack_pending === 0)
  await worker.stop()
  const [latency] = await once(databaseUrl, readLatency)

  await publishBacklog(broker)
  const messagesBefore = await workerMessages(nats.monitor)
  const commitsBefore = (await once(admin, readCommits, [name]))[0]!.commits
  let pulls = 0
  // The server hands every pull request to whoever listens, beside acting on it.
  broker.nc.subscribe(`$JS.API.CONSUMER.MSG.NEXT.${STREAM}.${CONSUMER}`, { callback: () => void pulls++ })
  await broker.nc.flush()
  worker = startWorker()
  await untilConsumer(broker, ({ num_pending }) => num_pending < backlog)
  await untilConsumer(broker, ({ num_pending }) => num_pending === 0, drainSeconds * 1_000)
  // Once its connections are closed, both servers have counted all that it did.
  await worker.stop()
  const messages = (await workerMessages(nats.monitor)) - messagesBefore
  const commits = (await once(admin, readCommits, [name]))[0]!.commits - commitsBefore
  const [drain] = await once(databaseUrl, readDrain)
  const curve = await once(databaseUrl, readCurve, [CURVE_MS])
  await telemetry.stop()
  await broker.close()
  await nats.stop()
  await once(admin, `drop database ${name}`)
  if (drain!.rows !== drain!.committed)
    throw new Error(`${stage.name}: ${drain!.rows} rows, but batches say ${drain!.committed}`)
  const per1000 = (count: number) => (count * 1_000) / drain!.rows
  return {
    committed: drain!.rows,
    eventsPerS: drain!.after_first / drain!.seconds,
    batchSize: drain!.size,
    insertsPer1000: per1000(drain!.batches),
    commitsPer1000: per1000(commits),
    pullsPer1000: per1000(pulls),
    messagesPer1000: per1000(messages),
    lightMs: { p50: latency!.ms[0], p99: latency!.ms[1] },
    curve: curve.map(({ at_s, events }) => [at_s, events]),
  }
}

async function main(): Promise<void> {
  const loadBefore = loadavg()[0]!
  const startedAt = new Date().toISOString()
  const folder = join(reports, `compare-${startedAt.slice(0, 19).replace(/[-:]/g, '').replace('T', '-')}`)
  mkdirSync(folder, { recursive: true })
  const dir = dataFolder()
  const rig: Rig = { dir, logFolder: folder, postgres: await ownPostgres(dir) }
  const measured: Measured[][] = STAGES.map(() => [])
  for (let round = 0; round < rounds; round++) {
    const order = STAGES.map((_, index) => (round % 2 === 0 ? index : STAGES.length - 1 - index))
    for (const index of order) {
      const stage = STAGES[index]!
      const result = await runStage(rig, stage, round)
      measured[index]!.push(result)
      console.log(`round ${round + 1}/${rounds}  ${stage.name.padEnd(22)} ${Math.round(result.eventsPerS)} events/s`)
    }
  }
  await rig.postgres.stop()
  const comparison: Comparison = {
    startedAt,
    rounds,
    backlog,
    lightEventsPerS: LIGHT_EVENTS_PER_S,
    cores: availableParallelism(),
    loadBefore,
    measured,
  }
  writeFileSync(join(folder, 'summary.json'), `${JSON.stringify(comparison, null, 1)}\n`)
  writeFileSync(join(folder, 'report.html'), stagesPage(comparison))
  console.log(`\n${stagesText(comparison)}\n\nReport: ${pathToFileURL(join(folder, 'report.html'))}`)
  process.exit(0)
}

await main()
