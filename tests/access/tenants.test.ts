/** Two tenants on one installation: neither sees, touches, starts or wakes anything of the other. */

import { sql } from 'drizzle-orm'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { createKey } from '../../src/access/keys.ts'
import { workflow } from '../../src/index.ts'
import { startServers } from '../servers.ts'
import { startService, until } from '../service.ts'

const servers = await startServers({ API_KEYS: 'required', MAX_DELIVER: '1', RETRY_DELAY_MS: '10' })
const { db } = servers
// A workflow that no worker runs, so that its runs stay as the test has made them.
await db.execute(
  sql`insert into workflow_definitions (name, version, queue, priority) values ('idle', '', 'nobody', 0)`,
)

const child = workflow('child', async (run, n: number) => `${run.tenant} ${n + 1}`)
const parent = workflow('parent', async (run, n: number) => run.child(child, n))
const fulfil = workflow('fulfil', { on: { event: 'order.placed', key: (e) => e.data.order } }, async (run, data) => {
  const parcel = await run.waitFor('parcel.shipped', { key: data.order })
  return parcel?.data
})
const service = await startService(servers, {}, [child, parent, fulfil])
test.after(async () => {
  await service.stop()
  await servers.stop()
})

/** In everything of the operators' tenant; its names, which the others may use too, are `shared`. */
const WORD = 'PRIVATE'

const SCOPES = ['ingest', 'read', 'operate', 'admin'] as const
const tester = { actor: 'cli tester', keyId: null, tenant: 'default' }
async function tenant(name: string) {
  const { token, id } = await createKey(servers, tester, {
    tenant: name,
    name: name === 'default' ? WORD : name,
    scopes: [...SCOPES],
  })
  const ask = (method: string, path: string, body?: unknown) => service.ask(token, method, path, body)
  await until(async () => (await ask('GET', '/v1/keys')).status === 200)
  const send = async (...events: object[]) => (await ask('POST', '/v1/events?wait=committed', events)).body
  return { keyId: id, ask, send }
}
const ours = await tenant('default')
const theirs = await tenant('acme')

const event = (id: string, type: string, data: unknown = {}) => ({ id, source: '/s', type, data })
const statuses = (answer: { events: { status: string }[] }) => answer.events.map(({ status }) => status)

/** A run of `idle` under this id. */
async function idle(ask: typeof ours.ask, id: string, input: string): Promise<string> {
  return (await ask('POST', '/v1/workflows/idle/runs', { id, input })).body.runId
}

/** One of everything, with the names by which each path could reach it. */
async function seed(): Promise<{ runId: string; failed: string; letter: string }> {
  await ours.send(event('shared', 'shared', { word: WORD }))
  await db.execute(sql`alter table events add constraint no_poison check (type <> 'poison') not valid`)
  const good = Array.from({ length: 4 }, (_, n) => event(`good-${n}`, 'good'))
  await ours.send(...good, event('shared-dead', 'poison', { word: WORD }))
  const letters = () => ours.ask('GET', `/v1/dead-letters?id=shared-dead`)
  await until(async () => (await letters()).body.dead_letters.length === 1)
  await db.execute(sql`alter table events drop constraint no_poison`)
  await ours.ask('PUT', '/v1/schemas/shared/1', { type: 'object', title: WORD })
  const runId = await idle(ours.ask, 'shared', WORD)
  const failed = await idle(ours.ask, 'shared-failed', WORD)
  await db.execute(sql`
    update workflow_runs set status = 'failed', error = '{"name":"Error","message":"PRIVATE"}' where run_id = ${failed}`)
  await ours.ask('PUT', '/v1/schedules/shared', { workflow: 'idle', every: '1h', input: WORD })
  return { runId, failed, letter: (await letters()).body.dead_letters[0].deadLetterId }
}

const seeded = await seed()

