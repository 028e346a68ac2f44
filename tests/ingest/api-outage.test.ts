/** The API while JetStream is away, slow or full, and while Postgres is down. */

import { once } from 'node:events'
import { join } from 'node:path'
import { sql } from 'drizzle-orm'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { startNats } from '../../src/embedded/nats.ts'
import { startServers, startTestPostgres } from '../servers.ts'
import { startService, until } from '../service.ts'

const servers = await startServers({ PUBLISH_TIMEOUT_MS: '3000', QUEUE_DEPTH_MAX: '1000' })
const service = await startService(servers)
let { nats, postgres } = servers
test.after(async () => {
  await service.stop()
  await servers.broker.close()
  await servers.database.close()
  await Promise.all([nats.stop(), postgres.stop()])
})

type Answer = { error?: string; accepted: number; events: { status: string; id: string }[] }

async function post(events: object[], type = 'application/json') {
  const response = await fetch(`${service.url}/v1/events`, {
    method: 'POST',
    headers: { 'content-type': type },
    body:
      type === 'application/json' ? JSON.stringify(events) : events.map((event) => JSON.stringify(event)).join('\n'),
  })
  return {
    status: response.status,
    retryAfter: response.headers.get('retry-after'),
    body: (await response.json()) as Answer,
  }
}

const committed = async () => {
  const { rows } = await servers.db.execute<{ id: string }>(sql`select id from events`)
  return new Set(rows.map((row) => row.id))
}

test('NATS killed and started again under requests: 503 meanwhile, and what was answered is stored', async () => {
  const accepted: string[] = []
  const statuses = new Set<number>()
  let stop = false
  let made = 0
  const client = async (index: number) => {
    while (!stop) {
      const count = index === 0 ? 1_200 : 1 + (index % 3) * 20
      const events = Array.from({ length: count }, () => ({ id: `k${made++}`, source: 's', type: 't' }))
      const { status, retryAfter, body } = await post(events, index % 2 === 0 ? 'application/x-ndjson' : undefined)
      statuses.add(status)
      assert.ok(status === 202 || status === 503, String(status))
      if (status === 503) assert.is(retryAfter, '1')
      for (const event of body.events ?? []) if (event.status === 'accepted') accepted.push(event.id)
      if (status === 503) await new Promise((resolve) => setTimeout(resolve, 20))
    }
  }
  const clients = Array.from({ length: 6 }, (_, index) => client(index))
  await until(() => accepted.length > 3_000)
  nats.process.kill('SIGKILL')
  await once(nats.process, 'exit')
  await until(() => statuses.has(503))
  assert.is((await service.get('/readyz')).status, 503)
  assert.is((await service.get('/healthz')).status, 200)
  nats = await startNats(join(servers.dir, 'nats'), { port: nats.port })
  const before = accepted.length
  await until(() => accepted.length > before + 3_000)
  stop = true
  await Promise.all(clients)
  await until(async () => {
    const rows = await committed()
    return accepted.every((id) => rows.has(id))
  })
  await until(async () => (await service.get('/readyz')).status === 200)
})

test('a JetStream that stops answering costs a 503 that says which events are not known to be stored', async () => {
  // The workers have caught up with the test before.
  await until(async () => (await post([{ id: 'warm', source: 's', type: 't' }])).status === 202)
  process.kill(nats.process.pid!, 'SIGSTOP')
  const { status, body } = await post([{ id: 'frozen', source: 's', type: 't' }])
  process.kill(nats.process.pid!, 'SIGCONT')
  assert.is(status, 503)
  assert.equal(
    [body.error, body.accepted, body.events.map(({ status, id }) => [status, id])],
    ['unavailable', 0, [['failed', 'frozen']]],
  )
  await until(async () => (await post([{ id: 'thawed', source: 's', type: 't' }])).status === 202)
})

test('Postgres down: events are accepted, waiters are told what is known, reads are 503', async () => {
  await postgres.stop()
  const { status } = await post([{ id: 'while-down', source: 's', type: 't' }])
  assert.is(status, 202)
  const read = await fetch(`${service.url}/v1/events/s/while-down`)
  assert.is(read.status, 503)
  assert.is(read.headers.get('retry-after'), '1')
  assert.is((await service.get('/readyz')).status, 200)
})

test('workers too far behind: 503 before the body is read, and 202 again when they have caught up', async () => {
  await until(async () => {
    const { status, body } = await post(Array.from({ length: 500 }, () => ({ source: 's', type: 't' })))
    return status === 503 && body.error === 'overloaded'
  })
  postgres = await startTestPostgres(join(servers.dir, 'pg'), { port: postgres.port })
  await until(async () => (await post([{ id: 'after', source: 's', type: 't' }])).status === 202)
  await until(async () => (await committed()).has('while-down') && (await committed()).has('after'))
})

test('a full stream is 503, and stores nothing of what it refuses', async () => {
  const { config } = await servers.broker.jsm.streams.info('EVENTS')
  await servers.broker.jsm.streams.update('EVENTS', { ...config, max_bytes: 1 })
  const { status, body } = await post([{ id: 'no-room', source: 's', type: 't' }])
  await servers.broker.jsm.streams.update('EVENTS', config)
  assert.equal([status, body.error, body.accepted], [503, 'unavailable', 0])
})

test.run()
