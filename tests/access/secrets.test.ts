/**
 * Secrets are planted wherever they may pass, everything that leaves the processes is gathered while they work, fail and
 * fail to start, and none of it may hold one.
 */

import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { fileURLToPath } from 'node:url'
import { sql } from 'drizzle-orm'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { createKey } from '../../src/access/keys.ts'
import { makeToken } from '../../src/access/token.ts'
import { jsonProblem, withoutSecrets } from '../../src/secrets.ts'
import { createService, startChild } from '../faults/processes.ts'
import { startServers, startTestPostgres } from '../servers.ts'
import { until } from '../service.ts'

/** Part of every secret planted here but the keys. */
const SECRET = 'S3cr3t'
const CLI = fileURLToPath(new URL('../../src/cli.ts', import.meta.url))

const servers = await startServers()
let { postgres } = servers
const { db, nats } = servers

/** Everything that was sent to the collector, as it was sent. */
const exported: Buffer[] = []
const collector = createServer(async (req, res) => {
  for await (const chunk of req) exported.push(chunk as Buffer)
  res.end()
}).listen(0, '127.0.0.1')
await once(collector, 'listening')
const otlp = `http://127.0.0.1:${(collector.address() as AddressInfo).port}`

const databaseUrl = (password = `${SECRET}-pg`, rest = `127.0.0.1:${postgres.port}/millrace`) =>
  `postgres://postgres:${password}@${rest}`
const environment = {
  DATABASE_URL: databaseUrl(),
  NATS_URL: `nats://millrace:${SECRET}-nats@127.0.0.1:${nats.port}`,
  API_KEYS: 'required',
  MAX_DELIVER: '1',
  RETRY_DELAY_MS: '10',
  OTEL_EXPORTER_OTLP_ENDPOINT: otlp,
  OTEL_EXPORTER_OTLP_METRICS_ENDPOINT: `${otlp}/v1/metrics`,
  OTEL_TRACES_SAMPLER_ARG: '1',
  OTEL_BSP_SCHEDULE_DELAY: '100',
  NO_COLOR: '1',
}
const tester = { actor: 'cli tester', keyId: null, tenant: 'default' }
const key = await createKey(servers, tester, {
  tenant: 'default',
  name: 'spy',
  scopes: ['ingest', 'read', 'operate', 'admin'],
})
const wrong = makeToken().token
const secretOf = (token: string) => token.slice('mr_0123456789ab_'.length)
const PLANTED = [SECRET, secretOf(key.token), secretOf(wrong)]

const [api, worker] = await Promise.all([createService('api', environment), createService('worker', environment)])
await Promise.all([api.start(), worker.start()])
test.after(async () => {
  await Promise.all([api.kill(), worker.kill()])
  collector.close()
  collector.closeAllConnections()
  await servers.broker.close()
  await servers.database.close()
  await Promise.all([nats.stop(), postgres.stop()])
})

const answers: string[] = []
async function ask(method: string, path: string, headers: Record<string, string> = {}, body?: string) {
  const response = await fetch(`${api.url}${path}`, {
    method,
    headers: {
      authorization: `Bearer ${key.token}`,
      'content-type': 'application/json',
      'x-api-key': `${SECRET}-header`,
      cookie: `session=${SECRET}-cookie`,
      ...headers,
    },
    ...(body === undefined ? {} : { body }),
  })
  const text = await response.text()
  answers.push(`${response.status} ${JSON.stringify([...response.headers])} ${text}`)
  return { status: response.status, text }
}

function assertClean(text: string, what: string): void {
  for (const secret of PLANTED) {
    const at = text.indexOf(secret)
    assert.is(at, -1, `${what}: ...${text.slice(Math.max(0, at - 300), at + 100)}...`)
  }
}

const post = (headers: Record<string, string>, body: string) => ask('POST', '/v1/events', headers, body)
const event = (id: string, more: object = {}) => ({ id, source: '/s', type: 'good', ...more })

test('requests of every kind of failure are answered without what they held', async () => {
  await until(async () => (await post({}, JSON.stringify(event('first')))).status === 202)
  const statuses = [
    (await post({ authorization: `Bearer ${wrong}` }, '{}')).status,
    (await post({ authorization: `Basic ${SECRET}-basic` }, '{}')).status,
    (await ask('GET', `/v1/events?key=${key.token}`)).status,
    (await ask('GET', `/v1/nothing?access_token=${SECRET}-query`)).status,
    (await post({}, `{"password":"${SECRET}-body" oops}`)).status,
    (await post({}, `${SECRET}-body`)).status,
    (await post({}, JSON.stringify({ password: `${SECRET}-data` }))).status,
    (await post({ 'content-type': 'application/x-ndjson' }, `${SECRET}-line\n{"a":"${SECRET}" `)).status,
    (await post({ 'ce-type': 't', 'ce-source': '/s', 'ce-id': '1', 'ce-secret': `%E0%A4%A${SECRET}` }, '')).status,
    (await post({ 'ce-type': 't', 'ce-source': '/s', 'ce-authorization': `${SECRET}-ce`, 'ce-time': 'no' }, '')).status,
    (await ask('POST', '/v1/keys', {}, `{"name":"${SECRET}`)).status,
    (await ask('POST', '/v1/workflows/none/runs', {}, JSON.stringify({ input: { token: `${SECRET}-input` } }))).status,
  ]
  assert.equal(statuses, [401, 401, 400, 404, 400, 400, 400, 400, 400, 400, 400, 404])
})