/** What stands for a parameter of a path, by the path up to it. */
const PARAMETERS: Record<string, string> = {
  '/v1/events/{source}': '%2Fs',
  '/v1/events/{source}/{id}': 'shared',
  '/v1/dead-letters/{id}': seeded.letter,
  '/v1/schemas/{type}': 'shared',
  '/v1/schemas/{type}/{version}': '1',
  '/v1/workflows/{name}': 'idle',
  '/v1/runs/{id}': seeded.runId,
  '/v1/runs/{id}/signals/{signal}': 'go',
  '/v1/queues/{queue}': 'nobody',
  '/v1/schedules/{name}': 'shared',
  '/v1/keys/{id}': ours.keyId,
}
const hours = { from: '2026-01-01T00:00:00Z', to: '2026-01-01T02:00:00Z' }
/** Bodies that would reach what is there; `{}` where none is needed. */
const BODIES: Record<string, unknown> = {
  'POST /v1/events': event('good-1', 'good'),
  'POST /v1/dead-letters/actions/replay': { all: true },
  'POST /v1/dead-letters/actions/discard': { all: true },
  'PUT /v1/schemas/{type}': { mode: 'off' },
  'PUT /v1/schemas/{type}/{version}': { type: 'number' },
  'POST /v1/workflows/{name}/runs': { id: 'shared', onConflict: 'terminate' },
  'PUT /v1/queues/{queue}': { concurrency: 1 },
  'PUT /v1/schedules/{name}': { workflow: 'idle', every: '1m' },
  'POST /v1/schedules/{name}/backfill': hours,
  'POST /v1/keys': { name: 'another', scopes: ['read'] },
}

/** Of every table that knows tenants, and of the jobs behind dead letters, what belongs to the operators' tenant. */
async function belongings(): Promise<Record<string, unknown>> {
  const { rows: tables } = await db.execute<{ name: string }>(sql`
    select table_name as name from information_schema.columns join information_schema.tables using (table_schema, table_name)
    where column_name = 'tenant' and table_schema = 'public' and table_type = 'BASE TABLE' order by 1`)
  assert.ok(tables.length >= 10, 'the tables are found')
  const held: Record<string, unknown> = {}
  for (const { name } of tables) {
    const { rows } = await db.execute<{ sum: string }>(sql`
      select md5(coalesce(string_agg(t::text, ' ' order by t::text), '')) || ' ' || count(*) as sum
      from ${sql.identifier(name)} t where tenant = 'default'`)
    held[name] = rows[0]!.sum
  }
  const { rows } = await db.execute(
    sql`select id, state from pgboss.job where name in ('dead-letters', 'dead-runs') order by id`,
  )
  return { ...held, jobs: rows }
}

test('no route shows or changes anything of another tenant, whatever it is asked', async () => {
  const { paths } = (await theirs.ask('GET', '/openapi.json')).body
  const before = await belongings()
  let asked = 0
  for (const [template, item] of Object.entries<any>(paths))
    for (const method of ['get', 'post', 'put', 'delete'].filter((one) => one in item)) {
      const route = `${method.toUpperCase()} ${template}`
      let path = ''
      for (const part of template.split('/').slice(1)) {
        const upTo = `${template.slice(0, template.indexOf(`/${part}`))}/${part}`
        const value = part.startsWith('{') ? PARAMETERS[upTo] : part
        assert.ok(value !== undefined, `say what ${upTo} stands for in PARAMETERS`)
        path += `/${value}`
      }
      const { status, body } = await theirs.ask(
        method.toUpperCase(),
        path,
        method === 'get' ? undefined : (BODIES[route] ?? {}),
      )
      const text = JSON.stringify(body)
      if (status >= 300) assert.ok([400, 403, 404, 409].includes(status), `${route} ${status} ${text}`)
      else for (const foreign of [WORD, ...Object.values(seeded), ours.keyId]) assert.not.match(text, foreign, route)
      asked++
    }
  assert.ok(asked > 45, String(asked))
  assert.equal(await belongings(), before, 'nothing of ours has changed')
})

test('what they made under the same names is theirs, and ours is as it was', async () => {
  const theirRun = (await theirs.ask('GET', '/v1/runs/shared')).body
  const ourRun = (await ours.ask('GET', '/v1/runs/shared')).body
  assert.is(ourRun.runId, seeded.runId)
  assert.is.not(theirRun.runId, ourRun.runId)
  assert.equal((await ours.ask('GET', '/v1/schemas/shared')).body.mode, 'strict')
  assert.is((await theirs.ask('GET', '/v1/runs?status=failed')).body.runs.length, 0)
  assert.is((await ours.ask('GET', '/v1/runs?status=failed')).body.runs.length, 1)
})

test('an identity is a tenant’s own: both may have it, each once', async () => {
  const same = [event('same', 'good', { n: 1 })]
  assert.equal(statuses(await ours.send(...same)), ['inserted'])
  assert.equal(statuses(await theirs.send({ ...same[0], data: { n: 2 } })), ['inserted'])
  assert.equal(statuses(await theirs.send(...same)), ['duplicate'])
  const data = async ({ ask }: typeof ours) => (await ask('GET', '/v1/events/%2Fs/same')).body.event.data
  assert.equal([await data(ours), await data(theirs)], [{ n: 1 }, { n: 2 }])
  assert.not.match(JSON.stringify((await theirs.ask('GET', '/v1/events')).body), WORD)
})

