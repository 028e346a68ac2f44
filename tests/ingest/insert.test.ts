import { sql } from 'drizzle-orm'
import pg from 'pg'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { ensurePartitions, listPartitions } from '../../src/db/partitions.ts'
import { insertBatch } from '../../src/ingest/insert.ts'
import type { Parcel } from '../../src/ingest/parcel.ts'
import { startServers } from '../servers.ts'
import { until } from '../service.ts'

const servers = await startServers()
const { db } = servers
test.before.each(async () => void (await db.execute(sql`truncate events, event_ids`)))
test.after(servers.stop)

function parcel(seq: number, ids: string[], over: Partial<Parcel> = {}): Parcel {
  const texts = ids.map((id) => JSON.stringify({ id, source: 's', type: 't', data: { seq } }))
  const events = ids.length
  return {
    from: { message: undefined as never, publishedMs: Date.now(), seq, deliveries: 1, events, open: events },
    receivedMs: Date.now(),
    traceparent: '',
    commitReply: '',
    tenant: 'default',
    place: 0,
    events,
    bytes: Buffer.from(texts.join('\x1e')),
    ...over,
  }
}

async function insert(...parcels: Parcel[]): Promise<number> {
  const outcome = await insertBatch({ db, broker: null }, parcels)
  assert.is(outcome.kind, 'settled')
  return outcome.kind === 'settled'
    ? outcome.outcomes.reduce((sum, one) => sum + (one.kind === 'stored' ? one.inserted : 0), 0)
    : 0
}

const stored = async () =>
  (
    await db.execute<{ id: string; seq: string }>(sql`select id, data->>'seq' as seq from events order by id, seq`)
  ).rows.map(({ id, seq }) => `${id} of ${seq}`)
const identities = async () =>
  Number((await db.execute<{ n: string }>(sql`select count(*) as n from event_ids`)).rows[0]!.n)

test('of an identity that a batch has several times, within a message and across, the first is stored', async () => {
  assert.is(await insert(parcel(7, ['a', 'b', 'a']), parcel(8, ['b', 'c'])), 3)
  assert.equal(await stored(), ['a of 7', 'b of 7', 'c of 8'])
  assert.is(await identities(), 3)
  assert.is(await insert(parcel(9, ['c', 'd', 'a'])), 1)
  assert.equal(await stored(), ['a of 7', 'b of 7', 'c of 8', 'd of 9'])
})

test('a message that a batch has twice is stored once', async () => {
  const [one, again] = [parcel(7, ['a', 'b']), parcel(7, ['a', 'b'])]
  assert.is(await insert(one, again), 2)
  assert.equal(await stored(), ['a of 7', 'b of 7'])
  assert.is(await identities(), 2)
})

test('one identity of two tenants is two events, and no two identities are one text', async () => {
  await insert(parcel(7, ['a']), parcel(8, ['a'], { tenant: 'other' }))
  assert.equal(await stored(), ['a of 7', 'a of 8'])
  const { rows } = await db.execute<{ n: string }>(sql`
    select count(distinct event_key(tenant, source, id)) as n
    from (values ('t', 'a', 'bc'), ('t', 'ab', 'c'), ('ta', 'b', 'c'), ('t', '1:a', 'bc'), ('t', 'ü', ''), ('t', '', 'ü')) k(tenant, source, id)`)
  assert.is(Number(rows[0]!.n), 6)
})

test('overlapping batches of many workers, in any order, leave each event once and never deadlock', async () => {
  const ids = Array.from({ length: 60 }, (_, n) => `e${n}`)
  const orders = [ids, ids.toReversed(), [...ids.slice(30), ...ids.slice(0, 30)], ids.filter((_, n) => n % 2 === 0)]
  let inserted = 0
  for (let round = 0; round < 10; round++) {
    const named = orders.map((order) => order.map((id) => `${round}-${id}`))
    const counts = await Promise.all(named.map((order, n) => insert(parcel(round * 10 + n, order))))
    inserted += counts.reduce((sum, count) => sum + count)
  }
  assert.is(inserted, 600)
  assert.is((await stored()).length, 600)
  assert.is(await identities(), 600)
})

test('a partition made while events go into the default one refuses none of them', async () => {
  const client = new pg.Client({ connectionString: servers.postgres.url })
  await client.connect()
  let poison = 0
  let seq = 1_000
  for (let round = 0; round < 5; round++) {
    for (const { name } of await listPartitions(client)) await client.query(`drop table ${name}`)
    let making = true
    const inserting = Array.from({ length: 3 }, async () => {
      while (making) {
        const mine = ++seq
        // As a worker does: what is postponed is tried again.
        for (let settled = false; !settled; ) {
          const outcome = await insertBatch({ db, broker: null }, [parcel(mine, [`m${mine}`])])
          settled = outcome.kind === 'settled'
          if (outcome.kind === 'settled') poison += outcome.outcomes.filter(({ kind }) => kind === 'poison').length
        }
      }
    })
    await until(async () => (await client.query('select from only events_default')).rowCount! > 5)
    await until(async () => (await ensurePartitions(client, 7)).length === 0)
    making = false
    await Promise.all(inserting)
    assert.is((await client.query('select from only events_default')).rowCount, 0)
  }
  assert.is(poison, 0)
  await client.end()
})

test.run()
