import { once } from 'node:events'
import { connect } from 'node:net'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { brotliCompressSync, gzipSync, zstdCompressSync } from 'node:zlib'
import { sql } from 'drizzle-orm'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { connectBroker } from '../../src/broker/connect.ts'
import { startNats } from '../../src/embedded/nats.ts'
import { startServers } from '../servers.ts'
import { startService, until } from '../service.ts'

const servers = await startServers({
  EVENT_BYTES_MAX: '4096',
  JSON_BYTES_MAX: '100000',
  BODY_BYTES_MAX: '200000',
  BODY_DECODED_BYTES_MAX: '300000',
  EVENTS_PER_REQUEST_MAX: '1500',
  // Longer than a busy machine keeps this process from reading what has come.
  BODY_IDLE_MS: '2000',
})
const service = await startService(servers)
test.after(async () => {
  await service.stop()
  await servers.stop()
})

const event = (id: string, more: object = {}) => ({ id, source: '/test', type: 'order.placed', data: { id }, ...more })

async function send(body: string | Uint8Array | undefined, headers: Record<string, string> = {}, query = '') {
  const response = await fetch(`${service.url}/v1/events${query}`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', ...headers },
    body: body as string,
  })
  return { status: response.status, headers: response.headers, body: JSON.parse(await response.text()) }
}

const rowOf = (id: string) =>
  until(async () => (await servers.db.execute(sql`select *, data::text as raw from events where id = ${id}`)).rows[0])

test('one event is answered with its id and becomes a row', async () => {
  const { status, body } = await send(JSON.stringify(event('one', { subject: 's', custom: 'kept' })))
  assert.is(status, 202)
  assert.equal(body, { accepted: 1, rejected: 0, events: [{ status: 'accepted', id: 'one' }] })
  const row = await rowOf('one')
  assert.equal(
    [row!.source, row!.type, row!.subject, row!.extensions],
    ['/test', 'order.placed', 's', { custom: 'kept' }],
  )
})

test('an id is made where none is sent, a UUIDv7', async () => {
  const { body } = await send(JSON.stringify({ source: 'a', type: 'b' }))
  assert.match(body.events[0].id, /^[0-9a-f]{8}-[0-9a-f]{4}-7/)
})

test('an array keeps the order of its outcomes, good and bad', async () => {
  const { status, body } = await send(JSON.stringify([event('a1'), { id: 'bad', type: 't' }, event('a2')]))
  assert.is(status, 202)
  assert.equal(body.events, [
    { status: 'accepted', id: 'a1' },
    {
      status: 'rejected',
      id: 'bad',
      code: 'invalid_event',
      pointer: '',
      message: "must have required property 'source'",
    },
    { status: 'accepted', id: 'a2' },
  ])
})

test('a request without any good event is 400, and one without events too', async () => {
  const { status, body } = await send(JSON.stringify([{ source: 's', type: 7 }]))
  assert.is(status, 400)
  assert.is(body.events[0].pointer, '/type')
  assert.is((await send('[]')).status, 400)
  assert.is((await send('', { 'content-type': 'application/x-ndjson' })).status, 400)
  assert.is((await send('{"a":')).body.error, 'invalid_request')
})

test('NDJSON: good lines are accepted, bad ones told apart', async () => {
  const lines = [JSON.stringify(event('n1')), '{', '', JSON.stringify(event('n2')), `{"x":"${'y'.repeat(5_000)}"}`]
  const { status, body } = await send(lines.join('\r\n'), { 'content-type': 'application/x-ndjson' })
  assert.is(status, 202)
  assert.equal(
    body.events.map((each: { id?: string; code?: string }) => each.code ?? each.id),
    ['n1', 'invalid_json', 'n2', 'event_too_large'],
  )
})

