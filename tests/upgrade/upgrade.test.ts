/** From every earlier schema to this one: with data in it, and while processes of before go on working. */

import { readdirSync } from 'node:fs'
import pg from 'pg'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { readQueue } from '../../src/broker/queue.ts'
import { ensureStream } from '../../src/broker/streams.ts'
import { connectDatabase } from '../../src/db/connect.ts'
import { startJobs } from '../../src/db/jobs.ts'
import { applyMigrations, migrateDatabase } from '../../src/db/migrate.ts'
import { listPartitions } from '../../src/db/partitions.ts'
import type { MillraceError } from '../../src/errors.ts'
import { startServers } from '../servers.ts'
import { startService, until } from '../service.ts'
import { insertOld, type OldEvent, publishOld, startOldWorker } from './old-worker.ts'

const servers = await startServers()
const admin = new pg.Client({ connectionString: servers.postgres.url })
await admin.connect()
test.after(async () => {
  await admin.end()
  await servers.stop()
})

const MIGRATIONS = readdirSync('migrations')
  .filter((name) => name.endsWith('.sql'))
  .map((name) => name.slice(0, -4))
  .sort()
/** From here on a worker of before cannot insert. */
const PARTITIONED = 10
/** From here on rows have tenants, without which processes of now cannot work. */
const TENANTS = 12

let databases = 0
async function databaseAt(migration: string) {
  const name = `upgraded_${++databases}`
  await admin.query(`create database ${name}`)
  const url = servers.postgres.url.replace(/millrace$/, name)
  const client = new pg.Client({ connectionString: url })
  await client.connect()
  await applyMigrations(client, migration)
  return { url, client }
}

let seq = 0
const eventOf = (id: string): OldEvent => ({
  source: 'old',
  id,
  payload: JSON.stringify({ id, source: 'old', type: 'upgraded', data: { text: `${id} ü`, n: 1.5 }, region: 'eu' }),
  seq: ++seq,
  publishedMs: Date.now(),
})

/** What the rest of a used database has. */
async function fill(client: pg.Client, migration: number): Promise<void> {
  await client.query(`insert into batches values (gen_random_uuid(), 'w', 1, 1, 0, 0, now())`)
  await client.query(
    `insert into dead_letter_audit (dead_letter_id, source, event_id, action, actor) values (gen_random_uuid(), 's', 'i', 'recorded', 'w')`,
  )
  if (migration >= 2)
    await client.query(`insert into workflow_runs (run_id, name, status) values (gen_random_uuid(), 'w', 'waiting')`)
  if (migration >= 3) await client.query(`insert into event_schemas (type, version, schema) values ('t', 1, '{}')`)
  if (migration >= 7)
    await client.query(`insert into audit (tenant, actor, action) values ('default', 'cli', 'key.create')`)
}

for (const [n, migration] of MIGRATIONS.slice(0, PARTITIONED).entries())
  test(`from ${migration}, while a worker of before inserts: it holds from then on, and nothing is lost`, async () => {
    const { url, client } = await databaseAt(migration)
    try {
      await fill(client, n)
      await client.query(`alter table events add constraint named check (type <> 'refused') not valid`)
      const inserted: OldEvent[] = []
      let held: OldEvent[] = []
      let code: string | undefined
      const insertOn = async () => {
        while (code === undefined) {
          held = Array.from({ length: 10 }, () => eventOf(`e${seq + 1}`))
          try {
            await insertOld(client, n, held)
            inserted.push(...held)
          } catch (error) {
            code = (error as pg.DatabaseError).code
          }
        }
      }
      const inserting = insertOn()
      await until(async () => inserted.length >= 50)
      await migrateDatabase(url)
      await inserting
      // No unique constraint that fits: held, as every class but 22, 23 and 54 is.
      assert.is(code, '42P10')
      const { rows } = await client.query(
        `select (select count(*)::int from events) as events, (select count(distinct id)::int from events) as ids,
           (select count(*)::int from event_ids) as identities,
           (select count(*)::int from events join event_ids using (published_at, stream_seq, stream_place)
            where key = event_key('default', source, id) and tenant = 'default') as found,
           (select count(*)::int from only events_first) as first,
           (select convalidated from pg_constraint where conname = 'named' and conrelid = 'events'::regclass) as validated`,
      )
      const count = inserted.length
      assert.equal(rows[0], {
        events: count,
        ids: count,
        identities: count,
        found: count,
        first: count,
        validated: false,
      })
      const partitions = await listPartitions(client)
      assert.ok(partitions.length >= 2 && partitions[0]!.from === Number.NEGATIVE_INFINITY)
      for (const [i, { to }] of partitions.slice(0, -1).entries()) assert.is(to, partitions[i + 1]!.from)
      // Again there is nothing to do.
      await migrateDatabase(url)
      assert.equal(await listPartitions(client), partitions)
    } finally {
      await client.end()
    }
  })

