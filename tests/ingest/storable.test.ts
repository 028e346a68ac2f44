/** What Postgres cannot hold is rejected before it is stored; what it can hold comes back as it was sent. */

import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { startServers } from '../servers.ts'
import { startService } from '../service.ts'

const servers = await startServers()
const service = await startService(servers)
test.after(async () => {
  await service.stop()
  await servers.stop()
})

type Answer = { events: { status: string; code?: string; pointer?: string; message: string }[] }

let made = 0

/** Posts the data as raw JSON text and waits for the row. */
async function send(data: string, more = '') {
  const id = `s${++made}`
  const response = await fetch(`${service.url}/v1/events?wait=committed`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: `[{"id":"${id}","source":"s","type":"t"${more},"data":${data}},{"id":"${id}-good","source":"s","type":"t"}]`,
  })
  const [outcome, good] = ((await response.json()) as Answer).events
  assert.is(good!.status, 'inserted')
  return { id, ...outcome! }
}

async function stored(id: string): Promise<string> {
  const response = await fetch(`${service.url}/v1/events/s/${id}`)
  assert.is(response.status, 200)
  return response.text()
}

const refused: [what: string, data: string, code: string, pointer: string][] = [
  ['U+0000 in a string', '{"a":["x\\u0000y"]}', 'unstorable_text', '/data/a/0'],
  ['U+0000 in a name', '{"a\\u0000":1}', 'unstorable_text', '/data/a\0'],
  ['a lone high surrogate', '{"a/b":"\\ud800"}', 'unstorable_text', '/data/a~1b'],
  ['a lone low surrogate', '["\\uDC00x"]', 'unstorable_text', '/data/0'],
  ['a surrogate pair in the wrong order', '"\\udc00\\ud800"', 'unstorable_text', '/data'],
  ['1e400', '{"n":1e400}', 'unstorable_number', '/data/n'],
  ['-1E400 in an array', '[0,-1E400]', 'unstorable_number', '/data/1'],
  ['a number that vanishes', '[ 1e-400]', 'unstorable_number', '/data/0'],
  ['numeric overflow', '1e200000', 'unstorable_number', '/data'],
  ['a number of 1,001 digits', `0.${'1'.repeat(1_001)}`, 'unstorable_number', '/data'],
  ['300 digits and a point at the end of the range', '9'.repeat(310), 'unstorable_number', '/data'],
  ['nesting', `${'['.repeat(128)}${']'.repeat(128)}`, 'too_deep', ''],
  ['nesting that no parser should recurse into', `${'{"a":'.repeat(100_000)}1${'}'.repeat(100_000)}`, 'too_deep', ''],
]
for (const [what, data, code, pointer] of refused)
  test(`rejected: ${what}`, async () => {
    const outcome = await send(data)
    assert.equal([outcome.status, outcome.code, outcome.pointer], ['rejected', code, pointer])
    assert.ok(outcome.message)
  })

const kept: [what: string, data: string, shown: string][] = [
  ['an integer beyond 2^53', '{"n":12345678901234567890}', '"data": {"n": 12345678901234567890}'],
  ['a long decimal', '[0.1000000000000000055511151231257827]', '[0.1000000000000000055511151231257827]'],
  ['an exponent', '[1e3, 1.5E+2]', '[1000, 150]'],
  ['the largest double', '[1.7976931348623157e308]', '[179769313486231570000'],
  ['300 digits', '9'.repeat(300), '9'.repeat(300)],
  ['an emoji as escapes', '"\\ud83d\\ude00"', '"😀"'],
  ['a name __proto__', '{"__proto__":{"x":1},"constructor":2}', '{"__proto__": {"x": 1}, "constructor": 2}'],
  ['a name toJSON', '{"toJSON":1}', '{"toJSON": 1}'],
  ['null', 'null', '"data": null'],
  ['127 levels', `${'['.repeat(127)}${']'.repeat(127)}`, '[[[['],
  ['text that looks like numbers', '"a: 1e400, [12345678901234567890"', '"a: 1e400, [12345678901234567890"'],
]
for (const [what, data, shown] of kept)
  test(`kept: ${what}`, async () => {
    const outcome = await send(data)
    assert.is(outcome.status, 'inserted', outcome.message)
    assert.ok((await stored(outcome.id)).includes(shown), await stored(outcome.id))
  })

test('an event whose prototype key pretends to be one is none', async () => {
  const { body } = await service.post(JSON.parse('{"__proto__":{"type":"t","source":"s"}}'))
  assert.match((body as Answer).events[0]!.message, /required property/)
})

test('an extension __proto__ is kept like any other', async () => {
  const outcome = await send('1', ',"__proto__":{"polluted":true}')
  assert.ok((await stored(outcome.id)).includes('"__proto__": {"polluted": true}'))
  assert.is(({} as { polluted?: boolean }).polluted, undefined)
})

test('times that Postgres refuses are rejected, and its own are kept', async () => {
  for (const time of [
    '0000-01-01T00:00:00Z',
    '2026-01-01T00:00:00+16:00',
    '2026-02-30T00:00:00Z',
    '2026-01-01',
    '24:00',
  ])
    assert.is((await send('1', `,"time":"${time}"`)).pointer, '/time', time)
  for (const time of [
    '0001-01-01T00:00:00Z',
    '0001-01-01T00:00:00+15:59',
    '9999-12-31T23:59:59.999999999-15:59',
    '2026-06-30T23:59:60Z',
    '2026-01-01t00:00:00z',
    '2026-01-01 00:00:00+05:30',
  ])
    assert.is((await send('1', `,"time":"${time}"`)).status, 'inserted', time)
})

test('id and source travel as headers: what a header would lose is rejected', async () => {
  const rejected = async (event: object) => {
    const { body } = await service.post({ source: 's', type: 't', ...event })
    assert.is((body as Answer).events[0]!.status, 'rejected', JSON.stringify(event))
  }
  for (const text of [' a', 'a ', 'a\r\nb', 'a\tb', 'a\u0085b', '\u00a0a', 'a\ufeff', '', 'x'.repeat(2_000)]) {
    await rejected({ id: text })
    await rejected({ source: text })
  }
  await rejected({ id: 'é'.repeat(512), source: '€'.repeat(1_000) })
  await rejected({ data: 1, data_base64: 'AA==' })
  await rejected({ data_base64: '?' })
  for (const text of ['a b', 'ü/€/😀', '%2F', '..', 'a:b', '*.>']) {
    const { status, body } = await post({ id: text, source: text, type: text })
    assert.equal([status, body.events[0]!.status], [200, 'inserted'], text)
    const response = await fetch(`${service.url}/v1/events/${encodeURIComponent(text)}/${encodeURIComponent(text)}`)
    if (text !== '..') assert.is(((await response.json()) as { event: { type: string } }).event.type, text)
  }
  // As large as a row of the index takes.
  assert.is(
    (await post({ id: 'é'.repeat(512), source: '€'.repeat(500), type: 'x'.repeat(255) })).body.events[0]!.status,
    'inserted',
  )
})

async function post(event: object) {
  const response = await fetch(`${service.url}/v1/events?wait=committed`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(event),
  })
  return { status: response.status, body: (await response.json()) as Answer }
}

test('a body that is not UTF-8 is refused', async () => {
  const response = await fetch(`${service.url}/v1/events`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: Buffer.concat([Buffer.from('{"source":"s","type":"'), Buffer.from([0xc3, 0x28]), Buffer.from('"}')]),
  })
  assert.is(response.status, 400)
  assert.match(await response.text(), /UTF-8/)
})

test.run()
