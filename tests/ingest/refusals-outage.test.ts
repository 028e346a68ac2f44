/** Refused events through outages, restarts and lost answers: attempts are refusals, and nothing else. */

import { once } from 'node:events'
import { join } from 'node:path'
import { sql } from 'drizzle-orm'
import pino from 'pino'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { readQueue } from '../../src/broker/queue.ts'
import { CONSUMER, ensureStream, STREAM } from '../../src/broker/streams.ts'
import { DEAD_LETTERS, startJobs } from '../../src/db/jobs.ts'
import { consume } from '../../src/ingest/consume.ts'
import { deadLetterId } from '../../src/ingest/dead-letters.ts'
import { messageOf } from '../../src/ingest/parcel.ts'
import { store } from '../../src/ingest/publish.ts'
import { startTelemetry } from '../../src/telemetry/telemetry.ts'
import { startServers, startTestPostgres } from '../servers.ts'
import { until } from '../service.ts'
import { outgoing, poison, SMALL } from './pipeline.ts'

const servers = await startServers()
const { db, broker } = servers
const config = { ...servers.config, ...SMALL }
const log = pino({ level: 'silent' })
const telemetry = await startTelemetry({ log }, config, 'millrace-test')
await ensureStream(broker, config)
const jobs = await startJobs(config.DATABASE_URL)
let { postgres } = servers
test.after(async () => {
  await jobs.stop()
  await telemetry.stop()
  await broker.close()
  await servers.database.close()
  await Promise.all([postgres.stop(), servers.nats.stop()])
})

function startWorker() {
  const stopping = new AbortController()
  const working = consume({ db, broker, jobs, log, telemetry }, config, stopping.signal)
  return async () => {
    stopping.abort()
    await working
  }
}

const jobsOf = async (name: string) =>
  (
    await db.execute<{ id: string; state: string; data: any }>(
      sql`select id, state, data from pgboss.job where name = ${name} order by created_on`,
    )
  ).rows
const idle = () => until(async () => (await readQueue(broker)).depth === 0)

test('an outage of Postgres and restarts of the worker use no attempt up', async () => {
  config.RETRY_DELAY_MS = 300
  let stop = startWorker()
  await store(
    broker,
    [outgoing('good'), poison('bad')].map((event) => messageOf([event])),
    5_000,
  )
  await until(async () => (await jobsOf('failed-batches')).length === 1)
  postgres.process.kill('SIGKILL')
  await once(postgres.process, 'exit')
  // Delivered again while there is nothing to ask, and given back by two workers that are stopped.
  const deliveries = async () => (await broker.jsm.consumers.info(STREAM, CONSUMER)).delivered.consumer_seq
  for (let restart = 0; restart < 2; restart++) {
    const before = await deliveries()
    await until(async () => (await deliveries()) > before)
    await stop()
    stop = startWorker()
  }
  postgres = await startTestPostgres(join(servers.dir, 'pg'), { port: postgres.port })
  process.once('exit', () => postgres.process.kill('SIGKILL'))
  await idle()
  await stop()
  const [letter] = await jobsOf(DEAD_LETTERS)
  assert.is(letter!.data.attempts, 3)
  assert.ok(letter!.data.deliveries > 3, `${letter!.data.deliveries} deliveries`)
  assert.equal(
    (await jobsOf('failed-batches')).map(({ state, data }) => [state, data.attempt]),
    [
      ['completed', 1],
      ['completed', 2],
    ],
  )
  const { rows } = await db.execute(sql`select id from events`)
  assert.equal(rows, [{ id: 'good' }])
})

test('a letter whose termination was lost on the way is not written again, even after it was discarded', async () => {
  config.RETRY_DELAY_MS = 10
  await db.execute(sql`delete from pgboss.job where name in ('dead-letters', 'failed-batches')`)
  const [seq] = (await store(broker, [messageOf([poison('lost')])], 5_000)) as [number]
  // As if the worker had died between its COMMIT and its answer, and an operator had been quicker than the redelivery.
  const { time } = (await broker.jsm.direct.getMessage(STREAM, { seq }))!
  const nanos = (await broker.jsm.streams.getMessage(STREAM, { seq }))!.timestamp.match(/\.(\d+)Z/)![1]!.padEnd(9, '0')
  const publishedMs = Math.floor(time.getTime() / 1_000) * 1_000 + Number(nanos.slice(0, 6)) / 1_000
  const id = deadLetterId({ seq, place: 0, publishedMs })
  await jobs.insert(DEAD_LETTERS, [{ id, data: { id: 'lost' } }])
  await jobs.cancel(DEAD_LETTERS, id)
  const stop = startWorker()
  await idle()
  await stop()
  assert.equal(
    (await jobsOf(DEAD_LETTERS)).map((letter) => [letter.id, letter.state, letter.data]),
    [[id, 'cancelled', { id: 'lost' }]],
  )
  assert.equal(
    (await jobsOf('failed-batches')).map(({ state }) => state),
    ['completed'],
  )
})

test.run()
