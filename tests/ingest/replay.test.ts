import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import { sql } from 'drizzle-orm'
import pino from 'pino'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import {
  countCauses,
  type LetterFilter,
  type LetterHistory,
  listLetters,
  showLetter,
} from '../../src/ingest/dead-letter-search.ts'
import type { OutgoingEvent } from '../../src/ingest/event.ts'
import { discardLetters, type LetterOutcome, readPatch, replayLetters } from '../../src/ingest/replay.ts'
import { openSchemas } from '../../src/ingest/schemas.ts'
import { startServers } from '../servers.ts'
import { until } from '../service.ts'
import { outgoing, poison, startPipeline } from './pipeline.ts'

const servers = await startServers()
const pipeline = await startPipeline(servers)
const { db } = servers
// So many bad events on an idle system would be held back: see suspicion.ts.
test.before(async () => {
  await pipeline.publish(...Array.from({ length: 800 }, (_, i) => outgoing(`good${i}`)))
  await pipeline.settled(800, 0)
})
test.before.each(pipeline.clear)
test.after(async () => {
  schemas.close()
  await pipeline.stop()
  await servers.stop()
})

const schemas = await openSchemas({ db, broker: servers.broker, log: pino({ level: 'silent' }) }, servers.config)
const deps = { ...pipeline, db, schemas, config: servers.config }
const FIX = [{ op: 'replace', path: '/time', value: '2026-01-01T00:00:00Z' }]
const patchOf = (operations: object[]) => readPatch(JSON.stringify(operations))

const TESTER = { actor: 'tester', keyId: null, tenant: 'default' }

async function all(lots: AsyncGenerator<LetterOutcome[]>): Promise<LetterOutcome[]> {
  const outcomes: LetterOutcome[] = []
  for await (const lot of lots) outcomes.push(...lot)
  return outcomes
}

const replay = (
  filter: LetterFilter = {},
  { patch, ...more }: { patch?: object[]; dryRun?: boolean; limit?: number; by?: typeof TESTER } = {},
) => all(replayLetters(deps, { filter, by: TESTER, dryRun: false, patch: patch && patchOf(patch), ...more }))

const kinds = (outcomes: LetterOutcome[]) => outcomes.map(({ id, outcome }) => `${id} ${outcome}`).sort()
const history = ({ action, actor }: LetterHistory) => `${action} ${actor === 'tester' ? 'by tester' : 'by a worker'}`
const storedType = async (id: string) =>
  (await db.execute(sql`select type, source, data, time from events where id = ${id}`)).rows[0]

async function bury(...events: OutgoingEvent[]) {
  const dead = (await pipeline.letters()).length
  const rows = (await pipeline.rows()).length
  await pipeline.publish(...events)
  await pipeline.settled(rows, dead + events.length)
}

test('a letter whose cause is gone is replayed as it was, under its identity', async () => {
  await db.execute(sql`alter table events add constraint refused check (type <> 'order.placed') not valid`)
  const event = outgoing('r1', { data: { amount: 12345678901234567890n.toString(), text: 'ż' } })
  await bury(event)
  await db.execute(sql`alter table events drop constraint refused`)
  assert.equal(kinds(await replay()), ['r1 replayed'])
  await pipeline.settled(1, 0)
  assert.equal((await storedType('r1'))!.data, JSON.parse(event.payload).data)
  const [letter] = await listLetters(db, {}, { limit: 10 })
  assert.is(letter!.state, 'replayed')
  const shown = await showLetter(db, null, letter!.deadLetterId)
  assert.equal(shown!.history.map(history), ['recorded by a worker', 'replayed by tester'])
  const { rows } = await db.execute(sql`select trace_id from events where id = 'r1'`)
  assert.is(String(rows[0]!.trace_id).replaceAll('-', ''), shown!.traceparent.slice(3, 35))
})

test('a patch mends letters on the way, and is in the audit table', async () => {
  await bury(poison('p1'), poison('p2'), poison('other', { type: 'order.other' }))
  assert.equal(kinds(await replay({ type: 'order.placed' }, { patch: FIX })), ['p1 replayed', 'p2 replayed'])
  await pipeline.settled(2, 1)
  assert.equal(await pipeline.letters(), ['other'])
  const { rows } = await db.execute(
    sql`select event_id, actor, detail->'patch' as patch from dead_letter_audit where action = 'replayed' order by 1`,
  )
  assert.equal(rows, [
    { event_id: 'p1', actor: 'tester', patch: FIX },
    { event_id: 'p2', actor: 'tester', patch: FIX },
  ])
})

test('a patch keeps the numbers it does not touch as they were written', async () => {
  const bad = poison('big', { data: { n: 0 } })
  await bury({ ...bad, payload: bad.payload.replace('"n":0', '"n":12345678901234567890.10') })
  await replay({}, { patch: FIX })
  await pipeline.settled(1, 0)
  const { rows } = await db.execute(sql`select data->>'n' as n from events`)
  assert.is(rows[0]!.n, '12345678901234567890.10')
})

