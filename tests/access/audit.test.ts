/** Every route that changes something leaves a row in the audit trail, and so does the command line. */

import { execFile } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { sql } from 'drizzle-orm'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import type { RecordedAct } from '../../src/access/audit.ts'
import { createKey } from '../../src/access/keys.ts'
import { startServers } from '../servers.ts'
import { startService, until } from '../service.ts'

const servers = await startServers({ API_KEYS: 'required', MAX_DELIVER: '1', RETRY_DELAY_MS: '10' })
const { db } = servers
// Starts of it wait for a worker that never comes, so that their state is the test's to choose.
await db.execute(sql`
  insert into workflow_definitions (name, version, queue, priority) values ('idle', '', 'nobody', 0)`)
const service = await startService(servers)
test.after(async () => {
  await service.stop()
  await servers.stop()
})

const SCOPES = ['ingest', 'read', 'operate', 'admin'] as const
const tester = { actor: 'cli tester', keyId: null, tenant: 'default' }
const { token, prefix } = await createKey(servers, tester, { tenant: 'default', name: 'ops', scopes: [...SCOPES] })
const ask = (method: string, path: string, body?: unknown) => service.ask(token, method, path, body)
await until(async () => (await ask('GET', '/v1/audit')).status === 200)
const actor = `key ops ${prefix}`
const trail = async (query = ''): Promise<RecordedAct[]> => (await ask('GET', `/v1/audit?${query}`)).body.acts

/** A run of `idle` in a state. */
async function run(status: string): Promise<string> {
  const { runId } = (await ask('POST', '/v1/workflows/idle/runs', {})).body
  await db.execute(
    sql`update workflow_runs set status = ${status}, error = '{"name":"Error","message":"no"}'::json where run_id = ${runId}`,
  )
  return runId
}

/** Puts dead letters there: what the table refuses, in company enough not to look like a system that fails. */
async function bury(id: string): Promise<void> {
  await db.execute(sql`alter table events add constraint no_poison check (type <> 'poison') not valid`)
  const good = Array.from({ length: 4 }, (_, n) => ({ id: `${id}-${n}`, source: '/s', type: 'good' }))
  await ask('POST', '/v1/events', [...good, { id, source: '/s', type: 'poison' }])
  await until(async () => (await ask('GET', `/v1/dead-letters?id=${id}`)).body.dead_letters.length === 1)
  await db.execute(sql`alter table events drop constraint no_poison`)
}

type Attempt = { path: string; body?: unknown; target?: string }
const at = (path: string, body?: unknown, target?: string): Attempt => ({
  path,
  ...(body === undefined ? {} : { body }),
  ...(target === undefined ? {} : { target }),
})
const hours = { from: '2026-01-01T00:00:00Z', to: '2026-01-01T02:00:00Z' }

/** In an order in which each finds what it needs. */
const OPERATIONS: Record<string, [action: string, attempt: () => Promise<Attempt>]> = {
  'PUT /v1/schemas/{type}/{version}': ['schema.put', async () => at('/v1/schemas/t/1', { type: 'object' }, 't/1')],
  'PUT /v1/schemas/{type}': ['schema.mode', async () => at('/v1/schemas/t', { mode: 'warn' }, 't')],
  'DELETE /v1/schemas/{type}/{version}': ['schema.remove', async () => at('/v1/schemas/t/1', undefined, 't/1')],
  'POST /v1/workflows/{name}/runs': ['run.start', async () => at('/v1/workflows/idle/runs', {})],
  'POST /v1/runs/{id}/signals/{signal}': [
    'run.signal',
    async () => {
      const id = await run('queued')
      return at(`/v1/runs/${id}/signals/go`, { password: 'not for the trail' }, id)
    },
  ],
  'POST /v1/runs/{id}/cancel': [
    'run.cancel',
    async () => {
      const id = await run('queued')
      return at(`/v1/runs/${id}/cancel`, undefined, id)
    },
  ],
  'POST /v1/runs/{id}/terminate': [
    'run.terminate',
    async () => {
      const id = await run('queued')
      return at(`/v1/runs/${id}/terminate`, undefined, id)
    },
  ],
  'POST /v1/runs/{id}/resume': [
    'run.resume',
    async () => {
      const id = await run('stuck')
      return at(`/v1/runs/${id}/resume`, undefined, id)
    },
  ],
  'POST /v1/runs/{id}/restart': [
    'run.restart',
    async () => {
      const id = await run('terminated')
      return at(`/v1/runs/${id}/restart`, {}, id)
    },
  ],
  'POST /v1/dead-runs/replay': ['run.restart', async () => at('/v1/dead-runs/replay', {}, await run('failed'))],
  'PUT /v1/queues/{queue}': ['queue.limit', async () => at('/v1/queues/q', { concurrency: 1 }, 'q')],
  'DELETE /v1/queues/{queue}': ['queue.unlimit', async () => at('/v1/queues/q', undefined, 'q')],
  'PUT /v1/schedules/{name}': [
    'schedule.set',
    async () => at('/v1/schedules/s', { workflow: 'idle', every: '1h' }, 's'),
  ],
  'POST /v1/schedules/{name}/pause': ['schedule.pause', async () => at('/v1/schedules/s/pause', undefined, 's')],
  'POST /v1/schedules/{name}/resume': ['schedule.resume', async () => at('/v1/schedules/s/resume', undefined, 's')],
  'POST /v1/schedules/{name}/trigger': ['schedule.trigger', async () => at('/v1/schedules/s/trigger', undefined, 's')],
  'POST /v1/schedules/{name}/backfill': ['schedule.backfill', async () => at('/v1/schedules/s/backfill', hours, 's')],
  'DELETE /v1/schedules/{name}': ['schedule.remove', async () => at('/v1/schedules/s', undefined, 's')],
  'POST /v1/keys': ['key.create', async () => at('/v1/keys', { name: 'more', scopes: ['read'] })],
  'POST /v1/keys/{id}/rotate': [
    'key.rotate',
    async () => {
      const { id } = (await ask('POST', '/v1/keys', { name: 'old', scopes: ['read'] })).body
      return at(`/v1/keys/${id}/rotate`, {}, id)
    },
  ],
  'DELETE /v1/keys/{id}': [
    'key.revoke',
    async () => {
      const { id } = (await ask('POST', '/v1/keys', { name: 'old', scopes: ['read'] })).body
      return at(`/v1/keys/${id}`, undefined, id)
    },
  ],
  'POST /v1/dead-letters/actions/replay': [
    'dead_letter.replay',
    async () => {
      await bury('p1')
      return at('/v1/dead-letters/actions/replay', { ids: ['p1'] })
    },
  ],
  'POST /v1/dead-letters/actions/discard': [
    'dead_letter.discard',
    async () => {
      await bury('p2')
      return at('/v1/dead-letters/actions/discard', { ids: ['p2'], reason: 'a test' })
    },
  ],
}