test('statements that fail are logged without their values', async () => {
  await db.execute(sql`alter table dead_letter_audit rename to gone`)
  assert.is((await ask('GET', `/v1/dead-letters?source=${SECRET}-filter`)).status, 500)
  await db.execute(sql`alter table gone rename to dead_letter_audit`)
  await until(() => api.child().log().includes('failed'))
})

test('a poison event is set aside, and its data stays in its row', async () => {
  await db.execute(sql`alter table events add constraint no_poison check (type <> 'poison')`)
  const good = Array.from({ length: 4 }, (_, n) => event(`g-${n}`))
  const data = { password: `${SECRET}-data`, authorization: `Bearer ${SECRET}-bearer` }
  await post({}, JSON.stringify([...good, event('p', { type: 'poison', data })]))
  // Read from the table, as the letter itself must hold the data.
  await until(async () => {
    const { rows } = await db.execute(sql`select from dead_letter_audit where event_id = 'p'`)
    return rows.length === 1
  })
})

test('servers that go away are complained of without passwords', async () => {
  await postgres.stop()
  await post({}, JSON.stringify(event('while-away')))
  await until(() => worker.child().log().includes('holding'))
  assert.is((await ask('GET', '/v1/events')).status, 503)
  await ask('GET', '/readyz')
  postgres = await startTestPostgres(`${servers.dir}/pg`, { port: postgres.port })
  await until(async () => (await ask('GET', '/v1/events/%2Fs/while-away')).status === 200)
})

test('nothing of it is in logs, answers, metrics or spans', async () => {
  const { status, text } = await ask('GET', '/metrics')
  assert.is(status, 200)
  assert.match(text, 'millrace_events_rejected_total')
  const spans = () => Buffer.concat(exported).toString('latin1')
  for (const sent of ['dead-letter EVENTS', 'POST /v1/events', 'millrace_events_accepted'])
    await until(() => spans().includes(sent))
  const log = api.child().log() + worker.child().log()
  assert.match(log, 'relation \\"dead_letter_audit\\" does not exist')
  assert.ok(answers.length > 15)
  assertClean(log, 'log')
  assertClean(answers.join('\n'), 'answers')
  assertClean(spans(), 'export')
})

test('a process that cannot start, and commands that fail, keep their secrets', async () => {
  const ends = async (args: string[], env: Record<string, string>) => {
    const child = startChild(CLI, args, { ...environment, ...env })
    await until(() => !child.running() || child.log().includes('waiting for'))
    child.signal('SIGTERM')
    await child.exited
    return child.log()
  }
  const unreachable = {
    DATABASE_URL: databaseUrl(`${SECRET}-pg`, '127.0.0.1:1/x'),
    NATS_URL: `nats://u:${SECRET}@127.0.0.1:1`,
  }
  const attempts: [args: string[], env: Record<string, string>, says: RegExp][] = [
    [['api'], { ...unreachable, PORT: '0', HOST: '127.0.0.1' }, /waiting for/],
    [['keys', 'list'], unreachable, /millrace: Postgres does not answer/],
    [['keys', 'list'], { DATABASE_URL: databaseUrl(`${SECRET}-pg`, 'no host:x/') }, /millrace: .*DATABASE_URL/],
    [
      ['keys', 'list'],
      { DATABASE_URL: databaseUrl(`${SECRET}/p@ss`, `127.0.0.1:${postgres.port}/never`) },
      /millrace: /,
    ],
    [['worker'], { NATS_URL: `ftp://u:${SECRET}@x` }, /millrace: .*NATS_URL/],
    [['worker'], { NATS_URL: `nats://${SECRET}@127.0.0.1:${nats.port}`, PORT: databaseUrl() }, /millrace: .*PORT/],
    [['keys', 'revoke', key.token], {}, /millrace: There is no key/],
    [['config'], {}, /DATABASE_URL/],
  ]
  await Promise.all(
    attempts.map(async ([args, env, says]) => {
      const said = await ends(args, env)
      assert.match(said, says)
      assertClean(said, args.join(' '))
    }),
  )
})

test('what looks like a secret is starred, and what does not is left', () => {
  const starred: [string, string][] = [
    [`no key ${key.token} here`, `no key mr_${key.prefix}_*** here`],
    ['at postgres://a:b@c@d/e failed', 'at postgres://***@d/e failed'],
    ['nats://token@host:4222', 'nats://***@host:4222'],
    ['Authorization: Bearer abcdefghijk', 'Authorization: Bearer ***'],
    ['{"password":"x y","n":1}', '{"password":"***","n":1}'],
    [String.raw`"{\"token\":\"x y\"}"`, String.raw`"{\"token\":\"***\"}"`],
    ['postgres://h/db?password=abc&sslmode=disable', 'postgres://h/db?password=***&sslmode=disable'],
  ]
  for (const [text, clean] of starred) assert.is(withoutSecrets(text), clean)
  for (const text of ['a@b.c wrote to https://host/x', 'Unexpected token a in JSON', 'at 127.0.0.1:5432'])
    assert.is(withoutSecrets(text), text)
  for (const text of [SECRET, `{"a":${SECRET}}`, `[1,"${SECRET}"${'x'.repeat(80)}`])
    assert.throws(
      () => JSON.parse(text),
      (error: unknown) => !jsonProblem(error).includes(SECRET),
    )
})

test.run()
