/** Requests that no client should send, as bytes on a socket, by the kind of harm they mean. Seeded, so a run can be repeated. */

import { createHash } from 'node:crypto'
import { brotliCompressSync, gzipSync, zstdCompressSync } from 'node:zlib'

export type Hostile = {
  kind: string
  bytes: Buffer
  /** Send in pieces of one byte, so many ms apart; the rest is never sent. */
  trickleMs?: number
  /** Cut the connection once this is sent, without waiting for an answer. */
  breakOff?: boolean
}

export type Random = { below: (n: number) => number; pick: <T>(items: readonly T[]) => T; bytes: (n: number) => Buffer }

/** mulberry32, public domain, by Tommy Ettinger. */
export function createRandom(seed: number): Random {
  let state = seed
  const next = () => {
    state = (state + 0x6d2b79f5) | 0
    let t = Math.imul(state ^ (state >>> 15), 1 | state)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
  }
  const below = (n: number) => Math.floor(next() * n)
  return {
    below,
    pick: (items) => items[below(items.length)]!,
    bytes: (n) => Buffer.from(Array.from({ length: n }, () => below(256))),
  }
}

let serial = 0

/** An event that could be stored; the oracle knows its payload by its id. */
function goodEvent(kind: string): { id: string; source: string; type: string; data: object } {
  const id = `${kind}-${serial++}`
  return { id, source: 'hostile', type: 'fault.good', data: { check: createHash('md5').update(id).digest('hex') } }
}

type Parts = { method?: string; path?: string; headers?: Record<string, string>; body?: Buffer | string }

function request({ method = 'POST', path = '/v1/events', headers = {}, body = '' }: Parts): Buffer {
  const payload = Buffer.from(body)
  const all = {
    host: 'x',
    connection: 'close',
    'content-type': 'application/json',
    'content-length': `${payload.length}`,
    ...headers,
  }
  const lines = Object.entries(all).map(([name, value]) => `${name}: ${value}\r\n`)
  return Buffer.concat([Buffer.from(`${method} ${path} HTTP/1.1\r\n${lines.join('')}\r\n`, 'latin1'), payload])
}

const batch = (kind: string, n: number) => JSON.stringify(Array.from({ length: n }, () => goodEvent(kind)))
const lines = (kind: string, n: number) =>
  `${Array.from({ length: n }, () => JSON.stringify(goodEvent(kind))).join('\n')}\n`
const nest = (open: string, close: string, levels: number) => open.repeat(levels) + close.repeat(levels)
const withData = (kind: string, data: string) =>
  JSON.stringify({ ...goodEvent(kind), data: 0 }).replace('"data":0', `"data":${data}`)
/** Replaces a few bytes of a text by any others. */
function mutate(random: Random, text: string): Buffer {
  const bytes = Buffer.from(text)
  for (let i = 0; i <= random.below(4); i++) bytes[random.below(bytes.length)] = random.below(256)
  return bytes
}

/** Compressed once: megabytes of zeros, and of one event over and over. */
const BOMB = Buffer.alloc(600 * 1024 * 1024, 0x20)
const bombs = {
  gzip: gzipSync(BOMB, { level: 1 }),
  br: brotliCompressSync(BOMB.subarray(0, 64 * 1024 * 1024), { params: {} }),
  zstd: zstdCompressSync(BOMB),
} as const
const ENCODINGS = Object.keys(bombs) as (keyof typeof bombs)[]

