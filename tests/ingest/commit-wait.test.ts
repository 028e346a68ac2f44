import { sql } from 'drizzle-orm'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { startServers } from '../servers.ts'
import { startService, until } from '../service.ts'

const servers = await startServers({ COMMIT_WAIT_MS: '400', MAX_DELIVER: '1' })
const service = await startService(servers)
test.after(async () => {
  await service.stop()
  await servers.stop()
})

type Answer = { accepted: number; events: { status: string; id: string }[] }

async function post(events: object[]) {
  const response = await fetch(`${service.url}/v1/events?wait=committed`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(events),
  })
  return { status: response.status, body: (await response.json()) as Answer }
}
const event = (id: string, more: object = {}) => ({ id, source: 's', type: 't', ...more })

test('what is not committed in time is answered 202 with what is known', async () => {
  const locked = Promise.withResolvers<void>()
  const release = Promise.withResolvers<void>()
  const holding = servers.db.transaction(async (tx) => {
    await tx.execute(sql`insert into event_ids values (event_key('default', 's', 'held'), now(), 0)`)
    locked.resolve()
    await release.promise
  })
  await locked.promise
  const { status, body } = await post([event('held')])
  release.resolve()
  await holding
  assert.is(status, 202)
  assert.equal(body.events, [{ status: 'accepted', id: 'held' }])
  // On a busy machine that may take longer than the wait, too.
  const again = await until(async () => {
    const answer = await post([event('held')])
    return answer.status === 200 && answer
  })
  assert.is(again.body.events[0]!.status, 'duplicate')
})

test('a commit that no message told of is found by the poll', async () => {
  const { nc } = servers.broker
  const { publish } = nc
  const silenced: string[] = []
  // Only the message to the waiters is lost; the worker and its COMMIT are real.
  nc.publish = (subject, ...rest) =>
    subject.startsWith('_INBOX') && rest.length === 0 ? void silenced.push(subject) : publish.call(nc, subject, ...rest)
  const slow = await startService(servers, { COMMIT_WAIT_MS: 60_000 })
  try {
    const response = await fetch(`${slow.url}/v1/events?wait=committed`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify(event('unheard')),
    })
    assert.is(response.status, 200)
    assert.ok(silenced.length > 0)
  } finally {
    nc.publish = publish
    await slow.stop()
  }
})

test('a waiting request is told what became a dead letter', async () => {
  // A column's rule that this one event breaks: nothing the API could have known.
  await servers.db.execute(sql`alter table events add constraint no_poison check (subject is distinct from 'poison')`)
  const slow = await startService(servers, { COMMIT_WAIT_MS: 60_000 })
  const response = await fetch(`${slow.url}/v1/events?wait=committed`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify([event('fine'), event('poison', { subject: 'poison' }), event('fine-2'), event('fine-3')]),
  })
  const { events } = (await response.json()) as Answer
  await slow.stop()
  assert.is(response.status, 200)
  assert.equal(
    events.map(({ status }) => status),
    ['inserted', 'dead_lettered', 'inserted', 'inserted'],
  )
})

test.run()
