import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { startServers } from '../servers.ts'
import { outgoing, poison, startPipeline } from './pipeline.ts'

const servers = await startServers()
const pipeline = await startPipeline(servers)
test.before.each(pipeline.clear)
test.after(async () => {
  await pipeline.stop()
  await servers.stop()
})

const FIX = [{ op: 'replace', path: '/time', value: '2026-01-01T00:00:00Z' }]

async function post(path: string, body: unknown) {
  const response = await fetch(`${pipeline.url}/v1/dead-letters/actions/${path}`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: typeof body === 'string' ? body : JSON.stringify(body),
  })
  return { status: response.status, body: (await response.json()) as any }
}

async function bury(...ids: string[]) {
  await pipeline.publish(...ids.map((id) => poison(id)), poison('other', { type: 'order.other' }), outgoing('good'))
  await pipeline.settled(1, ids.length + 1)
}

test('dead letters are listed, counted and shown', async () => {
  await bury('h1', 'h2')
  const page = await pipeline.get('/v1/dead-letters?type=order.placed&limit=1')
  assert.is(page.body.dead_letters[0].id, 'h2')
  const rest = await pipeline.get(`/v1/dead-letters?type=order.placed&before=${page.body.next}`)
  assert.equal(
    rest.body.dead_letters.map((each: { id: string }) => each.id),
    ['h1'],
  )
  assert.is(rest.body.next, null)
  assert.is((await pipeline.get('/v1/dead-letters?state=replayed')).body.dead_letters.length, 0)
  assert.is((await pipeline.get('/v1/dead-letters?id=h1')).body.dead_letters.length, 1)
  const causes = await pipeline.get('/v1/dead-letters/causes?code=22007')
  assert.equal(
    causes.body.causes.map(({ type, count }: { type: string; count: number }) => [type, count]),
    [
      ['order.placed', 2],
      ['order.other', 1],
    ],
  )
  const { deadLetterId } = rest.body.dead_letters[0]
  const shown = await pipeline.get(`/v1/dead-letters/${deadLetterId}`)
  assert.is(shown.body.payload, poison('h1').payload)
  assert.equal(
    shown.body.history.map((each: { action: string }) => each.action),
    ['recorded'],
  )
})

test('they are rehearsed, replayed and discarded, by whom the request says', async () => {
  await bury('h1', 'h2')
  const dry = await post('replay', { ids: ['h1'], patch: FIX, dry_run: true })
  assert.equal(dry.body.counts, { replayed: 1 })
  assert.is(dry.body.outcomes[0].event.time, FIX[0]!.value)
  assert.is(dry.body.remaining, 1)
  const done = await post('replay', { type: 'order.placed', patch: FIX, by: 'ann', limit: 1 })
  assert.equal(done.body.counts, { replayed: 1 })
  assert.is(done.body.remaining, 1)
  const dropped = await post('discard', { all: true, by: 'ann', reason: 'a test' })
  assert.equal(dropped.body.counts, { discarded: 2 })
  await pipeline.settled(2, 0)
  const { body } = await pipeline.get(`/v1/dead-letters/${dropped.body.outcomes[0].deadLetterId}`)
  assert.is(body.state, 'discarded')
  assert.equal([body.history.at(-1).actor, body.history.at(-1).detail], ['ann (anyone)', { reason: 'a test' }])
})

test('a patch over HTTP keeps its numbers as they were written', async () => {
  await bury()
  const patch = '[{"op":"add","path":"/data/n","value":12345678901234567890.10},{"op":"remove","path":"/time"}]'
  await post('replay', `{"all":true,"patch":${patch}}`)
  await pipeline.settled(2, 0)
  const { body } = await fetch(`${pipeline.url}/v1/events/test/other`).then(async (r) => ({ body: await r.text() }))
  assert.match(body, '12345678901234567890.10')
})

test('wrong requests are refused with what to do', async () => {
  const refused: [string, unknown, RegExp][] = [
    ['replay', {}, /all/],
    ['discard', { limit: 5 }, /all/],
    ['replay', { all: true, patch: [] }, /patch/],
    ['replay', { all: true, patch: [{ op: 'mend' }] }, /patch/],
    ['replay', { all: true, patch: [{ op: 'add', path: '/data', value: '\u0000' }] }, /u0000/],
    ['replay', { all: true, unknown: 1 }, /unknown/],
    ['replay', { ids: ['a\u0000'] }, /ids/],
    ['replay', { from: '0000-01-01T00:00:00Z' }, /from/],
    ['replay', '[]', /object/],
    ['replay', '{', /JSON/],
  ]
  for (const [path, body, says] of refused) {
    const answer = await post(path, body)
    assert.is(answer.status, 400, JSON.stringify(body))
    assert.match(answer.body.message, says)
  }
  assert.is((await pipeline.get('/v1/dead-letters?limit=0')).status, 400)
  assert.is((await pipeline.get('/v1/dead-letters/nothing')).status, 400)
  assert.is((await pipeline.get('/v1/dead-letters/00000000-0000-4000-8000-000000000000')).status, 404)
})

test.run()
