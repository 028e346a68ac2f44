import { sql } from 'drizzle-orm'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { CONSUMER, STREAM } from '../../src/broker/streams.ts'
import { messageOf, pack } from '../../src/ingest/parcel.ts'
import { startServers } from '../servers.ts'
import { until } from '../service.ts'
import { outgoing, poison, startPipeline } from './pipeline.ts'

let servers: Awaited<ReturnType<typeof startServers>>
let pipeline: Awaited<ReturnType<typeof startPipeline>>
test.before(async () => {
  servers = await startServers()
  pipeline = await startPipeline(servers, { WORKER_BATCH_SIZE: 4 })
})
test.before.each(() => pipeline.clear())
test.after(async () => {
  await pipeline.stop()
  await servers.stop()
})

const lastSeq = async () => (await servers.broker.jsm.streams.info(STREAM)).state.last_seq
const named = (count: number, name: string) => Array.from({ length: count }, (_, n) => outgoing(`${name}-${n}`))

test('events of one type share a message, in their order', () => {
  const [a, b, c] = [outgoing('a'), outgoing('b', { type: 'order.paid' }), outgoing('c')]
  assert.equal(
    pack([a!, b!, c!]).map((list) => list.map(({ id }) => id)),
    [['a', 'c'], ['b']],
  )
})

test('a message holds 250 events or 128 KiB at most, and one event however large', () => {
  const sizes = (events: ReturnType<typeof named>) => pack(events).map((parcel) => parcel.length)
  assert.equal(sizes(named(600, 'many')), [250, 250, 100])
  const large = Array.from({ length: 3 }, (_, n) => outgoing(`large-${n}`, { data: 'x'.repeat(60_000) }))
  assert.equal(sizes(large), [2, 1])
  assert.equal(sizes([outgoing('huge', { data: 'x'.repeat(400_000) }), outgoing('small')]), [1, 1])
})

test('a line end in an identity stays out of the headers, and in the payload', () => {
  const { headerLines, payload } = messageOf([outgoing('two\r\nlines')])
  assert.not.match(headerLines, 'lines')
  assert.is(JSON.parse(payload.toString()).id, 'two\r\nlines')
})

test('a message larger than a batch is cut, and acknowledged after its last part', async () => {
  const before = await lastSeq()
  await pipeline.publishTogether(...named(11, 'cut'))
  assert.is(await lastSeq(), before + 1)
  await pipeline.settled(11, 0)
  const { rows } = await servers.database.pool.query(
    'select count(distinct batch_id)::int as batches, array_agg(stream_place order by stream_place) as places from events',
  )
  assert.equal(rows[0].places, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10])
  assert.ok(rows[0].batches >= 3, `${rows[0].batches} batches`)
  assert.is((await servers.broker.jsm.consumers.info(STREAM, CONSUMER)).num_ack_pending, 0)
})

for (const at of [0, 3, 4, 6])
  test(`poison at place ${at} of a parcel is tried again and buried; the others are stored at once`, async () => {
    const events = named(7, 'good')
    events[at] = poison('bad')
    const seq = await pipeline.publishTogether(...events)
    await pipeline.settled(6, 1)
    const { rows } = await servers.database.pool.query(
      `select data from pgboss.job where name = 'dead-letters' and state = 'created'`,
    )
    const [{ data: letter }] = rows
    assert.is(letter.id, 'bad')
    assert.is(letter.attempts, 3)
    assert.is(letter.payload, events[at].payload)
    // The name it had in its parcel, which ?wait=committed and every record know it by.
    assert.equal([letter.streamSeq, letter.streamPlace ?? 0], [seq, at])
    assert.ok((await pipeline.failedBatches()).every(({ state }) => state === 'completed'))
  })

test('several refused events of a message, some good by the next try, are each counted for itself', async () => {
  await servers.db.execute(sql`alter table events add constraint refused check (type <> 'refused') not valid`)
  await pipeline.publishTogether(
    outgoing('good', { type: 'refused', time: 'last week' }),
    outgoing('later', { type: 'refused' }),
    outgoing('too', { type: 'refused' }),
  )
  await until(async () => (await pipeline.failedBatches()).length > 0)
  await servers.db.execute(sql`alter table events drop constraint refused`)
  await pipeline.settled(2, 1)
  assert.equal(await pipeline.rows(), ['later', 'too'])
  assert.equal(await pipeline.letters(), ['good'])
  await until(async () => (await pipeline.failedBatches()).every(({ state }) => state === 'completed'))
})

test('of repeats within a parcel one is stored', async () => {
  await pipeline.publishTogether(outgoing('same'), outgoing('other'), outgoing('same'))
  await pipeline.settled(2, 0)
  assert.equal(await pipeline.rows(), ['other', 'same'])
})

test('each event of a parcel has its own answer to ?wait=committed', async () => {
  const post = async (...ids: string[]) => {
    const response = await fetch(`${pipeline.url}/v1/events?wait=committed`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify(ids.map((id) => ({ type: 'order.placed', source: 'test', id }))),
    })
    const { events } = (await response.json()) as { events: { id: string; status: string }[] }
    return events
  }
  await post('old')
  const events = await post('old', 'new-1', 'new-2', 'new-1')
  assert.equal(
    events.map(({ id, status }) => [id, status]),
    [
      ['old', 'duplicate'],
      ['new-1', 'inserted'],
      ['new-2', 'inserted'],
      ['new-1', 'duplicate'],
    ],
  )
})

test('requests that share a message keep their own trace, time and waiter', async () => {
  const traceOf = (digit: string) => `00-${digit.repeat(32)}-b7ad6b7169203331-00`
  const heard: string[] = []
  const subscription = servers.broker.nc.subscribe('heard.*', {
    callback: (_, { subject }) => void heard.push(subject),
  })
  const request = (digit: string, count: number) =>
    named(count, digit).map((event) => ({
      ...event,
      traceparent: traceOf(digit),
      receivedMs: 1_700_000_000_000 + Number(digit),
      commitReply: `heard.${digit}`,
    }))
  // The first two leave at once, each on a flight of its own; what comes while they are out shares the next.
  const before = await lastSeq()
  await Promise.all(['1', '2', '3', '4', '5', '6'].map((digit) => pipeline.publishTogether(...request(digit, 2))))
  assert.ok((await lastSeq()) - before < 6)
  await pipeline.settled(12, 0)
  const { rows } = await servers.database.pool.query(
    `select left(id, 1) as digit, replace(trace_id::text, '-', '') as trace, count(*)::int as events,
       (extract(epoch from received_at) * 1000)::float8 as ms
     from events group by 1, 2, 4 order by 1`,
  )
  assert.equal(
    rows,
    ['1', '2', '3', '4', '5', '6'].map((digit) => ({
      digit,
      trace: digit.repeat(32),
      events: 2,
      ms: 1_700_000_000_000 + Number(digit),
    })),
  )
  await until(() => new Set(heard).size === 6)
  subscription.unsubscribe()
})

test('another producer may send one event, or several with U+001E between them', async () => {
  const text = (id: string) => JSON.stringify({ id, source: 'theirs', type: 'a' })
  await servers.broker.js.publish('events.a', text('one'))
  await servers.broker.js.publish('events.a', `${text('two')}\u001e${text('three')}\u001e`)
  // The empty text after the last separator is no event.
  await pipeline.settled(3, 1)
  assert.equal(await pipeline.rows(), ['one', 'three', 'two'])
  await until(async () => (await servers.broker.jsm.consumers.info(STREAM, CONSUMER)).num_ack_pending === 0)
})

test.run()
