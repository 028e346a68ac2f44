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

type Shown = {
  event: { id: string; source: string; type: string; subject?: string; data?: unknown }
  published_at: string
  trace_id: string
}

async function list(query: string): Promise<{ events: Shown[]; next: string | null }> {
  const { status, body } = await service.get(`/v1/events?${query}`)
  assert.is(status, 200, JSON.stringify(body))
  return body
}
const ids = (events: Shown[]) => events.map(({ event }) => event.id)

const TRACE = '0af7651916cd43dd8448eb211c80319c'
test.before(async () => {
  const events = Array.from({ length: 25 }, (_, i) => ({
    id: `e${String(i).padStart(2, '0')}`,
    source: i % 2 === 0 ? 'https://shop.example/orders' : '/mobile/eu',
    type: i % 5 === 0 ? 'order.placed' : 'order.paid',
    subject: `customer-${i % 3}`,
    data: { i },
  }))
  const response = await fetch(`${service.url}/v1/events?wait=committed`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', traceparent: `00-${TRACE}-b7ad6b7169203331-00` },
    body: JSON.stringify(events),
  })
  assert.is(response.status, 200)
})

test('pages by cursor, in both orders, every event once', async () => {
  for (const order of ['asc', 'desc']) {
    const seen: string[] = []
    let next: string | null = ''
    while (next !== null) {
      const page: Awaited<ReturnType<typeof list>> = await list(`limit=4&order=${order}${next && `&cursor=${next}`}`)
      seen.push(...ids(page.events))
      next = page.next
    }
    // A request's events of one type keep their order.
    const all = Array.from({ length: 25 }, (_, i) => `e${String(i).padStart(2, '0')}`)
    const wanted = [...all.filter((_, i) => i % 5 === 0), ...all.filter((_, i) => i % 5 !== 0)]
    assert.equal(seen, order === 'asc' ? wanted : wanted.reverse())
  }
})

test('filters by type, source, subject, trace and time, alone and together', async () => {
  assert.is((await list('type=order.placed')).events.length, 5)
  assert.is((await list(`source=${encodeURIComponent('/mobile/eu')}`)).events.length, 12)
  assert.is((await list('subject=customer-0')).events.length, 9)
  assert.is((await list(`trace_id=${TRACE}`)).events.length, 25)
  assert.is((await list(`trace_id=${TRACE.replace('0', '1')}`)).events.length, 0)
  assert.equal(ids((await list('type=order.placed&subject=customer-0&order=asc')).events), ['e00', 'e15'])
  const { events } = await list('order=asc')
  const middle = events[10]!.published_at
  const [before, after] = [await list(`to=${middle}`), await list(`from=${middle}`)]
  assert.is(before.events.length + after.events.length, 25)
  assert.ok(ids(after.events).includes(events[10]!.event.id))
})

test('one event by source and id, slashes percent-encoded', async () => {
  const { status, body } = await service.get(`/v1/events/${encodeURIComponent('https://shop.example/orders')}/e04`)
  assert.is(status, 200)
  assert.equal(body.event, {
    specversion: '1.0',
    id: 'e04',
    source: 'https://shop.example/orders',
    type: 'order.paid',
    subject: 'customer-1',
    data: { i: 4 },
  })
  assert.is(body.trace_id, TRACE)
  assert.is((await service.get('/v1/events/a/b')).status, 404)
})

test('wrong parameters are refused in words', async () => {
  for (const query of [
    'limit=0',
    'limit=x',
    'limit=1001',
    'order=up',
    'cursor=abc',
    'from=yesterday',
    'trace_id=1',
    'typ=x',
    'type=a&type=b',
  ])
    assert.is((await service.get(`/v1/events?${query}`)).status, 400, query)
  assert.match((await service.get('/v1/events?typ=x')).body.message, /'typ'.*known: type, source/)
})

test.run()