test('an NDJSON line that is not UTF-8 is rejected alone', async () => {
  const bad = Buffer.concat([Buffer.from('{"a":"'), Buffer.from([0xff, 0xfe]), Buffer.from('"}\n')])
  const { status, body } = await send(Buffer.concat([bad, Buffer.from(JSON.stringify(event('n3')))]), {
    'content-type': 'application/x-ndjson; charset=utf-8',
  })
  assert.is(status, 202)
  assert.equal([body.events[0].code, body.events[1].id], ['invalid_utf8', 'n3'])
})

test('CloudEvents: structured, batched and binary', async () => {
  const full = event('ce-1', { specversion: '1.0', time: '2026-01-31T12:00:00.123456Z', dataschema: 'https://x/y' })
  assert.is((await send(JSON.stringify(full), { 'content-type': 'application/cloudevents+json' })).status, 202)
  assert.is((await send(JSON.stringify([full]), { 'content-type': 'application/cloudevents+json' })).status, 400)
  const batch = { 'content-type': 'application/cloudevents-batch+json; charset=UTF-8' }
  assert.is((await send(JSON.stringify([event('ce-2'), event('ce-3')]), batch)).body.accepted, 2)
  assert.is((await send(JSON.stringify(full), batch)).status, 400)
  const row = await rowOf('ce-1')
  assert.is((row!.time as Date).toString().includes('2026'), true)

  const binary = { 'ce-specversion': '1.0', 'ce-type': 't', 'ce-source': '/caf%C3%A9', 'ce-color': 'red' }
  await send('{"n":12345678901234567890}', { ...binary, 'ce-id': 'bin-json' })
  await send('plain', { ...binary, 'ce-id': 'bin-text', 'content-type': 'text/plain' })
  await send(new Uint8Array([0, 255]), { ...binary, 'ce-id': 'bin-bytes', 'content-type': 'application/x-thing' })
  await send(undefined, { ...binary, 'ce-id': 'bin-none', 'content-type': '' })
  const json = await rowOf('bin-json')
  assert.equal([json!.source, json!.extensions, json!.raw], ['/café', { color: 'red' }, '{"n": 12345678901234567890}'])
  assert.equal([(await rowOf('bin-text'))!.data, (await rowOf('bin-text'))!.datacontenttype], ['plain', 'text/plain'])
  assert.is((await rowOf('bin-bytes'))!.data_base64, 'AP8=')
  assert.is((await rowOf('bin-none'))!.data, null)
})

test('gzip, br and zstd bodies are understood, others refused with what is', async () => {
  const compressors = { gzip: gzipSync, br: brotliCompressSync, zstd: zstdCompressSync }
  for (const [encoding, compress] of Object.entries(compressors)) {
    const { status } = await send(compress(JSON.stringify(event(encoding))), { 'content-encoding': encoding })
    assert.is(status, 202, encoding)
    const lines = `${JSON.stringify(event(`${encoding}-1`))}\n${JSON.stringify(event(`${encoding}-2`))}\n`
    const headers = { 'content-encoding': encoding, 'content-type': 'application/x-ndjson' }
    assert.is((await send(compress(lines), headers)).body.accepted, 2, encoding)
    assert.is((await send('no such thing', { 'content-encoding': encoding })).status, 400, encoding)
    const cut = compress(JSON.stringify(event('cut'))).subarray(0, 20)
    assert.is((await send(cut, { 'content-encoding': encoding })).status, 400, encoding)
  }
  const refused = await send('x', { 'content-encoding': 'compress' })
  assert.is(refused.status, 415)
  assert.is(refused.headers.get('accept-encoding'), 'gzip, br, zstd')
})

test('an unknown content type or charset is 415', async () => {
  assert.is((await send('a=b', { 'content-type': 'application/x-www-form-urlencoded' })).status, 415)
  assert.is((await send('{}', { 'content-type': 'application/json; charset=latin1' })).status, 415)
})