test('a patch may not change who the event is, nor make it no event', async () => {
  await bury(poison('i1'))
  const reasons = async (patch: object[]) => {
    const [outcome] = await replay({}, { patch })
    return outcome!.outcome === 'refused' ? outcome!.reason : outcome!.outcome
  }
  assert.match(await reasons([{ op: 'replace', path: '/id', value: 'i2' }, ...FIX]), 'changes source or id')
  assert.match(await reasons([{ op: 'replace', path: '/source', value: 'elsewhere' }, ...FIX]), 'changes source or id')
  assert.match(await reasons([{ op: 'remove', path: '/type' }]), 'not an event after the patch')
  assert.match(await reasons([{ op: 'replace', path: '/nothing/here', value: 1 }]), 'the patch does not fit')
  assert.match(await reasons([{ op: 'test', path: '/type', value: 'x' }, ...FIX]), 'the patch does not fit')
  assert.match(await reasons([{ op: 'replace', path: '', value: [1] }]), 'an id')
  assert.match(await reasons([{ op: 'add', path: '/__proto__/polluted', value: 1 }]), 'the patch does not fit')
  assert.equal(await pipeline.letters(), ['i1'])
  assert.throws(() => patchOf([{ op: 'mend', path: '/a' }]), /RFC 6902/)
  assert.throws(() => patchOf([]), /RFC 6902/)
})

test('what cannot be read is replayed only after a patch that replaces it', async () => {
  await servers.broker.js.publish('events.raw', 'not json')
  await pipeline.settled(0, 1)
  const [refused] = await replay()
  assert.is(refused!.outcome, 'refused')
  const whole = { id: 'whole', source: 'test', type: 'raw' }
  await replay({}, { patch: [{ op: 'replace', path: '', value: whole }] })
  await pipeline.settled(1, 0)
  assert.equal(await pipeline.rows(), ['whole'])
})

test('a replayed event that fails again is a dead letter again, with its whole history', async () => {
  await bury(poison('again'))
  await replay()
  await until(async () => (await listLetters(db, {}, { limit: 10 })).length === 2)
  const letters = await listLetters(db, { ids: ['again'] }, { limit: 10 })
  assert.equal(
    letters.map(({ state }) => state),
    ['open', 'replayed'],
  )
  await replay({}, { patch: FIX })
  await pipeline.settled(1, 0)
  const shown = await showLetter(db, null, letters[0]!.deadLetterId)
  const [first, second] = [letters[1]!.deadLetterId, letters[0]!.deadLetterId]
  assert.equal(
    shown!.history.map((each) => `${each.deadLetterId} ${history(each)}`),
    [
      `${first} recorded by a worker`,
      `${first} replayed by tester`,
      `${second} recorded by a worker`,
      `${second} replayed by tester`,
    ],
  )
})

test('a dry run says what would happen, and nothing does', async () => {
  await bury(poison('d1'), poison('d2', { time: undefined, extra: 'x'.repeat(10), data: undefined, dataschema: '\0' }))
  await servers.broker.js.publish('events.raw', 'not json')
  await pipeline.settled(0, 3)
  const patched = await replay({}, { patch: [{ op: 'remove', path: '/dataschema' }, ...FIX], dryRun: true })
  assert.equal(kinds(patched), [' refused', 'd1 refused', 'd2 refused'])
  const plain = await replay({}, { dryRun: true })
  assert.equal(kinds(plain), [' refused', 'd1 refused', 'd2 refused'])
  const d1 = plain.find(({ id }) => id === 'd1')
  assert.match(d1!.outcome === 'refused' ? d1!.reason : '', 'Postgres refuses it: 22007')
  const mended = await replay({ ids: ['d1'] }, { patch: FIX, dryRun: true })
  assert.is(mended[0]!.outcome, 'replayed')
  assert.is((mended[0] as { event: { time: string } }).event.time, '2026-01-01T00:00:00Z')
  assert.equal(kinds(await all(discardLetters(deps, { filter: {}, by: TESTER, dryRun: true }))).length, 3)
  assert.is((await pipeline.letters()).length, 3)
  assert.equal(await pipeline.rows(), [])
  const { rows } = await db.execute(sql`select distinct action from dead_letter_audit`)
  assert.equal(rows, [{ action: 'recorded' }])
})

test('a letter whose event was stored meanwhile is closed without publishing', async () => {
  await bury(poison('met'))
  await pipeline.publish(outgoing('met'))
  await pipeline.settled(1, 1)
  assert.equal(kinds(await replay({}, { dryRun: true })), ['met stored'])
  assert.equal(kinds(await replay()), ['met stored'])
  assert.equal(await pipeline.letters(), [])
})

test('discarded letters are closed, with who and why', async () => {
  await bury(poison('x1'), poison('x2'))
  const outcomes = await all(
    discardLetters(deps, { filter: { ids: ['x1'] }, by: TESTER, dryRun: false, reason: 'a test' }),
  )
  assert.equal(kinds(outcomes), ['x1 discarded'])
  assert.equal(await pipeline.letters(), ['x2'])
  const [letter] = await listLetters(db, {}, { state: 'discarded', limit: 10 })
  const shown = await showLetter(db, null, letter!.deadLetterId)
  assert.equal(shown!.history.at(-1)!.detail, { reason: 'a test' })
  assert.equal(kinds(await replay({ ids: ['x1'] })), [])
})

