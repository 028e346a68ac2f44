import { createHash } from 'node:crypto'
import { existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { zstdDecompressSync } from 'node:zlib'
import { sql } from 'drizzle-orm'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { PARTITIONS, RETENTION, startJobs } from '../../src/db/jobs.ts'
import { ensurePartitions, listPartitions } from '../../src/db/partitions.ts'
import type { MillraceError } from '../../src/errors.ts'
import { connectRetention, runRetention } from '../../src/retention/run.ts'
import { watchGrowth } from '../../src/retention/watch.ts'
import { startServers } from '../servers.ts'
import { startService, until } from '../service.ts'

const servers = await startServers()
const service = await startService(servers)
const { db } = servers
const dir = join(servers.dir, 'archive')
const config = { ...servers.config, EVENTS_RETENTION_DAYS: 30, ARCHIVE_DIR: dir }
const never = new AbortController().signal
const client = await connectRetention(config)
test.after(async () => {
  await client.end()
  await service.stop()
  await servers.stop()
})

const DAY_MS = 24 * 3600 * 1_000
const old = Date.parse('2025-03-05T12:00:00Z')

/** What a worker stored at that time, as its statement does. */
async function store(id: string, publishedMs: number, data: string | null = '{"n": 1.10}'): Promise<void> {
  await db.execute(sql`
    with fresh as (
      insert into event_ids values (event_key('default', 's', ${id}), to_timestamp(${publishedMs}::float8 / 1000), 1)
      on conflict do nothing returning published_at, stream_seq)
    insert into events (source, id, type, data, time, extensions, received_at, published_at, stream_seq, batch_id)
    select 's', ${id}, 'old.event', ${data}::jsonb, '2025-03-05T12:00:00.123456Z', '{"region":"ü\\n"}', published_at,
      published_at, stream_seq, gen_random_uuid() from fresh`)
}
const rowsOf = async (table: string) =>
  (await client.query(`select to_jsonb(e)::text as row, data is null as empty from ${table} e order by id`)).rows
const archives = async () =>
  (
    await client.query(
      'select lower, upper, rows::int, file, sha256, done_at is not null as done from event_archives order by n',
    )
  ).rows
const read = (id: string) => service.get(`/v1/events/s/${id}`)

test('what falls into no partition waits in the default one, and is moved to its own', async () => {
  await store('a', old)
  await store('b', old + DAY_MS)
  assert.is((await client.query('select 1 from only events_default')).rowCount, 2)
  assert.equal(await ensurePartitions(client, 7), [])
  assert.is((await client.query('select 1 from only events_default')).rowCount, 0)
  assert.is((await client.query('select 1 from only events_20250303')).rowCount, 2)
  assert.is((await read('a')).status, 200)
  const partitions = await listPartitions(client)
  assert.ok(partitions.at(-1)!.to > Date.now() + 13 * DAY_MS)
  // A second time there is nothing to do, and other lengths only fill what is free.
  assert.equal(await ensurePartitions(client, 7), [])
  assert.equal(await listPartitions(client), partitions)
  await ensurePartitions(client, 10, Date.now() + 30 * DAY_MS)
  const all = await listPartitions(client)
  assert.ok(all.length > partitions.length)
  for (const [i, { to }] of all.slice(0, -1).entries()) assert.ok(to <= all[i + 1]!.from)
})

test('without a word on where to keep what is dropped, nothing is', async () => {
  for (const days of [30, 1])
    await runRetention({ ...config, EVENTS_RETENTION_DAYS: days, ARCHIVE_DIR: '' }, never).then(
      () => assert.unreachable(),
      (error: MillraceError) => {
        assert.is(error.code, 'invalid_config')
        assert.match(error.message, 'ARCHIVE_DIR')
      },
    )
  assert.is((await read('a')).status, 200)
})

test('a partition that cannot be archived stays, and is archived once it can be', async () => {
  await store('null', old + 1, 'null')
  await store('none', old + 2, null)
  const before = await rowsOf('events')
  const noFolder = join(servers.dir, 'a-file')
  writeFileSync(noFolder, '')
  await runRetention({ ...config, ARCHIVE_DIR: noFolder }, never).then(
    () => assert.unreachable(),
    (error: NodeJS.ErrnoException) => assert.is(error.code, 'EEXIST'),
  )
  // It is detached: gone from sight, its rows where they were.
  assert.equal(await archives().then((all) => all.map(({ done }) => done)), [false])
  assert.is((await read('a')).status, 410)
  assert.equal(await rowsOf('archiving_1'), before)

  const outcome = await runRetention(config, never)
  assert.equal(
    outcome!.events.map(({ archive }) => archive?.rows),
    [4],
  )
  const [{ file: name, sha256, rows, done }] = await archives()
  assert.equal([rows, done], [4, true])
  assert.equal(readdirSync(dir).sort(), [name, name.replace('.ndjson.zst', '.json')].sort())
  const bytes = readFileSync(join(dir, name))
  assert.is(createHash('sha256').update(bytes).digest('hex'), sha256)
  const manifest = JSON.parse(readFileSync(join(dir, name.replace('.ndjson.zst', '.json')), 'utf8'))
  assert.equal([manifest.rows, manifest.sha256, manifest.bytes], [4, sha256, bytes.length])
  assert.is((await client.query(`select to_regclass('archiving_1') as there`)).rows[0].there, null)

  // Back from the file they are what they were, to the digit.
  const lines = zstdDecompressSync(bytes).toString().trimEnd().split('\n')
  await client.query('create table restored (like events including defaults)')
  await client.query(
    `insert into restored select (jsonb_populate_record(null::events, line)).* from unnest($1::jsonb[]) as line`,
    [lines],
  )
  await client.query(
    `update restored set data = 'null' where id in (select line->>'id' from unnest($1::jsonb[]) as line where line->'data' = 'null')`,
    [lines],
  )
  assert.equal(await rowsOf('restored'), before)
  await client.query('drop table restored')
})

test('an archived event is gone, says where to, and sent again is a duplicate', async () => {
  const gone = await read('a')
  assert.is(gone.status, 410)
  assert.is(gone.body.error, 'archived')
  assert.equal(gone.body.archives, [(await archives())[0].file])
  assert.is((await read('never')).status, 404)
  const answer = await fetch(`${service.url}/v1/events?wait=committed`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ id: 'a', source: 's', type: 'old.event' }),
  })
  assert.match(await answer.text(), '"duplicate"')
  assert.is((await client.query('select 1 from events')).rowCount, 0)
})

