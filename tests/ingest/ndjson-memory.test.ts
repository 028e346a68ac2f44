/** A body of 100 MB goes through an API process that never holds it. */

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { request } from 'node:http'
import { Readable } from 'node:stream'
import { createGzip } from 'node:zlib'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { freePort } from '../../src/embedded/port.ts'
import { startServers } from '../servers.ts'
import { until } from '../service.ts'

const BODY_BYTES = 100 * 1024 * 1024
const EVENT_BYTES = 1_000
const EVENTS = Math.ceil(BODY_BYTES / EVENT_BYTES)
/** Held whole it would be there as bytes and as text, 200 MB; below is what V8 leaves for later on a busy machine. */
const GROWTH_BYTES_MAX = 140 * 1024 * 1024

const servers = await startServers()
const port = await freePort()
const api = spawn(process.execPath, ['src/cli.ts', 'api'], {
  env: {
    ...process.env,
    PORT: String(port),
    API_KEYS: 'off',
    DATABASE_URL: servers.postgres.url,
    NATS_URL: servers.nats.url,
    LOG_LEVEL: 'silent',
    PUBLISH_PENDING_BYTES_MAX: String(32 * 1024 * 1024),
  },
  stdio: 'inherit',
})
test.after(async () => {
  api.kill('SIGKILL')
  await once(api, 'exit')
  await servers.stop()
})

const url = `http://127.0.0.1:${port}`
const residentBytesMax = () => Number(/VmHWM:\s+(\d+)/.exec(readFileSync(`/proc/${api.pid}/status`, 'utf8'))![1]) * 1024

function* lines(name: string, count: number): Generator<string> {
  const filling = 'x'.repeat(EVENT_BYTES - 90)
  for (let i = 0; i < count; i += 100)
    yield Array.from(
      { length: Math.min(100, count - i) },
      (_, j) => `{"id":"${name}-${String(i + j).padStart(7, '0')}","source":"/big","type":"row","data":"${filling}"}\n`,
    ).join('')
}

async function send(body: Readable, headers: Record<string, string> = {}) {
  const req = request(`${url}/v1/events`, {
    method: 'POST',
    headers: { 'content-type': 'application/x-ndjson', ...headers },
  })
  body.pipe(req)
  const [res] = await once(req, 'response')
  let text = ''
  for await (const chunk of res) text += chunk
  return { status: res.statusCode, body: JSON.parse(text) as { accepted: number; events: { id: string }[] } }
}

test('100 MB of NDJSON, plain and then gzip, in flat memory', async () => {
  await until(async () => (await fetch(`${url}/readyz`).catch(() => undefined))?.ok)
  assert.is((await send(Readable.from(lines('warm', 5_000)))).status, 202)
  const before = residentBytesMax()
  for (const name of ['plain', 'gzip']) {
    const source = Readable.from(lines(name, EVENTS))
    const { status, body } =
      name === 'plain'
        ? await send(source)
        : await send(source.pipe(createGzip({ level: 1 })), { 'content-encoding': 'gzip' })
    assert.is(status, 202)
    assert.equal([body.accepted, body.events.length], [EVENTS, EVENTS])
    assert.is(body.events[EVENTS - 1]!.id, `${name}-${String(EVENTS - 1).padStart(7, '0')}`)
  }
  const grown = residentBytesMax() - before
  assert.ok(grown < GROWTH_BYTES_MAX, `the process grew by ${Math.round(grown / 1e6)} MB`)
  const { state } = await servers.broker.jsm.streams.info('EVENTS')
  assert.ok(state.messages >= (2 * EVENTS + 5_000) / 250, `${state.messages} messages`)
})

test('many streams at once are slowed down, not refused', async () => {
  // Together they send several times what may wait for JetStream.
  const answers = await Promise.all(Array.from({ length: 24 }, (_, i) => send(Readable.from(lines(`many${i}`, 5_000)))))
  for (const { status, body } of answers) assert.equal([status, body.accepted], [202, 5_000])
})

test.run()