test('two replays at once, and one that was cut off before its record, leave one row each', async () => {
  const ids = Array.from({ length: 40 }, (_, i) => `t${String(i).padStart(2, '0')}`)
  await bury(...ids.map((id) => poison(id)))
  // Cut off: published, and then the transaction that closes the letters fails.
  const cut = { ...deps, jobs: { ...deps.jobs, complete: () => Promise.reject(new Error('cut off')) } }
  const failing = replayLetters(cut as unknown as typeof deps, {
    filter: {},
    by: TESTER,
    dryRun: false,
    patch: patchOf(FIX),
    limit: 20,
  })
  await failing.next().then(
    () => assert.unreachable(),
    (error) => assert.match(error.message, 'cut off'),
  )
  assert.is((await pipeline.letters()).length, 40)
  const both = await Promise.all([replay({}, { patch: FIX }), replay({}, { patch: FIX })])
  const handled = both.flat().map(({ id }) => id)
  assert.equal(handled.sort(), ids)
  await pipeline.settled(40, 0)
  assert.equal(await pipeline.rows(), ids)
})

test('JetStream away: the error says so, and the letters stay open', async () => {
  await bury(poison('away'))
  const away = {
    ...deps,
    publisher: { ...deps.publisher, publish: () => Promise.reject(new Error('JetStream is away')) },
  }
  await replayLetters(away, { filter: {}, by: TESTER, dryRun: false, patch: patchOf(FIX) })
    .next()
    .then(
      () => assert.unreachable(),
      (error) => assert.match(error.message, 'JetStream is away'),
    )
  assert.equal(await pipeline.letters(), ['away'])
})

test('letters are found by type, source, code, time and id, and counted by cause', async () => {
  await bury(poison('f1'), poison('f2', { source: 'elsewhere' }), poison('f3', { type: 'order.other' }))
  await servers.broker.js.publish('events.raw.thing', 'not json')
  await pipeline.settled(0, 4)
  const find = async (filter: LetterFilter) => (await listLetters(db, filter, { limit: 10 })).map(({ id }) => id).sort()
  assert.equal(await find({}), ['', 'f1', 'f2', 'f3'])
  assert.equal(await find({ type: 'order.placed' }), ['f1', 'f2'])
  assert.equal(await find({ type: 'order.placed', source: 'elsewhere' }), ['f2'])
  assert.equal(await find({ code: 'unreadable' }), [''])
  assert.equal(await find({ ids: ['f1', 'f3', 'nothing'] }), ['f1', 'f3'])
  const [newest] = await listLetters(db, {}, { limit: 1 })
  assert.equal((await listLetters(db, { ids: [newest!.deadLetterId] }, { limit: 10 })).length, 1)
  assert.equal(await find({ from: newest!.deadAt }), [newest!.id])
  assert.is((await find({ to: newest!.deadAt })).length, 3)
  const page = await listLetters(db, {}, { limit: 3 })
  const rest = await listLetters(db, {}, { limit: 3, before: page.at(-1)!.seq })
  assert.is(new Set([...page, ...rest].map(({ id }) => id)).size, 4)
  assert.equal(
    (await countCauses(db, {}, 'open')).map(({ code, type, count }) => [code, type, count]),
    [
      ['22007', 'order.placed', 2],
      ['22007', 'order.other', 1],
      ['unreadable', 'raw.thing', 1],
    ],
  )
})

const CLI = new URL('../../src/cli.ts', import.meta.url).pathname
const run = promisify(execFile)
async function cli(...args: string[]) {
  const env = { ...process.env, DATABASE_URL: servers.postgres.url, NATS_URL: servers.nats.url, LOG_LEVEL: 'silent' }
  return (await run(process.execPath, [CLI, 'dead-letters', ...args], { env })).stdout
}

test('the command line lists, shows, rehearses, replays and discards', async () => {
  await bury(poison('c1'), poison('c2'), poison('c3', { type: 'order.other' }))
  assert.match(await cli('list', '--type', 'order.placed'), /c2[\s\S]*c1/)
  assert.match(await cli('causes'), /2 {2}22007 {2}order\.placed/)
  const [letter] = await listLetters(db, { ids: ['c1'] }, { limit: 1 })
  await cli('replay').then(
    () => assert.unreachable(),
    (error) => assert.match(error.stderr, 'say --all'),
  )
  assert.match(await cli('replay', '--all', '--dry-run', '--patch', JSON.stringify(FIX)), '3 would be replayed')
  assert.match(await cli('replay', 'c1', '--patch', JSON.stringify(FIX), '--by', 'ann'), '1 replayed')
  assert.match(await cli('discard', '--type', 'order.other', '--reason', 'a test'), '1 discarded')
  await pipeline.settled(1, 1)
  const shown = JSON.parse(await cli('show', letter!.deadLetterId))
  assert.is(shown.payload, poison('c1').payload)
  assert.match(shown.history.at(-1).actor, /^ann \(cli .+\)$/)
})

test.run()
