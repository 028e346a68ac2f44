/** API keys: what is kept of them, who may do what, and how soon an end takes effect. */

import { execFile } from 'node:child_process'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { sql } from 'drizzle-orm'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { openKeyring } from '../../src/access/keyring.ts'
import { createKey, type KeySpec, revokeKey } from '../../src/access/keys.ts'
import { createBucket } from '../../src/access/rate.ts'
import { makeToken } from '../../src/access/token.ts'
import { startServers, startTestPostgres } from '../servers.ts'
import { startService, until } from '../service.ts'

const servers = await startServers({ API_KEYS: 'required' })
const { db, broker, database } = servers
const service = await startService(servers)
const { ask } = service
let { postgres } = servers
test.after(async () => {
  await service.stop()
  await broker.close()
  await database.close()
  await Promise.all([servers.nats.stop(), postgres.stop()])
})

const deps = { db, broker }
const tester = { actor: 'cli tester', keyId: null, tenant: 'default' }
const make = (spec: Partial<KeySpec>) =>
  createKey(deps, tester, { tenant: 'default', name: 'test', scopes: ['ingest'], ...spec })
const event = (id: string, source = '/shop') => ({ id, source, type: 'order.placed' })
const post = (key: string | undefined, body: unknown) => ask(key, 'POST', '/v1/events', body)
/** Asks until the key's first or last answer has come through to the process. */
const untilStatus = (key: string, path: string, status: number) =>
  until(async () => (await ask(key, 'GET', path)).status === status)
const admin = await make({ name: 'admin', scopes: ['ingest', 'read', 'operate', 'admin'] })
await untilStatus(admin.token, '/v1/keys', 200)

test('a key is kept as a hash of its secret, which nothing tells again', async () => {
  const { token, prefix, id } = await make({ name: 'kept' })
  const secret = token.slice(`mr_${prefix}_`.length)
  assert.match(token, /^mr_[0-9a-f]{12}_[A-Za-z0-9_-]{43}$/)
  const { rows } = await db.execute<{ row: string }>(sql`select api_keys::text as row from api_keys where id = ${id}`)
  assert.ok(!rows[0]!.row.includes(secret))
  const { rows: trail } = await db.execute<{ row: string }>(
    sql`select audit::text as row from audit where target = ${id}`,
  )
  assert.is(trail.length, 1)
  assert.ok(!trail[0]!.row.includes(secret))
  const { body } = await ask(admin.token, 'GET', '/v1/keys')
  assert.ok(body.keys.some((key: { id: string }) => key.id === id))
  assert.ok(!JSON.stringify(body).includes(secret))
})

test('without a key, with half of one, or with a wrong secret the answer is 401', async () => {
  const known = admin.token
  const other = makeToken().token
  for (const key of [undefined, 'mr_', `${known}x`, known.slice(0, -1), other, known.slice(0, 16) + other.slice(16)]) {
    const { status, headers, body } = await post(key, event('no-key'))
    assert.is(status, 401, String(key))
    assert.is(body.error, 'unauthenticated')
    assert.match(headers.get('www-authenticate') ?? '', /^Bearer/)
  }
})

test('a route takes only keys with its scope, and those open to all take none', async () => {
  const { token } = await make({ scopes: ['ingest'] })
  await until(async () => (await post(token, event('scoped'))).status === 202)
  const { status, body } = await ask(token, 'GET', '/v1/events')
  assert.is(status, 403)
  assert.is(body.error, 'forbidden')
  assert.is(body.scope, 'read')
  assert.match(body.message, /needs a key with the scope read; yours has ingest/)
  for (const path of ['/healthz', '/readyz', '/openapi.json'])
    assert.is((await ask(undefined, 'GET', path)).status, 200)
  assert.is((await ask(undefined, 'GET', '/metrics')).status, 401)
  assert.is((await ask(admin.token, 'GET', '/metrics')).status, 200)
  assert.is((await ask(undefined, 'GET', '/v1/nothing')).status, 404)
})

test('every route of /openapi.json but the open ones answers 401 without a key, and says so', async () => {
  const { body } = await ask(undefined, 'GET', '/openapi.json')
  assert.is(body.components.securitySchemes.apiKey.scheme, 'bearer')
  let guarded = 0
  for (const [path, item] of Object.entries<any>(body.paths))
    for (const method of ['get', 'put', 'post', 'delete'])
      if (item[method] !== undefined) {
        const open = ['/healthz', '/readyz', '/openapi.json'].includes(path)
        assert.is(item[method].security === undefined, open, `${method} ${path}`)
        const { status } = await ask(undefined, method.toUpperCase(), path.replaceAll(/\{\w+\}/g, 'x'))
        assert.is(status === 401, !open, `${method} ${path}: ${status}`)
        if (!open) guarded++
      }
  assert.ok(guarded > 40, String(guarded))
})