test('each limit is a 413 that names it', async () => {
  const named = async (limit: string, body: string | Uint8Array, headers: Record<string, string> = {}) => {
    const answer = await send(body, headers)
    assert.is(answer.status, 413, limit)
    assert.is(answer.body.limit, limit)
    return answer
  }
  const ndjson = { 'content-type': 'application/x-ndjson' }
  await named('JSON_BYTES_MAX', JSON.stringify([event('big', { data: 'x'.repeat(150_000) })]))
  await named('BODY_BYTES_MAX', 'x'.repeat(250_000), ndjson)
  await named(
    'EVENTS_PER_REQUEST_MAX',
    JSON.stringify(Array.from({ length: 1_501 }, () => ({ source: 's', type: 't' }))),
  )
  const bomb = '\n'.repeat(10_000_000)
  for (const [encoding, compress] of Object.entries({
    gzip: gzipSync,
    br: brotliCompressSync,
    zstd: zstdCompressSync,
  })) {
    await named('BODY_DECODED_BYTES_MAX', compress(bomb), { ...ndjson, 'content-encoding': encoding })
    await named('JSON_BYTES_MAX', compress(bomb), { 'content-encoding': encoding })
  }
  const large = await send(JSON.stringify(event('large', { data: 'x'.repeat(5_000) })))
  assert.is(large.status, 413)
  assert.match(large.body.events[0].message, /EVENT_BYTES_MAX=4096/)
})

test('a limit that is met halfway says which events were accepted', async () => {
  const lines = Array.from({ length: 1_600 }, (_, i) => JSON.stringify(event(`half-${i}`, { data: 0 }))).join('\n')
  const { status, body } = await send(gzipSync(lines), {
    'content-type': 'application/x-ndjson',
    'content-encoding': 'gzip',
  })
  assert.is(status, 413)
  assert.equal([body.limit, body.accepted, body.events.length], ['EVENTS_PER_REQUEST_MAX', 1_500, 1_500])
})

test('a refusal in the middle of a body leaves the connection fit for the next request', async () => {
  const socket = connect(Number(new URL(service.url).port), '127.0.0.1')
  let answers = ''
  socket.on('data', (chunk) => {
    answers += chunk
  })
  const line = `${JSON.stringify(event('middle', { data: 'x'.repeat(2_000) }))}\n`
  function* bytes() {
    yield 'POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n'
    // Far more than the buffers of both sockets hold.
    for (let i = 0; i < 6_000; i++) yield `${line.length.toString(16)}\r\n${line}\r\n`
    yield '0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: x\r\n\r\n'
  }
  await pipeline(Readable.from(bytes()), socket, { end: false })
  await until(() => answers.includes('{"status":"ok"}'))
  assert.match(answers, /^HTTP\/1.1 413 [\s\S]*"limit":"BODY_BYTES_MAX"[\s\S]*HTTP\/1.1 200 /)
  socket.destroy()
})

test('a body that stops coming is answered 408', async () => {
  const socket = connect(Number(new URL(service.url).port), '127.0.0.1')
  socket.write('POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{')
  const [first] = await once(socket, 'data')
  assert.match(String(first), /^HTTP\/1.1 408 /)
  await once(socket, 'close')
})

test('the answer carries a traceparent, the caller’s trace where it sent one, and an event’s own wins', async () => {
  const trace = '0af7651916cd43dd8448eb211c80319c'
  const own = 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa'
  const { headers } = await send(
    JSON.stringify([
      event('t1'),
      event('t2', { traceparent: `00-${own}-b7ad6b7169203331-01` }),
      event('t3', { traceparent: 'junk' }),
    ]),
    { traceparent: `00-${trace}-b7ad6b7169203331-01` },
  )
  assert.match(headers.get('traceparent')!, new RegExp(`^00-${trace}-`))
  const traceOf = async (id: string) => String((await rowOf(id))!.trace_id).replaceAll('-', '')
  assert.equal([await traceOf('t1'), await traceOf('t2'), await traceOf('t3')], [trace, own, trace])
})