/** Names that mean something to JavaScript objects. */
const PROTOTYPE_KEYS = [
  '__proto__',
  'constructor',
  'prototype',
  'hasOwnProperty',
  'toString',
  'valueOf',
  '__defineGetter__',
]
const NUMBERS = [
  '1e400',
  '-1e400',
  '1e-400',
  '9'.repeat(5_000),
  `0.${'1'.repeat(5_000)}`,
  '1E+999999999',
  '-0',
  '1e308',
  '12345678901234567890',
]
const BAD_TEXTS = ['\\u0000', '\\ud800', '\\udfff\\ud800', '\\uffff', '\\u001e', '\\u2028', '\\r\\nX: y']
const READ_PATHS = [
  '/v1/events?cursor=%00',
  '/v1/events?cursor=AAAA',
  '/v1/events?from=x',
  '/v1/events?from=-infinity',
  '/v1/events?limit=-1',
  '/v1/events?limit=1e9',
  '/v1/events?trace_id=zz',
  "/v1/events?type='%20or%201=1--",
  '/v1/events?type=a&type=b',
  '/v1/events/%00/%00',
  '/v1/events/%ff/%c0%80',
  '/v1/events/..%2f..%2fetc/passwd',
  '/v1/events/%E0%A4%A',
  '/v1/stats/latency?from=9999-99-99',
  '/v1/schemas/__proto__',
  '/v1/schemas/constructor/1',
  '/v1/schemas/%00/1',
  '/v1/schemas/a/99999999999999999999',
  '/v1/nothing',
  '//',
  '/%',
  '/openapi.json?__proto__=1',
] as const
const EVIL_SCHEMAS = [
  '{"pattern":"^(a+)+$"}',
  '{"$ref":"#"}',
  '{"$ref":"http://127.0.0.1:1/x"}',
  '{"allOf":[{"$ref":"#/$defs/a"}],"$defs":{"a":{"$ref":"#/$defs/a"}}}',
  '{"$id":"__proto__"}',
  '{"properties":{"__proto__":{"type":"string"}}}',
  '{"type":"nonsense"}',
  '[]',
  'null',
  '{"pattern":"("}',
  nest('{"not":', '{}', 1).replace('{}', '{}}'),
  `{"enum":[${'0,'.repeat(20_000)}0]}`,
  nest('{"items":', '}', 5_000).replace('}', '{}}'),
] as const

type Make = (random: Random, kind: string) => Omit<Hostile, 'kind'>

