import { sql } from 'drizzle-orm'
import { headers } from 'nats'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { readQueue } from '../../src/broker/queue.ts'
import type { DeadLetter } from '../../src/ingest/dead-letters.ts'
import { ALLOWANCE } from '../../src/ingest/suspicion.ts'
import { startServers } from '../servers.ts'
import { until } from '../service.ts'
import { outgoing, poison, startPipeline, TRACEPARENT } from './pipeline.ts'

const servers = await startServers()
const pipeline = await startPipeline(servers)
test.before.each(pipeline.clear)
test.after(async () => {
  await pipeline.stop()
  await servers.stop()
})

const allLetters = async () =>
  (
    await servers.db.execute<{ data: DeadLetter }>(
      sql`select data from pgboss.job where name = 'dead-letters' order by data->>'streamSeq'`,
    )
  ).rows.map(({ data }) => data)

const SIZE = 9
const placements = { first: [0], middle: [4], last: [8], several: [0, 3, 4, 8], all: [0, 1, 2, 3, 4, 5, 6, 7, 8] }
for (const [name, bad] of Object.entries(placements))
  test(`poison at the ${name} of a batch harms only itself`, async () => {
    const events = Array.from({ length: SIZE }, (_, i) => (bad.includes(i) ? poison(`e${i}`) : outgoing(`e${i}`)))
    await pipeline.publish(...events)
    await pipeline.settled(SIZE - bad.length, bad.length)
    assert.equal(
      await pipeline.letters(),
      bad.map((i) => `e${i}`),
    )
    assert.equal([...(await pipeline.rows()), ...(await pipeline.letters())].sort(), events.map(({ id }) => id).sort())
  })

test('a dead letter keeps the event byte for byte, with its cause, attempts, times and trace', async () => {
  const bad = poison('kept')
  const seq = await pipeline.publish(bad)
  await pipeline.settled(0, 1)
  const [letter] = await allLetters()
  assert.is(letter!.payload, bad.payload)
  assert.is(letter!.source, 'test')
  assert.is(letter!.type, 'order.placed')
  assert.is(letter!.code, '22007')
  assert.match(letter!.error, 'invalid input syntax')
  assert.is(letter!.attempts, 3)
  assert.is(letter!.streamSeq, seq)
  assert.is(letter!.receivedAt, new Date(bad.receivedMs).toISOString())
  assert.is(letter!.traceparent.slice(3, 35), TRACEPARENT.slice(3, 35))
  assert.equal(letter!.headers['Millrace-Id'], ['kept'])
  const { rows: audit } = await servers.db.execute(
    sql`select action, source, event_id, type, code, detail->>'attempts' as attempts from dead_letter_audit`,
  )
  assert.equal(audit, [
    { action: 'recorded', source: 'test', event_id: 'kept', type: 'order.placed', code: '22007', attempts: '3' },
  ])
})

test('each failed attempt is recorded, and completed by the next one', async () => {
  const seq = await pipeline.publish(outgoing('good'), poison('bad'), outgoing('fine'))
  await pipeline.settled(2, 1)
  const records = await pipeline.failedBatches()
  assert.equal(
    records.map(({ state, data }) => [state, data.attempt, data.sqlstate]),
    [
      ['completed', 1, '22007'],
      ['completed', 2, '22007'],
    ],
  )
  assert.is(records[0]!.data.size, 3)
  const [failure] = records[0]!.data.failures
  assert.is(failure.seq, seq + 1)
  assert.is(failure.traceId, TRACEPARENT.slice(3, 35))
  assert.match(failure.error, 'last week')
})

test('a redelivery that succeeds completes the record, and there is no dead letter', async () => {
  await servers.db.execute(sql`alter table events add constraint refused check (type <> 'refused') not valid`)
  await pipeline.publish(outgoing('later', { type: 'refused' }))
  await until(async () => (await pipeline.failedBatches()).length > 0)
  await servers.db.execute(sql`alter table events drop constraint refused`)
  await pipeline.settled(1, 0)
  await until(async () => (await pipeline.failedBatches()).every(({ state }) => state === 'completed'))
})

test('a repeat of a refused event is judged on its own', async () => {
  await pipeline.publish(poison('twice'), outgoing('twice'), poison('same'), poison('same'))
  // At its next attempt the bad one of `twice` is a duplicate of the good one.
  await pipeline.settled(1, 2)
  assert.equal(await pipeline.rows(), ['twice'])
  assert.equal(await pipeline.letters(), ['same', 'same'])
})