test('a revoked key ends at once, and an expired one at its time', async () => {
  const { token, id } = await make({ scopes: ['read'], name: 'to be revoked' })
  await untilStatus(token, '/v1/events', 200)
  assert.is((await ask(admin.token, 'DELETE', `/v1/keys/${id}`)).status, 200)
  await untilStatus(token, '/v1/events', 401)
  assert.is((await ask(admin.token, 'DELETE', `/v1/keys/${id}`)).status, 404)

  const brief = await make({ scopes: ['read'], expiresMs: 1 })
  await untilStatus(brief.token, '/v1/events', 401)
  const { body } = await ask(brief.token, 'GET', '/v1/events')
  assert.match(body.message, /revoked or has expired|not known/)
})

test('processes that do not hear NATS learn of a revocation by looking', async () => {
  const warnings: string[] = []
  const keyring = await openKeyring(
    { db, broker, log: { warn: (_, message) => warnings.push(message) } },
    { API_KEYS: 'required' },
  )
  const deaf = { db, broker: null }
  const { token, id } = await createKey(deaf, tester, { tenant: 'default', name: 'quiet', scopes: ['read'] })
  const knows = () => {
    try {
      return keyring!.identify(`Bearer ${token}`).keyId === id
    } catch {
      return false
    }
  }
  await until(knows)
  await revokeKey(deaf, tester, { which: id, tenant: null })
  await until(() => !knows())
  keyring!.close()
  assert.equal(warnings, [])
})

test('rotation gives a key that may do the same; both live until the overlap ends', async () => {
  const old = await make({ scopes: ['read'], name: 'rotated', sources: ['/a'], rate: { events: 5, burst: 7 } })
  await untilStatus(old.token, '/v1/events', 200)
  const { status, body: fresh } = await ask(admin.token, 'POST', `/v1/keys/${old.prefix}/rotate`, { overlap: '1h' })
  assert.is(status, 201)
  assert.is(fresh.rotatedFrom, old.id)
  for (const same of ['name', 'scopes', 'sources', 'rate', 'tenant'] as const)
    assert.equal(fresh[same], old[same], same)
  await untilStatus(fresh.token, '/v1/events', 200)
  assert.is((await ask(old.token, 'GET', '/v1/events')).status, 200)
  const listed = (await ask(admin.token, 'GET', '/v1/keys')).body.keys.find((key: any) => key.id === old.id)
  const hours = (Date.parse(listed.expiresAt) - Date.now()) / 3_600_000
  assert.ok(hours > 0.5 && hours <= 1.01, listed.expiresAt)

  await ask(admin.token, 'POST', `/v1/keys/${fresh.id}/rotate`)
  await untilStatus(fresh.token, '/v1/events', 401)
  assert.is((await ask(old.token, 'GET', '/v1/events')).status, 200, 'its own hour has not passed')
})

test('an event of a source that is not the key’s is rejected, the others of its request are not', async () => {
  const { token } = await make({ sources: ['/shop', '/web/*'] })
  await until(async () => (await post(token, event('s-0'))).status === 202)
  const { status, body } = await post(token, [
    event('s-1', '/shop'),
    event('s-2', '/shop/2'),
    event('s-3', '/web/a/b'),
    event('s-4', '/elsewhere'),
  ])
  assert.is(status, 202)
  assert.equal(
    body.events.map((each: any) => each.code ?? each.status),
    ['accepted', 'source_not_allowed', 'accepted', 'source_not_allowed'],
  )
  assert.is((await post(token, event('s-5', '/elsewhere'))).status, 400)
})

test('a key has its rate: beyond it 429, and Retry-After says when', async () => {
  // So slow that no time the test takes fills the bucket again.
  const { token } = await make({ rate: { events: 1, burst: 10_000 } })
  const lot = Array.from({ length: 4_000 }, (_, n) => event(`r-${n}`))
  await until(async () => (await post(token, lot)).status === 202)
  assert.is((await post(token, lot)).status, 202)
  const { status, headers, body } = await post(token, lot)
  assert.is(status, 429)
  assert.is(body.error, 'rate_limited')
  const wait = Number(headers.get('retry-after'))
  assert.ok(wait > 1_000 && wait <= 2_000, String(wait))

  const more = await post(
    token,
    Array.from({ length: 10_001 }, (_, n) => event(`r-${n}`)),
  )
  assert.is(more.status, 413)
  assert.is(more.body.limit, 'burst')

  const response = await fetch(`${service.url}/v1/events`, {
    method: 'POST',
    headers: { authorization: `Bearer ${token}`, 'content-type': 'application/x-ndjson' },
    body: lot.map((each) => JSON.stringify(each)).join('\n'),
  })
  const streamed = (await response.json()) as { accepted: number; failed: number; events: unknown[] }
  assert.is(response.status, 429)
  assert.ok(streamed.events.length >= 2_000 && streamed.events.length < 4_000, String(streamed.events.length))
  assert.is(streamed.events.length, streamed.accepted + streamed.failed, 'the fate of all that was read is told')
})