test('an event that comes late for an archived partition is kept, and archived in a file of its own', async () => {
  await store('late', old + 3)
  assert.is((await read('late')).status, 200)
  await runRetention(config, never)
  const files = (await archives()).map(({ file }) => file)
  assert.is(new Set(files).size, 2)
  assert.is((await read('late')).status, 410)
  assert.equal((await read('late')).body.archives, files)
})

test('a run that is cut off is taken up again: nothing is lost, nothing is there twice', async () => {
  const rows = 6_000
  await client.query(
    `with fresh as (
       insert into event_ids select event_key('default', 's', 'many-' || n), to_timestamp($1::float8 / 1000), n from generate_series(1, $2::int) n
       returning published_at, stream_seq)
     insert into events (source, id, type, received_at, published_at, stream_seq, batch_id)
     select 's', 'many-' || stream_seq, 't', published_at, published_at, stream_seq, gen_random_uuid() from fresh`,
    [old, rows],
  )
  // Each time a little later: somewhere in it one hits each step.
  for (let waitMs = 1; ; waitMs *= 1.3) {
    const cut = new AbortController()
    const timer = setTimeout(() => cut.abort(), waitMs)
    const done = await runRetention(config, cut.signal).then(
      () => true,
      () => false,
    )
    clearTimeout(timer)
    if (done) break
  }
  const found = (await archives()).at(-1)
  assert.is(found.rows, rows)
  assert.is(readdirSync(dir).filter((name) => name.endsWith('.part')).length, 0)
  const lines = zstdDecompressSync(readFileSync(join(dir, found.file)))
    .toString()
    .trimEnd()
    .split('\n')
  assert.is(new Set(lines.map((line) => JSON.parse(line).id)).size, rows)
  assert.is(lines.length, rows)
  rmSync(dir, { recursive: true })
})

