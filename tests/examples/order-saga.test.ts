import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { fulfilOrder } from '../../examples/order-saga/workflows.ts'
import { findRun } from '../../src/index.ts'
import { startServers } from '../servers.ts'
import { startService } from '../service.ts'
import { enginesOf, until } from '../workflow/engine.ts'
import { startNeighbour } from './neighbour.ts'

const refused = new Map<string, number>()
const shop = await startNeighbour(({ path, key, body }) => {
  // An order is known by its customer here.
  const status = refused.get(`${path} ${body.customer}`)
  if (status !== undefined) {
    if (status >= 500) refused.delete(`${path} ${body.customer}`)
    return { status, body: { error: 'no' } }
  }
  return { status: 200, body: { reservation: `r ${key}`, payment: `p ${key}`, parcel: `t ${key}` } }
})
process.env.SHOP_URL = shop.url

const servers = await startServers()
const service = await startService(servers)
const engines = enginesOf(servers)
const engine = await engines.start([fulfilOrder])
test.after(async () => {
  await engines.stop()
  await service.stop()
  await servers.stop()
  await shop.stop()
})

const place = (orderId: string) =>
  service.post({
    id: orderId,
    source: 'shop',
    type: 'order.placed',
    data: { orderId, customer: orderId, amount: 30, items: [{ sku: 'tea', count: 2 }] },
  })
const runOf = (orderId: string) => until(() => findRun(engine, `fulfil-order:${orderId}`).catch(() => null))

test('an order is reserved, charged and shipped, once, however often its event comes', async () => {
  await place('good')
  const run = await runOf('good')
  const result = (await run.result()) as { orderId: string; payment: string; parcel: string }
  await place('good')
  assert.is(result.orderId, 'good')
  assert.match(result.parcel, /^t /)
  assert.is((await run.status()).state, 'shipped')
  assert.equal(
    shop.calls.map(({ path }) => path),
    ['/stock/reserve', '/payments/charge', '/parcels/ship'],
  )
})

test('a neighbour that stumbles is asked again with the same key', async () => {
  refused.set('/payments/charge stumble', 503)
  shop.calls.length = 0
  await place('stumble')
  await (await runOf('stumble')).result()
  const charges = shop.calls.filter(({ path }) => path === '/payments/charge')
  assert.is(charges.length, 2)
  assert.is(charges[0]!.key, charges[1]!.key)
})

test('a parcel that nobody takes gives the money and the stock back, newest first', async () => {
  refused.set('/parcels/ship heavy', 409)
  shop.calls.length = 0
  await place('heavy')
  const run = await runOf('heavy')
  const error = await run.result().then(
    () => assert.unreachable(),
    (reason) => reason,
  )
  assert.match(error.message, '/parcels/ship answered 409')
  assert.is((await run.status()).status, 'failed')
  assert.equal(
    shop.calls.map(({ path }) => path),
    ['/stock/reserve', '/payments/charge', '/parcels/ship', '/payments/refund', '/stock/release'],
  )
  assert.match(String(shop.calls[3]!.body.payment), /^p /)
  assert.match(String(shop.calls[4]!.body.reservation), /^r /)
})

test.run()