test('an unknown query parameter, path or method is refused in words', async () => {
  assert.match((await send(JSON.stringify(event('q')), {}, '?wait=stored')).body.message, /wait/)
  assert.match((await send(JSON.stringify(event('q')), {}, '?wiat=committed')).body.message, /wiat/)
  assert.is((await fetch(`${service.url}/v1/nothing`)).status, 404)
  const response = await fetch(`${service.url}/v1/events`, { method: 'DELETE' })
  assert.is(response.status, 405)
  assert.match(response.headers.get('allow')!, /POST/)
})

test('?wait=committed tells inserted, duplicate and rejected apart', async () => {
  await send(JSON.stringify(event('w0')), {}, '?wait=committed')
  const events = [event('w1'), event('w0'), { type: 'x' }, event('w1')]
  const { status, body } = await send(JSON.stringify(events), {}, '?wait=committed')
  assert.is(status, 200)
  assert.equal(
    body.events.map((each: { status: string }) => each.status),
    ['inserted', 'duplicate', 'rejected', 'duplicate'],
  )
  assert.equal([body.accepted, body.inserted, body.duplicate, body.rejected], [3, 1, 2, 1])
})

test('many wait at once, in requests of every size', async () => {
  const answers = await Promise.all(
    Array.from({ length: 40 }, (_, i) =>
      send(
        JSON.stringify(Array.from({ length: 1 + (i % 7) * 20 }, (_, j) => event(`m-${i}-${j}`))),
        {},
        '?wait=committed',
      ),
    ),
  )
  for (const { status, body } of answers) {
    assert.is(status, 200)
    assert.is(body.inserted, body.accepted)
  }
})

test('NDJSON of thousands waits for its rows too', async () => {
  const lines = Array.from({ length: 1_500 }, (_, i) => JSON.stringify(event(`nw-${i % 1_400}`, { data: 0 }))).join(
    '\n',
  )
  const { status, body } = await send(lines, { 'content-type': 'application/x-ndjson' }, '?wait=committed')
  assert.is(status, 200)
  assert.equal([body.accepted, body.inserted, body.duplicate], [1_500, 1_400, 100])
})

test('an event that nats-server would not take is 413, whatever EVENT_BYTES_MAX says', async () => {
  const nats = await startNats(join(servers.dir, 'small'), { more: 'max_payload: 20000' })
  const config = { ...servers.config, NATS_URL: nats.url, EVENT_BYTES_MAX: 512 * 1024 }
  const broker = await connectBroker(config, 'test')
  const small = await startService({ ...servers, broker }, config)
  assert.is((await small.post(event('fits', { data: 'x'.repeat(15_000) }))).status, 202)
  const refused = await small.post(event('fits-not', { data: 'x'.repeat(17_000) }))
  assert.is(refused.status, 413)
  assert.match(JSON.stringify(refused.body), /EVENT_BYTES_MAX=15904/)
  await small.stop()
  await broker.close()
  await nats.stop()
})

test('closing refuses new connections and lets a request in progress finish', async () => {
  const closing = await startService(servers, { BODY_IDLE_MS: 60_000 })
  const port = Number(new URL(closing.url).port)
  const body = JSON.stringify(event('last'))
  const socket = connect(port, '127.0.0.1')
  const head = `POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: ${body.length}`
  socket.write(`${head}\r\n\r\n${body.slice(0, 5)}`)
  await until(() => socket.bytesWritten > 0)
  // The server has the request once it answers a later one.
  await closing.get('/healthz')
  const stopped = closing.stop()
  await until(() =>
    fetch(`${closing.url}/healthz`).then(
      () => false,
      () => true,
    ),
  )
  socket.write(body.slice(5))
  const [answer] = await once(socket, 'data')
  assert.match(String(answer), /^HTTP\/1.1 202 [\s\S]*"status":"accepted","id":"last"/)
  await stopped
  await rowOf('last')
})

test.run()