for (const [i, migration] of MIGRATIONS.slice(PARTITIONED, TENANTS).entries())
  test(`from ${migration}, while a worker of before inserts: it goes on, and its events are the operators'`, async () => {
    const { url, client } = await databaseAt(migration)
    try {
      await fill(client, PARTITIONED + i)
      const inserted: OldEvent[] = []
      let inserting = true
      const load = (async () => {
        while (inserting) {
          const events = Array.from({ length: 10 }, () => eventOf(`e${seq + 1}`))
          // Its week got a partition of its own while the statement waited for the default one: tried again, as workers do.
          const misses = (error: pg.DatabaseError) => (error.code === '23514' ? 'again' : Promise.reject(error))
          while ((await insertOld(client, PARTITIONED + i, events).catch(misses)) === 'again');
          inserted.push(...events)
        }
      })()
      await Promise.race([load, until(async () => inserted.length >= 50)])
      await migrateDatabase(url)
      const before = inserted.length
      await Promise.race([load, until(async () => inserted.length >= before + 50)])
      inserting = false
      await load
      const { rows } = await client.query(
        `select count(*)::int as found from events join event_ids using (published_at, stream_seq, stream_place)
         where key = event_key(tenant, source, id) and tenant = 'default'`,
      )
      assert.is(rows[0].found, inserted.length)
      for (const table of ['dead_letter_audit', 'workflow_runs', 'event_schemas'])
        assert.is((await client.query(`select from ${table} where tenant = 'default'`)).rowCount, 1, table)
    } finally {
      await client.end()
    }
  })

for (const migration of MIGRATIONS.slice(TENANTS, -1))
  test(`from ${migration}, while processes of now work over it`, async () => {
    const { url, client } = await databaseAt(migration)
    const config = { ...servers.config, DATABASE_URL: url }
    const database = connectDatabase(config)
    try {
      const jobs = await startJobs(url, { migrate: true })
      await jobs.stop()
      const service = await startService({ ...servers, config, database, db: database.db })
      const answered = new Set<string>()
      let posting = true
      const load = (async () => {
        while (posting) {
          const event = eventOf(`e${seq + 1}`)
          const { status } = await service.post([JSON.parse(event.payload)])
          if (status === 202) answered.add(event.id)
        }
      })()
      await until(async () => answered.size >= 10)
      await migrateDatabase(url)
      const before = answered.size
      await until(async () => answered.size >= before + 10)
      posting = false
      await load
      await until(async () => (await readQueue(servers.broker)).depth === 0)
      const { rows } = await client.query(`select id from events order by id`)
      assert.equal(
        rows.map(({ id }) => id),
        [...answered].sort(),
      )
      await service.stop()
    } finally {
      await database.close()
      await client.end()
    }
  })

test('the whole service, from messages and workers of before: all that was answered is there, once', async () => {
  const { url, client } = await databaseAt('0006_trigger_concurrency')
  const config = { ...servers.config, DATABASE_URL: url }
  const answered = new Set<string>()
  const { broker } = servers
  await ensureStream(broker, config)
  let posting = true
  const postOn = async () => {
    for (let i = 0; posting; i++) {
      const event = eventOf(`p${i}`)
      await publishOld(broker, event)
      answered.add(event.id)
      // Its client tries again.
      if (i % 7 === 0) await publishOld(broker, event)
    }
  }
  const load = postOn()
  const worker = await startOldWorker(broker, client, 6)
  await until(async () => worker.seen.committed >= 40)
  await migrateDatabase(url)
  await until(async () => worker.seen.heldFor.length > 0)
  const database = connectDatabase(config)
  const service = await startService({ ...servers, config, database, db: database.db })
  try {
    const again = [...answered].slice(0, 20)
    for (const id of [...again, 'new-1', 'new-2']) {
      const { status } = await service.post(JSON.parse(eventOf(id).payload))
      assert.is(status, 202)
      answered.add(id)
    }
    posting = false
    await load
    await worker.stop()
    await until(async () => (await readQueue(broker)).depth === 0)
    assert.equal([...new Set(worker.seen.heldFor)], ['42P10'])
    const { rows } = await client.query(`select id, count(*)::int as times from events group by id`)
    assert.equal(new Set(rows.map(({ id }) => id)), answered)
    assert.ok(rows.every(({ times }) => times === 1))
    const jobs = await client.query(`select name from pgboss.job where name in ('dead-letters', 'failed-batches')`)
    assert.is(jobs.rowCount, 0)
    assert.is((await service.get('/v1/events/old/p0')).status, 200)
  } finally {
    posting = false
    await load
    await worker.stop()
    await service.stop()
    await database.close()
    await client.end()
  }
})

test('a view or a trigger that would see only a part of the events stops the migration, and says what to do', async () => {
  const { url, client } = await databaseAt('0008_parcels')
  try {
    await insertOld(client, 8, [eventOf('seen')])
    await client.query('create view seen as select * from events')
    const refused = await migrateDatabase(url).then(
      () => '',
      (error: Error) => error.message,
    )
    assert.match(refused, /Views read events \(seen\).*drop them/)
    // The worker of before goes on until someone has done it.
    await insertOld(client, 8, [eventOf('still')])
    await client.query('drop view seen')
    await migrateDatabase(url)
    assert.is((await client.query('select 1 from events')).rowCount, 2)
    assert.is((await client.query('select 1 from event_ids')).rowCount, 2)
  } finally {
    await client.end()
  }
})

test('a newer schema is served unless it says that this version cannot', async () => {
  const { url, client } = await databaseAt(MIGRATIONS.at(-1)!)
  try {
    await client.query(`insert into drizzle.__drizzle_migrations (hash, created_at) values ('newer', 9999999999999)`)
    await migrateDatabase(url)
    await client.query(`insert into schema_breaks values ('9999_newer')`)
    await migrateDatabase(url).then(
      () => assert.unreachable(),
      (error: MillraceError) => {
        assert.is(error.code, 'schema_too_new')
        assert.match(error.message, /newer Millrace \(9999_newer\).*start the newer one/)
      },
    )
  } finally {
    await client.end()
  }
})

test.run()