/** Each makes one request of its kind. */
const KINDS: Record<string, Make> = {
  'truncated JSON': (random, kind) => {
    const text = batch(kind, 1 + random.below(20))
    return { bytes: request({ body: text.slice(0, 1 + random.below(text.length - 1)) }) }
  },
  'connection broken in the body': (random, kind) => {
    const whole = request({
      body: random.pick([batch, lines])(kind, 50),
      headers: { 'content-type': random.pick(['application/json', 'application/x-ndjson']) },
    })
    return { bytes: whole.subarray(0, whole.length - 1 - random.below(5_000)), breakOff: true }
  },
  'decompression bomb': (random) => {
    const encoding = random.pick(ENCODINGS)
    const type = random.pick(['application/json', 'application/x-ndjson'])
    return {
      bytes: request({ body: bombs[encoding], headers: { 'content-encoding': encoding, 'content-type': type } }),
    }
  },
  'damaged compression': (random, kind) => {
    const packed = gzipSync(lines(kind, 30))
    const damaged =
      random.below(2) === 0
        ? packed.subarray(0, random.below(packed.length))
        : mutate(random, packed.toString('latin1'))
    return {
      bytes: request({
        body: damaged,
        headers: {
          'content-encoding': random.pick(['gzip', 'br', 'zstd', 'deflate', 'gzip, gzip']),
          'content-type': 'application/x-ndjson',
        },
      }),
    }
  },
  'slow body': (_random, kind) => ({ bytes: request({ body: batch(kind, 5) }), trickleMs: 200 }),
  'body that stops': (random, kind) => {
    const whole = request({ body: lines(kind, 20), headers: { 'content-type': 'application/x-ndjson' } })
    return { bytes: whole.subarray(0, whole.length - 1 - random.below(1_000)) }
  },
  'deep nesting': (random, kind) => {
    const levels = random.pick([64, 127, 128, 129, 1_000, 100_000])
    const deep = random.below(2) === 0 ? nest('[', ']', levels) : `${'{"a":'.repeat(levels)}0${'}'.repeat(levels)}`
    return { bytes: request({ body: random.below(3) === 0 ? deep : withData(kind, deep) }) }
  },
  'odd numbers': (random, kind) => ({
    bytes: request({ body: withData(kind, `[${random.pick(NUMBERS)}, {"n": ${random.pick(NUMBERS)}}]`) }),
  }),
  'odd text': (random, kind) => {
    const event = goodEvent(kind)
    const at = random.pick(['id', 'source', 'type', 'subject', 'time', 'extension', 'data'])
    const text = JSON.stringify({ ...event, [at]: '@@' }).replace('@@', `a${random.pick(BAD_TEXTS)}b`)
    return { bytes: request({ body: `[${JSON.stringify(goodEvent(kind))},${text}]` }) }
  },
  'invalid UTF-8': (random, kind) => {
    const [before, after] = JSON.stringify({ ...goodEvent(kind), subject: '@@' }).split('@@') as [string, string]
    return {
      bytes: request({
        body: Buffer.concat([Buffer.from(before), random.bytes(1 + random.below(8)), Buffer.from(after)]),
      }),
    }
  },
  'prototype keys': (random, kind) => {
    const key = random.pick(PROTOTYPE_KEYS)
    const event = JSON.stringify(goodEvent(kind))
    const body = random.pick([
      event.replace('{', `{"${key}":{"polluted":true},`),
      withData(kind, `{"${key}":{"polluted":true,"${random.pick(PROTOTYPE_KEYS)}":1}}`),
      JSON.stringify({ ...goodEvent(kind), type: key }),
      `{"${key}":{"id":"1","source":"hostile","type":"a"}}`,
    ])
    return { bytes: request({ body }) }
  },
  'mutated event': (random, kind) => ({
    bytes: request({
      body: mutate(random, batch(kind, 1 + random.below(3))),
      headers: {
        'content-type': random.pick(['application/json', 'application/x-ndjson', 'application/cloudevents-batch+json']),
      },
    }),
  }),
  'wrong shape': (random) => ({
    bytes: request({
      body: random.pick([
        '',
        ' ',
        '[]',
        '{}',
        'null',
        '0',
        '"x"',
        '[null]',
        '[[]]',
        '{"id":1}',
        '[1,2,3]',
        '\ufeff{}',
        '{"type":"a","source":"b","data_base64":"!"}',
      ]),
    }),
  }),
  'header flood': (random) => {
    const headers: Record<string, string> = {}
    for (let i = 0; i < random.pick([10, 100, 3_000]); i++) headers[`x-${i}`] = 'y'.repeat(random.pick([1, 100, 2_000]))
    return { bytes: request({ headers, body: '{}' }) }
  },
  'odd headers': (random, kind) => {
    const headers = random.pick<Record<string, string>>([
      { 'content-type': 'x'.repeat(7_000) },
      { 'content-type': 'application/json; charset=utf-16' },
      { 'content-length': '-1' },
      { 'content-length': '99999999999999999999' },
      { 'transfer-encoding': 'chunked' },
      { expect: '200-maybe' },
      { traceparent: '00-zz-zz-zz', tracestate: '='.repeat(2_000) },
      { 'ce-specversion': '1.0', 'ce-type': '%ff%', 'ce-source': '%00', 'ce-id': 'a%0d%0ab' },
      { 'ce-specversion': '1.0', 'ce-type': 't', 'ce-source': 's', 'ce-__proto__': 'x', 'content-type': 'text/plain' },
      { 'content-encoding': 'gzip'.repeat(100) },
    ])
    return { bytes: request({ headers, body: JSON.stringify(goodEvent(kind)) }) }
  },
  'no HTTP': (random) => ({
    bytes: random.pick([
      random.bytes(500),
      Buffer.from('GET / HTTP/9.9\r\n\r\n'),
      Buffer.from('\r\n'.repeat(2_000)),
      Buffer.from(`GET /${'a'.repeat(100_000)} HTTP/1.1\r\n\r\n`),
    ]),
  }),
  'odd reads': (random) => ({
    bytes: request({
      method: random.pick(['GET', 'GET', 'GET', 'HEAD', 'DELETE', 'PATCH', 'OPTIONS']),
      path: random.pick(READ_PATHS),
    }),
  }),
  'odd queries': (random, kind) => ({
    bytes: request({
      path: `/v1/events?${random.pick(['wait=', 'wait=never', 'wait=committed&wait=committed', '__proto__=1', '%', '%00=%00'])}`,
      body: batch(kind, 2),
    }),
  }),
  'odd schemas': (random) => ({
    bytes: request({
      method: 'PUT',
      path: `/v1/schemas/hostile.${random.below(1_000)}/1`,
      body: random.pick(EVIL_SCHEMAS),
    }),
  }),
}

/** `count` requests of every kind, mixed. */
export function hostileRequests(random: Random, count: number): Hostile[] {
  const all = Object.entries(KINDS).flatMap(([kind, make]) =>
    Array.from({ length: count }, () => ({ kind, ...make(random, kind.replaceAll(' ', '-')) })),
  )
  for (let i = all.length - 1; i > 0; i--) {
    const j = random.below(i + 1)
    ;[all[i], all[j]] = [all[j]!, all[i]!]
  }
  return all
}