test('a schema holds only its tenant’s events', async () => {
  await ours.ask('PUT', '/v1/schemas/held/1', { type: 'object', required: ['n'], properties: { n: {} } })
  assert.equal(statuses(await theirs.send(event('free', 'held'))), ['inserted'])
  assert.equal(statuses((await ours.ask('POST', '/v1/events', [event('bound', 'held')])).body), ['rejected'])
})

test('an event starts and wakes only runs of its own tenant', async () => {
  await ours.send(event('o', 'order.placed', { order: 'k' }))
  const ourRun = await until(async () => {
    const { status, body } = await ours.ask('GET', '/v1/runs/fulfil:k')
    return status === 200 && body
  })
  assert.is((await theirs.ask('GET', '/v1/runs/fulfil:k')).status, 404)
  assert.is((await theirs.ask('GET', `/v1/runs/${ourRun.runId}`)).status, 404)
  await theirs.send(event('o', 'order.placed', { order: 'k' }))
  const waits = async () => {
    const { rows } = await db.execute<{ tenant: string }>(
      sql`select tenant from workflow_waits where source is null order by 1`,
    )
    return rows.map((row) => row.tenant).join()
  }
  await until(async () => (await waits()) === 'acme,default')
  await theirs.send(event('p', 'parcel.shipped', { order: 'k', subject: 'k' }))
  await theirs.send({ ...event('p2', 'parcel.shipped', { whose: 'theirs' }), subject: 'k' })
  const result = async ({ ask }: typeof ours) => (await ask('GET', '/v1/runs/fulfil:k/result?wait=30')).body
  assert.equal((await result(theirs)).output, { whose: 'theirs' })
  assert.ok(['running', 'waiting'].includes((await ours.ask('GET', '/v1/runs/fulfil:k')).body.status))
  await ours.send({ ...event('p2', 'parcel.shipped', { whose: 'ours' }), subject: 'k' })
  assert.equal((await result(ours)).output, { whose: 'ours' })
})

test('children and schedules belong to the tenant of what started them', async () => {
  const { body } = await theirs.ask('POST', '/v1/workflows/parent/runs', { input: 1 })
  assert.is((await theirs.ask('GET', `/v1/runs/${body.runId}/result?wait=30`)).body.output, 'acme 2')
  await theirs.ask('PUT', '/v1/schedules/hourly', { workflow: 'parent', every: '1h', input: 1 })
  const { runId } = (await theirs.ask('POST', '/v1/schedules/hourly/trigger')).body
  assert.is((await theirs.ask('GET', `/v1/runs/${runId}/result?wait=30`)).body.output, 'acme 2')
  const { rows } = await db.execute<{ tenant: string; n: number }>(sql`
    select tenant, count(*)::int as n from workflow_runs where name in ('child', 'parent') group by tenant`)
  assert.equal(rows, [{ tenant: 'acme', n: 4 }])
})

test('a dead letter is replayed as the event of its tenant', async () => {
  await db.execute(sql`alter table events add constraint no_poison check (type <> 'bad') not valid`)
  const good = Array.from({ length: 4 }, (_, n) => event(`theirs-${n}`, 'good'))
  await theirs.send(...good, event('mended', 'bad'))
  await until(async () => (await theirs.ask('GET', '/v1/dead-letters?id=mended')).body.dead_letters.length === 1)
  assert.is((await ours.ask('GET', '/v1/dead-letters?id=mended')).body.dead_letters.length, 0)
  await db.execute(sql`alter table events drop constraint no_poison`)
  assert.equal((await ours.ask('POST', '/v1/dead-letters/actions/replay', { ids: ['mended'] })).body.counts, {})
  const { body } = await theirs.ask('POST', '/v1/dead-letters/actions/replay', { ids: ['mended'] })
  assert.equal(body.counts, { replayed: 1 })
  await until(async () => (await theirs.ask('GET', '/v1/events/%2Fs/mended')).status === 200)
  assert.is((await ours.ask('GET', '/v1/events/%2Fs/mended')).status, 404)
})

test('statistics count a tenant’s own events', async () => {
  const count = async ({ ask }: typeof ours) => (await ask('GET', '/v1/stats/latency')).body.count
  const rows = async (name: string) =>
    (await db.execute<{ n: number }>(sql`select count(*)::int as n from events where tenant = ${name}`)).rows[0]!.n
  await until(async () => (await count(ours)) === (await rows('default')))
  await until(async () => (await count(theirs)) === (await rows('acme')))
})

test.run()
