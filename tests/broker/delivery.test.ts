import { headers, type Msg } from 'nats'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { headerBlock, headerOf } from '../../src/broker/delivery.ts'
import { startServers } from '../servers.ts'

const servers = await startServers()
test.after(servers.stop)

async function delivered(given: Record<string, string>): Promise<Msg> {
  const { nc } = servers.broker
  const subscription = nc.subscribe('probe', { max: 1 })
  const sent = headers()
  for (const [name, value] of Object.entries(given)) sent.set(name, value)
  nc.publish('probe', 'body', Object.keys(given).length > 0 ? { headers: sent } : {})
  for await (const message of subscription) return message
  throw new Error('nothing came')
}

test('headers read from the bytes are what the client says they are', async () => {
  const given = {
    'Millrace-Id': 'a:b',
    'Millrace-Source': '/größe/☃',
    'Millrace-Received': '17.5',
    X: 'Millrace-Id: no',
  }
  const message = await delivered(given)
  const block = headerBlock(message)
  for (const name of Object.keys(given)) assert.is(headerOf(block, name), message.headers!.get(name))
  assert.is(headerOf(block, 'Millrace'), '')
  assert.is(headerOf(block, 'Absent'), '')
})

test('a message without headers has none', async () => {
  assert.is(headerOf(headerBlock(await delivered({})), 'Millrace-Id'), '')
})

test('a client that keeps no bytes is asked for its headers', async () => {
  const { headers: decoded } = await delivered({ 'Millrace-Id': '1', Other: '2' })
  const block = headerBlock({ headers: decoded } as Msg)
  assert.is(headerOf(block, 'Millrace-Id'), '1')
  assert.is(headerOf(block, 'Other'), '2')
})

test.run()