test('a bucket fills steadily, and never beyond its burst', () => {
  let now = 0
  const spend = createBucket({ rate: 10, burst: 20 }, () => now)
  spend(20)
  assert.throws(() => spend(1), /10 events per second/)
  now += 1_000
  spend(10)
  assert.throws(() => spend(1), /try again in 1 s/)
  now += 3_600_000
  spend(20)
  assert.throws(() => spend(1))
})

test('the keys of a tenant are for its own admins; the operators reach all', async () => {
  const own = await make({ tenant: 'acme', name: 'acme admin', scopes: ['admin', 'read'] })
  await untilStatus(own.token, '/v1/keys', 200)
  const { body } = await ask(own.token, 'GET', '/v1/keys')
  assert.equal(
    body.keys.map((key: any) => key.id),
    [own.id],
  )
  assert.is((await ask(own.token, 'GET', '/v1/keys?tenant=default')).status, 403)
  assert.is((await ask(own.token, 'DELETE', `/v1/keys/${admin.id}`)).status, 404)
  assert.is((await ask(own.token, 'POST', `/v1/keys/${admin.id}/rotate`)).status, 404)
  const spec = { name: 'more', scopes: ['read'] }
  assert.is((await ask(own.token, 'POST', '/v1/keys', { ...spec, tenant: 'default' })).status, 403)
  const made = await ask(own.token, 'POST', '/v1/keys', spec)
  assert.is(made.status, 201)
  assert.is(made.body.tenant, 'acme')
  for (const path of ['/metrics', '/v1/workers', '/v1/queues'])
    assert.is((await ask(own.token, 'GET', path)).status, 403, path)
  assert.ok((await ask(admin.token, 'GET', '/v1/keys')).body.keys.length > 2)
  assert.is((await ask(admin.token, 'GET', '/v1/keys?tenant=acme')).body.keys.length, 2)
})

test('millrace keys makes, lists, rotates and revokes', async () => {
  const millrace = (...args: string[]) =>
    new Promise<{ code: number; out: string; err: string }>((resolve) =>
      execFile(
        process.execPath,
        [fileURLToPath(new URL('../../src/cli.ts', import.meta.url)), 'keys', ...args],
        { env: { ...process.env, DATABASE_URL: servers.config.DATABASE_URL, NATS_URL: servers.config.NATS_URL } },
        (error, out, err) => resolve({ code: Number(error?.code ?? 0), out: out.trim(), err }),
      ),
    )
  const made = await millrace('create', '--name', 'ci', '--scopes', 'read', '--tenant', 'byte', '--rate', '5')
  assert.match(made.out, /^mr_[0-9a-f]{12}_[A-Za-z0-9_-]{43}$/, made.err)
  await untilStatus(made.out, '/v1/events', 200)
  const prefix = made.out.slice(3, 15)
  assert.match((await millrace('list')).out, new RegExp(`${prefix} +byte +ci +read +all +5/s, 5 at once`))
  const rotated = await millrace('rotate', prefix, '--overlap', '24h')
  await untilStatus(rotated.out, '/v1/events', 200)
  assert.is((await ask(made.out, 'GET', '/v1/events')).status, 200)
  assert.match((await millrace('revoke', prefix)).out, /^revoked ci/)
  await untilStatus(made.out, '/v1/events', 401)
  const unknown = await millrace('revoke', prefix)
  assert.is(unknown.code, 1)
  assert.match(unknown.err, /There is no key/)
  assert.match((await millrace('create', '--name', 'x', '--scopes', 'root')).err, /There is no scope root/)
})

test('every answer carries the security headers', async () => {
  for (const path of ['/healthz', '/v1/events', '/v1/nothing', '/openapi.json']) {
    const { headers } = await ask(path === '/v1/events' ? admin.token : undefined, 'GET', path)
    assert.is(headers.get('x-content-type-options'), 'nosniff', path)
    assert.is(headers.get('cache-control'), 'no-store', path)
    assert.match(headers.get('content-security-policy') ?? '', /^default-src 'none'/, path)
    assert.is(headers.get('referrer-policy'), 'no-referrer', path)
    assert.is(headers.get('strict-transport-security'), null, path)
  }
})

test('while Postgres is away the keys that are known go on', async () => {
  await postgres.stop()
  const known = await post(admin.token, event('while-away'))
  assert.is(known.status, 202)
  assert.is((await post(makeToken().token, event('never'))).status, 401)
  assert.is((await ask(admin.token, 'GET', '/v1/keys')).status, 503)
  postgres = await startTestPostgres(join(servers.dir, 'pg'), { port: postgres.port })
  await until(async () => (await ask(admin.token, 'GET', '/v1/keys')).status === 200)
})

test.run()