test('whatever stands on the stream becomes a dead letter that gives it back unchanged', async () => {
  const notUtf8 = new Uint8Array([0x7b, 0xff, 0xfe, 0x00, 0x7d])
  const identified = headers()
  identified.set('Millrace-Id', 'shared')
  identified.set('Millrace-Source', 'test')
  const raw: { data: Uint8Array; headers?: ReturnType<typeof headers>; code: string }[] = [
    { data: Buffer.from('not json'), code: 'unreadable' },
    { data: notUtf8, code: 'unreadable' },
    { data: notUtf8, headers: identified, code: 'unreadable' },
    { data: Buffer.from(''), code: 'unreadable' },
    { data: Buffer.from('{"type":"a"}'), code: 'unreadable' },
    { data: Buffer.from('null'), code: 'unreadable' },
    { data: Buffer.from('{"id":"no type","source":"s"}'), code: '23502' },
    { data: Buffer.from('\ufeff{"id":"bom","source":"s","type":"a"}'), code: '22P02' },
    { data: Buffer.from('{"id":"nul","source":"s","type":"a","data":"\\u0000"}'), code: '22P05' },
    { data: Buffer.from('{"id":"a\\u0000","source":"s\\ud800","type":"a"}'), code: '22P05' },
    { data: Buffer.from(`{"id":"${'x'.repeat(100)}","source":"${'ź'.repeat(90_000)}","type":"a"}`), code: '' },
  ]
  for (const { data, headers: given } of raw)
    await servers.broker.js.publish('events.raw', data, given === undefined ? {} : { headers: given })
  await pipeline.publish(outgoing('shared'))
  await until(
    async () => (await pipeline.letters()).length >= raw.length - 1 && (await pipeline.rows()).includes('shared'),
  )
  await until(async () => (await readQueue(servers.broker)).depth === 0)
  const bytes = (letter: DeadLetter) =>
    letter.payload === undefined ? Buffer.from(letter.payloadBase64!, 'base64') : Buffer.from(letter.payload)
  const found = (await allLetters()).map((letter) => `${letter.code} ${bytes(letter).toString('hex')}`).sort()
  // The last one compresses well enough for the index, or does not: both are right.
  const expected = raw.slice(0, -1).map(({ code, data }) => `${code} ${Buffer.from(data).toString('hex')}`)
  for (const each of expected) assert.ok(found.includes(each), each.slice(0, 200))
})

test('while failures cannot be recorded the refused are held, the others commit, and no attempt is used up', async () => {
  await servers.db.execute(sql`alter table pgboss.job rename to job_away`)
  await servers.db.execute(sql`alter table pgboss.job_common rename to job_common_away`)
  await pipeline.publish(outgoing('good'), poison('bad'))
  await until(async () => {
    const { body } = await pipeline.get('/v1/workers')
    return body.processes[0]?.workers[0].state === 'holding'
  })
  assert.equal(await pipeline.rows(), ['good'])
  await servers.db.execute(sql`alter table pgboss.job_common_away rename to job_common`)
  await servers.db.execute(sql`alter table pgboss.job_away rename to job`)
  await pipeline.settled(1, 1)
  const [letter] = await allLetters()
  assert.is(letter!.attempts, 3)
})

test('when everything is refused the system is suspected, dead letters are held back, and all commits once it recovers', async () => {
  const count = 6 * ALLOWANCE
  await servers.db.execute(sql`alter table events add constraint broken check (false) not valid`)
  await pipeline.publish(...Array.from({ length: count }, (_, i) => outgoing(`m${i}`)))
  await until(async () => /millrace_system_suspected\S* 1/.test(await pipeline.telemetry.metrics.render()))
  await until(async () => {
    const { body } = await pipeline.get('/v1/workers')
    return body.processes[0]?.workers[0].state === 'holding'
  })
  const dead = (await pipeline.letters()).length
  assert.ok(dead <= ALLOWANCE, `${dead} dead letters`)
  await servers.db.execute(sql`alter table events drop constraint broken`)
  await until(async () => (await pipeline.rows()).length >= count - ALLOWANCE)
  await until(async () => (await readQueue(servers.broker)).depth === 0)
  const letters = await pipeline.letters()
  assert.ok(letters.length <= ALLOWANCE, `${letters.length} dead letters`)
  assert.is((await pipeline.rows()).length + letters.length, count)
  await until(async () => /millrace_system_suspected\S* 0/.test(await pipeline.telemetry.metrics.render()))
  assert.ok((await pipeline.failedBatches()).every(({ state }) => state === 'completed'))
})

test.run()
