import { sql } from 'drizzle-orm'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { CONSUMER, ensureStream, STREAM, subjectOf } from '../../src/broker/streams.ts'
import { startServers } from '../servers.ts'

const servers = await startServers()
test.after(servers.stop)

test('the database is migrated and pg-boss is installed', async () => {
  const { rows } = await servers.db.execute(sql`select name from pgboss.queue order by name`)
  assert.equal(
    rows.map((row) => row.name).filter((name) => !String(name).startsWith('__')),
    ['dead-letters', 'dead-runs', 'failed-batches', 'partitions', 'retention', 'schedule-rings'],
  )
})

test('the stream is created once and then updated', async () => {
  await ensureStream(servers.broker, servers.config)
  await ensureStream(servers.broker, servers.config)
  const { config } = await servers.broker.jsm.streams.info(STREAM)
  assert.is(config.allow_atomic, true)
  const consumer = await servers.broker.jsm.consumers.info(STREAM, CONSUMER)
  assert.is(consumer.config.max_deliver, -1)
})

test('a type becomes a subject that NATS allows', () => {
  assert.is(subjectOf('order.placed'), 'events.order.placed')
  assert.is(subjectOf('a b..*.>'), 'events.a_b._._._')
})

test.run()