test('ARCHIVE_DIR=none drops without an archive', async () => {
  await store('unkept', old + 4)
  const outcome = await runRetention({ ...config, ARCHIVE_DIR: 'none' }, never)
  assert.equal(
    outcome!.events.map(({ archive }) => archive),
    [null],
  )
  assert.is((await read('unkept')).status, 410)
  assert.is(existsSync(dir), false)
})

test('lines of batches go with their events; one that still has events stays', async () => {
  await store('recent', Date.now())
  await client.query(
    `insert into batches select gen_random_uuid(), 'w', 1, 1, 0, 0, at from unnest($1::timestamptz[]) at`,
    [[new Date(old), new Date()]],
  )
  await ensurePartitions(client, 7)
  await until(
    async () =>
      (await client.query("select 1 from batches where committed_at > now() - interval '1 day'")).rowCount! >= 1,
  )
  const outcome = await runRetention(config, never)
  assert.is(outcome!.batches, 1)
  assert.is((await client.query('select 1 from batches where committed_at < $1', [new Date(old + DAY_MS)])).rowCount, 0)
  assert.is((await read('recent')).status, 200)
})

test('runs that ended long ago are deleted with their steps, but for those that something open refers to', async () => {
  const ended = new Date(old)
  const id = (n: number) => `0195667e-0000-7000-8000-00000000000${n}`
  const insert = (n: number, status: string, over: { parent?: number; chain?: number } = {}) =>
    client.query(
      `insert into workflow_runs (run_id, name, status, created_at, finished_at, parent_id, chain_id) values ($1, 'w', $2, $3, $4, $5, $6)`,
      [
        id(n),
        status,
        ended,
        status === 'waiting' ? null : ended,
        over.parent === undefined ? null : id(over.parent),
        over.chain === undefined ? null : id(over.chain),
      ],
    )
  await insert(1, 'completed')
  await insert(2, 'waiting')
  await insert(3, 'completed', { parent: 2 })
  await insert(4, 'failed')
  await insert(5, 'continued')
  await insert(6, 'waiting', { chain: 5 })
  await insert(7, 'stuck')
  await client.query(
    `insert into workflow_steps (run_id, pos, kind, name, at) select run_id, 0, 'step', 's', now() from workflow_runs`,
  )
  const outcome = await runRetention({ ...config, EVENTS_RETENTION_DAYS: 0, WORKFLOW_RETENTION_DAYS: 10 }, never)
  assert.is(outcome!.runs, 2)
  const left = [2, 3, 5, 6, 7].map(id)
  assert.equal(
    (await client.query('select run_id from workflow_runs order by 1')).rows.map((row) => row.run_id),
    left,
  )
  assert.equal(
    (await client.query('select run_id from workflow_steps order by 1')).rows.map((row) => row.run_id),
    left,
  )
})

test('workers do both by jobs, and tell how much there is', async () => {
  const stopping = new AbortController()
  const jobs = await startJobs(servers.config.DATABASE_URL, { maintain: true })
  const log = { info: () => {}, warn: () => {} }
  const stop = await watchGrowth({ db, jobs, log, telemetry: service.telemetry }, config, stopping.signal)
  const newest = (await listPartitions(client)).at(-1)!
  await client.query(`drop table ${newest.name}`)
  await store('by job', old + 5)
  await jobs.send(PARTITIONS)
  await until(async () => (await listPartitions(client)).some(({ from }) => from < old))
  await jobs.send(RETENTION)
  await until(async () => (await read('by%20job')).status === 410)
  const metrics = await service.telemetry.metrics.render()
  for (const name of ['events_bytes', 'event_identities_bytes', 'event_partitions', 'event_partition_ahead_seconds'])
    assert.match(metrics, new RegExp(`^millrace_${name}(_bytes|_seconds)?\\{?[^\\n]* [1-9]`, 'm'))
  await stop()
  await jobs.stop()
})

test.run()
