import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { readQueue } from '../../src/broker/queue.ts'
import { CONSUMER, ensureStream, STREAM } from '../../src/broker/streams.ts'
import { startServers } from '../servers.ts'

const servers = await startServers()
test.after(servers.stop)
const { broker, config } = servers
await ensureStream(broker, config)

test('an empty queue has no depth and no lag', async () => {
  assert.equal(await readQueue(broker), { depth: 0, lagSeconds: 0, unacknowledged: 0 })
})

test('depth counts what is not acknowledged, lag is the age of the oldest of it', async () => {
  for (const id of ['a', 'b', 'c']) await broker.js.publish('events.test', id)
  const consumer = await broker.js.consumers.get(STREAM, CONSUMER)
  const [a, b] = [await consumer.next(), await consumer.next()]
  const between = async (seq: number) => {
    const { time } = (await broker.jsm.direct.getMessage(STREAM, { seq }))!
    const before = (Date.now() - time.getTime()) / 1_000
    const queue = await readQueue(broker)
    const after = (Date.now() - time.getTime()) / 1_000
    assert.ok(before <= queue.lagSeconds && queue.lagSeconds <= after, `lag is that of ${seq}`)
    return queue
  }
  const waiting = await between(1)
  assert.is(waiting.depth, 3)
  assert.is(waiting.unacknowledged, 2)

  // Acknowledged out of order: the oldest is still the first.
  assert.ok(await b!.ackAck())
  assert.is((await between(1)).depth, 2)
  assert.ok(await a!.ackAck())
  const last = await between(3)
  assert.is(last.depth, 1)
  assert.is(last.unacknowledged, 0)
})

test.run()