test('this test knows every route that changes something', async () => {
  const { paths } = (await ask('GET', '/openapi.json')).body
  const changing = Object.entries<any>(paths).flatMap(([path, item]) =>
    ['put', 'post', 'delete', 'patch']
      .filter((method) => method in item)
      .map((method) => `${method.toUpperCase()} ${path}`),
  )
  // What an event does is no act of an operator; the event is its own record.
  assert.equal(changing.filter((route) => route !== 'POST /v1/events').sort(), Object.keys(OPERATIONS).sort())
})

for (const [route, [action, attempt]] of Object.entries(OPERATIONS))
  test(`${route} leaves a row that says ${action}`, async () => {
    const { path, body, target } = await attempt()
    const before = (await trail('limit=1'))[0]!.seq
    const answer = await ask(route.split(' ')[0]!, path, body)
    assert.ok(answer.status < 300, `${answer.status} ${JSON.stringify(answer.body)}`)
    const acts = (await trail()).filter(({ seq }) => seq > before)
    assert.equal(
      acts.map((act) => [act.action, act.actor, act.tenant]),
      [[action, actor, 'default']],
    )
    if (target !== undefined) assert.is(acts[0]!.target, target)
    assert.not.match(JSON.stringify(acts), 'not for the trail')
  })

test('what was refused leaves none', async () => {
  const before = (await trail('limit=1'))[0]!.seq
  for (const [method, path, body] of [
    ['PUT', '/v1/schemas/t/1', { type: 'nothing' }],
    ['DELETE', '/v1/schemas/never/1', undefined],
    ['POST', '/v1/runs/nobody/cancel', undefined],
    ['DELETE', '/v1/keys/000000000000', undefined],
    ['POST', '/v1/schedules/never/trigger', undefined],
  ] as const)
    assert.ok((await ask(method, path, body)).status >= 400, path)
  assert.is((await trail('limit=1'))[0]!.seq, before)
})

test('the trail is searched, paged, and only added to', async () => {
  assert.ok((await trail('action=key')).every((act) => act.action.startsWith('key.')))
  assert.ok((await trail('action=key')).length >= 3)
  assert.is((await trail('action=ke')).length, 0)
  const first = await ask('GET', '/v1/audit?limit=2')
  const second = await ask('GET', `/v1/audit?limit=2&before=${first.body.next}`)
  assert.ok(second.body.acts[0].seq < first.body.acts[1].seq)
  for (const change of [sql`update audit set actor = 'nobody'`, sql`delete from audit`, sql`truncate audit`])
    await db.execute(change).then(
      () => assert.unreachable(),
      (error) => assert.match(error.cause.message, /stay as they are/),
    )
})

test('another tenant sees its own acts', async () => {
  const { body } = await ask('POST', '/v1/keys', { name: 'theirs', scopes: ['admin'], tenant: 'acme' })
  await until(async () => (await service.ask(body.token, 'GET', '/v1/audit')).status === 200)
  const seen = (await service.ask(body.token, 'GET', '/v1/audit')).body.acts
  assert.equal(
    seen.map((act: RecordedAct) => [act.action, act.target]),
    [['key.create', body.id]],
  )
  assert.is((await service.ask(body.token, 'GET', '/v1/audit?tenant=default')).status, 403)
})

test('acts at a terminal carry the name of who sits there', async () => {
  const env = { ...process.env, DATABASE_URL: servers.config.DATABASE_URL, NATS_URL: servers.config.NATS_URL }
  const cli = fileURLToPath(new URL('../../src/cli.ts', import.meta.url))
  const millrace = (...args: string[]) =>
    new Promise<string>((resolve, reject) =>
      execFile(process.execPath, [cli, ...args], { env }, (error, out) =>
        error ? reject(error) : resolve(out.trim()),
      ),
    )
  const runId = await millrace('workflows', 'start', 'idle')
  await millrace('workflows', 'terminate', runId)
  await millrace('schedules', 'set', 'nightly', 'idle', '--every', '1d')
  const acts = (await trail('limit=3')).map((act) => `${act.action} ${act.actor.split(' ')[0]}`)
  assert.equal(acts, ['schedule.set cli', 'run.terminate cli', 'run.start cli'])
  assert.match(await millrace('audit', '--action', 'schedule', '--limit', '1'), /schedule\.set +nightly/)
})

test.run()
