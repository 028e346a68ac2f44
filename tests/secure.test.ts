/**
 * The whole service over TLS, mutual towards NATS, under the users and permissions of deploy/nats-permissions.conf; and
 * what happens where a certificate, a name or a password is wrong.
 */

import { execFile } from 'node:child_process'
import { chmodSync, copyFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { inspect } from 'node:util'
import { createAccount, createOperator, createUser, type KeyPair } from '@nats-io/nkeys'
import pg from 'pg'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { connectBroker } from '../src/broker/connect.ts'
import { ensureStream } from '../src/broker/streams.ts'
import { loadConfig } from '../src/config.ts'
import { databaseRefused } from '../src/db/connect.ts'
import { migrateDatabase } from '../src/db/migrate.ts'
import { startNats } from '../src/embedded/nats.ts'
import { freePort } from '../src/embedded/port.ts'
import { createAuthority } from './certificates.ts'
import { startChild } from './faults/processes.ts'
import { startTestPostgres, temporaryFolder } from './servers.ts'
import { until } from './service.ts'

const CLI = fileURLToPath(new URL('../src/cli.ts', import.meta.url))
const WORKFLOWS = fileURLToPath(new URL('./secure-workflows.ts', import.meta.url))
const PERMISSIONS = fileURLToPath(new URL('../deploy/nats-permissions.conf', import.meta.url))
const SECRET = 'pa55-w0rd'

const dir = temporaryFolder('secure')
const authority = createAuthority(dir, 'ours')
const stranger = createAuthority(dir, 'stranger')
const server = authority.sign('server', 'DNS:localhost,IP:127.0.0.1')
const client = authority.sign('client', 'DNS:client')
if (process.getuid?.() !== 0) chmodSync(server.key, 0o600)

for (const user of ['API', 'WORKER', 'MIGRATE'])
  process.env[`NATS_${user}_PASSWORD`] = `${SECRET}-${user.toLowerCase()}`
copyFileSync(PERMISSIONS, join(dir, 'nats-permissions.conf'))
const tlsOf = ({ cert, key }: { cert: string; key: string }, verify: boolean) =>
  `tls { cert_file: "${cert}", key_file: "${key}", ca_file: "${authority.file}", verify: ${verify} }`
const startPlainNats = (name: string, more = '') => startNats(join(dir, name), { more })

const [nats, postgres] = await Promise.all([
  startNats(dir, { more: `include ./nats-permissions.conf\n${tlsOf(server, true)}` }),
  startTestPostgres(join(dir, 'pg'), {
    settings: { ssl: 'on', ssl_cert_file: server.cert, ssl_key_file: server.key, password_encryption: 'scram-sha-256' },
  }),
])
const started = [nats, postgres]
process.once('exit', () => started.forEach((one) => void one.process.kill('SIGKILL')))
const children: ReturnType<typeof startChild>[] = []
test.after(async () => {
  for (const child of children) child.signal('SIGTERM')
  await Promise.all(children.map((child) => child.exited))
  await admin.end()
  await Promise.all(started.map((one) => one.stop()))
})

// From here on Postgres takes TLS and a password, but for this one connection that is there already.
const admin = new pg.Client({ connectionString: postgres.url })
await admin.connect()
await admin.query(`create role millrace login superuser password '${SECRET}-pg'`)
writeFileSync(join(dir, 'pg', 'pg_hba.conf'), 'hostssl all all 127.0.0.1/32 scram-sha-256\n')
await admin.query('select pg_reload_conf()')

const CA = { NATS_CA_FILE: authority.file }
const CERTIFICATE = { NATS_CERT_FILE: client.cert, NATS_KEY_FILE: client.key }
const TLS = { ...CA, ...CERTIFICATE }
const natsUrl = (user: string, password = `${SECRET}-${user}`) => `tls://${user}:${password}@localhost:${nats.port}`
const databaseUrl = (more = `?sslmode=verify-full&sslrootcert=${authority.file}`, password = `${SECRET}-pg`) =>
  `postgres://millrace:${password}@localhost:${postgres.port}/millrace${more}`

const environment = (user: string, more: Record<string, string> = {}) => ({
  ...TLS,
  DATABASE_URL: databaseUrl(),
  API_KEYS: 'off',
  NATS_URL: natsUrl(user),
  HOST: '127.0.0.1',
  RETRY_DELAY_MS: '10',
  NO_COLOR: '1',
  ...more,
})

/** A command to its end, with everything it printed. */
const millrace = (args: string[], env: Record<string, string>): Promise<{ code: number; out: string }> =>
  new Promise((resolve) => {
    execFile(process.execPath, [CLI, ...args], { env: { PATH: process.env.PATH, ...env } }, (error, out, err) =>
      resolve({ code: Number(error?.code ?? 0), out: out + err }),
    )
  })

const count = async (text: string) => Number((await admin.query(text)).rows[0].count)

test('events, a workflow and a dead letter go their whole way over TLS, under the documented permissions', async () => {
  const port = await freePort()
  const url = `http://127.0.0.1:${port}`
  const api = startChild(CLI, ['api'], environment('api', { PORT: String(port) }))
  const worker = startChild(CLI, ['worker', WORKFLOWS], environment('worker', { WORKER_PORT: '0' }))
  children.push(api, worker)
  // They may not make the stream, so they wait for who may.
  await until(async () => {
    assert.ok(api.running(), api.log())
    const { checks } = await fetch(`${url}/readyz`).then(
      (response) => response.json() as Promise<{ checks: { jetstream: string } }>,
      () => ({ checks: { jetstream: '' } }),
    )
    return checks.jetstream.includes('run `millrace migrate`')
  })
  const migrated = await millrace(['migrate'], environment('migrate'))
  assert.is(migrated.code, 0, migrated.out)
  await until(() => {
    for (const child of children) assert.ok(child.running(), child.log())
    return api.log().includes('"listening"') && worker.log().includes('"pulling"')
  })

  const post = (events: object[], wait = '') =>
    fetch(`${url}/v1/events${wait}`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify(events),
    })
  const orders = Array.from({ length: 100 }, (_, n) => ({
    id: `o${n}`,
    source: 'shop',
    type: 'order.placed',
    data: { orderId: `o${n}`, amount: n },
  }))
  // Answered once committed: the worker tells the API, which needs their permissions to meet.
  const answer = await post(orders, '?wait=committed')
  assert.is(answer.status, 200, await answer.text())
  assert.is(await count(`select count(*) from events where source = 'shop'`), 100)
  await until(async () => (await count(`select count(*) from workflow_runs where status = 'completed'`)) === 100)

  await admin.query(`alter table events add constraint refused check (id <> 'c1') not valid`)
  // One of a parcel: the worker takes it out.
  const parcel = ['c0', 'c1', 'c2'].map((id) => ({ id, source: 'shop', type: 'order.returned' }))
  assert.is((await post(parcel)).status, 202)
  const letters = `select count(*) from pgboss.job where name = 'dead-letters' and state = 'created'`
  await until(async () => (await count(letters)) === 1)
  await admin.query('alter table events drop constraint refused')
  const replayed = await millrace(['dead-letters', 'replay', '--all'], environment('api'))
  assert.is(replayed.code, 0, replayed.out)
  await until(async () => (await count(`select count(*) from events where type = 'order.returned'`)) === 3)

  const plain = `select count(*) from pg_stat_ssl join pg_stat_activity using (pid) where usename = 'millrace'`
  assert.ok((await count(plain)) > 5)
  assert.is(await count(`${plain} and not ssl`), 0, 'every connection is encrypted: ours, the engine, pg-boss')
  for (const child of children) {
    // But for the stream that was not there at first.
    const refused = child.log().matchAll(/NATS refuses|Permissions Violation for \w+ to [^\w$]+([\w$.]+)/g)
    for (const [, subject] of refused)
      if (subject !== undefined) assert.is(subject, '$JS.API.STREAM.CREATE.EVENTS', 'no subject is missing')
    assert.not.match(child.log(), new RegExp(SECRET))
  }
})

test('a user may do nothing beyond its permissions, and is told so', async () => {
  const troubles: Error[] = []
  const broker = await connectBroker({ ...TLS, NATS_URL: natsUrl('api') }, 'test', (error) => troubles.push(error))
  const purge = broker.nc.request('$JS.API.STREAM.PURGE.EVENTS', '', { timeout: 20_000 })
  const error = await purge.then(
    () => assert.unreachable(),
    (thrown: Error) => thrown,
  )
  assert.match(inspect(error), /Permissions Violation for Publish to "\$JS.API.STREAM.PURGE.EVENTS"/)
  await until(() => /PURGE/.test(troubles.map(String).join()))
  await broker.close()
})

const UNLIMITED = { subs: -1, data: -1, payload: -1, imports: -1, exports: -1, wildcards: true, conn: -1, leaf: -1 }
const USER_LIMITS = { subs: -1, data: -1, payload: -1 }

/** A token as NATS has them (NATS 2.0 JWT: the claims of a key, signed by its issuer's key). */
function signJwt(issuer: KeyPair, subject: KeyPair, nats: object, exp?: number): string {
  const encode = (part: object) => Buffer.from(JSON.stringify(part)).toString('base64url')
  const facts = { jti: subject.getPublicKey(), iat: Math.floor(Date.now() / 1_000), exp }
  const claims = { ...facts, iss: issuer.getPublicKey(), sub: subject.getPublicKey(), nats: { version: 2, ...nats } }
  const signed = `${encode({ typ: 'JWT', alg: 'ed25519-nkey' })}.${encode(claims)}`
  return `${signed}.${Buffer.from(issuer.sign(Buffer.from(signed))).toString('base64url')}`
}

/** What a failed connection says, everything beneath it included. */
async function refusal(address: Parameters<typeof connectBroker>[0]): Promise<{ code: string; text: string }> {
  try {
    const broker = await connectBroker(address, 'test')
    await broker.close()
  } catch (error) {
    const text = inspect(error, { depth: 9, showHidden: true })
    assert.not.match(text, new RegExp(SECRET), 'no secret in an error')
    return { code: (error as { code: string }).code, text }
  }
  return assert.unreachable('it connected') as never
}

test('NATS is refused, and refuses, with a sentence that says what to do', async () => {
  const [plain, elsewhere, token] = await Promise.all([
    startPlainNats('plain'),
    startPlainNats('elsewhere', tlsOf(authority.sign('elsewhere', 'DNS:elsewhere.example,DNS:localhost'), false)),
    startPlainNats('token', `authorization { token: "${SECRET}" }`),
  ])
  started.push(plain, elsewhere, token)
  const away = await freePort()
  const cases: [says: RegExp, code: string, Parameters<typeof connectBroker>[0]][] = [
    [/not signed by an authority.*NATS_CA_FILE/, 'invalid_config', { NATS_URL: natsUrl('api'), ...CERTIFICATE }],
    [/not signed by/, 'invalid_config', { NATS_URL: natsUrl('api'), ...CERTIFICATE, NATS_CA_FILE: stranger.file }],
    // The server's reason and its reset race each other.
    [/NATS_CERT_FILE/, 'invalid_config|unavailable', { NATS_URL: natsUrl('api'), ...CA }],
    [/does not speak TLS/, 'invalid_config', { NATS_URL: `tls://localhost:${plain.port}` }],
    [/does not speak TLS/, 'invalid_config', { NATS_URL: `localhost:${plain.port}`, ...CA }],
    [/not signed by/, 'invalid_config', { NATS_URL: `nats://localhost:${nats.port}` }],
    [/another name/, 'invalid_config', { NATS_URL: `tls://127.0.0.1:${elsewhere.port}`, ...CA }],
    [/does not know this process/, 'invalid_config', { NATS_URL: natsUrl('api', `${SECRET}-wrong`), ...TLS }],
    [/does not know this process/, 'invalid_config', { NATS_URL: `nats://localhost:${token.port}` }],
    [/NATS_CA_FILE: .* is no certificate/, 'invalid_config', { NATS_URL: natsUrl('api'), NATS_CA_FILE: client.key }],
    [/belong together/, 'invalid_config', { NATS_URL: natsUrl('api'), NATS_CERT_FILE: client.cert }],
    [/one way to sign in/, 'invalid_config', { NATS_URL: natsUrl('api'), ...TLS, NATS_CREDS_FILE: client.key }],
    [/percent-encoded/, 'invalid_config', { NATS_URL: `nats://api:${SECRET}#/@localhost:4222` }],
    [
      /No NATS server answers at localhost:\d+/,
      'unavailable',
      { NATS_URL: natsUrl('api').replace(/\d+$/, String(away)) },
    ],
  ]
  for (const [says, code, address] of cases) {
    const refused = await refusal(address)
    assert.match(refused.text, says)
    assert.match(refused.code, new RegExp(`^(${code})$`))
  }
  for (const url of [`tls://127.0.0.1:${nats.port}`, `tls://localhost:${nats.port}`]) {
    const address = { ...TLS, NATS_URL: url.replace('//', `//api:${SECRET}-api@`) }
    await (await connectBroker(address, 'test')).close()
  }
  await (await connectBroker({ NATS_URL: `nats://${SECRET}@localhost:${token.port}` }, 'test')).close()
})

test('a process signs in with an nkey, and with credentials of an operator, which may be replaced while it runs', async () => {
  const [operator, account, system] = [createOperator(), createAccount(), createAccount()]
  const user = createUser()
  const seed = join(dir, 'user.nk')
  writeFileSync(seed, `# made by nk -gen user\n${Buffer.from(user.getSeed())}\n`)
  const nkey = await startPlainNats('nkey', `authorization { users: [{ nkey: ${user.getPublicKey()} }] }`)
  const accounts = [
    [account, { limits: { mem_storage: -1, disk_storage: -1, streams: -1, consumer: -1, ...UNLIMITED } }],
    [system, { limits: UNLIMITED }],
  ] as const
  const preload = accounts.map(([pair, claims]) => {
    const jwt = signJwt(operator, pair, { type: 'account', ...claims })
    return `${pair.getPublicKey()}: "${jwt}"`
  })
  const jwt = await startPlainNats(
    'jwt',
    `operator: "${signJwt(operator, operator, { type: 'operator', system_account: system.getPublicKey() })}"
    resolver: MEMORY
    resolver_preload { ${preload.join('\n')} }`,
  )
  started.push(nkey, jwt)
  await (await connectBroker({ NATS_URL: nkey.url, NATS_NKEY_FILE: seed }, 'test')).close()

  const creds = join(dir, 'user.creds')
  const issue = (seconds: number) => {
    const expires = Math.floor(Date.now() / 1_000) + seconds
    const token = signJwt(account, user, { type: 'user', ...USER_LIMITS }, expires)
    const block = (kind: string, text: string) => `-----BEGIN ${kind}-----\n${text}\n------END ${kind}------\n`
    writeFileSync(creds, block('NATS USER JWT', token) + block('USER NKEY SEED', String(Buffer.from(user.getSeed()))))
  }
  issue(4)
  const broker = await connectBroker({ NATS_URL: jwt.url, NATS_CREDS_FILE: creds }, 'test')
  await ensureStream(broker, loadConfig({}))
  await until(() => !broker.connected())
  issue(3_600)
  await until(async () => broker.connected() && (await broker.jsm.streams.info('EVENTS')).config.name === 'EVENTS')
  await broker.close()

  writeFileSync(creds, 'nothing')
  const nothing = await refusal({ NATS_URL: jwt.url, NATS_CREDS_FILE: creds })
  assert.match(nothing.text, /NATS_CREDS_FILE or NATS_NKEY_FILE holds no credentials/)
  const missing = await refusal({ NATS_URL: jwt.url, NATS_NKEY_FILE: join(dir, 'nowhere') })
  assert.match(missing.text, /NATS_NKEY_FILE: .*nowhere cannot be read/)
  const stranger = createUser()
  writeFileSync(seed, Buffer.from(stranger.getSeed()))
  const unknown = await refusal({ NATS_URL: nkey.url, NATS_NKEY_FILE: seed })
  assert.match(unknown.text, /does not know this process/)
  assert.not.match(unknown.text, new RegExp(String(Buffer.from(stranger.getSeed()))))
})

test('Postgres is refused, and refuses, with a sentence that says what to do', async () => {
  const root = `sslrootcert=${authority.file}`
  const cases: [says: RegExp, url: string][] = [
    [/not signed by an authority.*sslrootcert/, databaseUrl('?sslmode=verify-full')],
    [/not signed by/, databaseUrl('?sslmode=require')],
    [/not signed by/, databaseUrl(`?sslmode=verify-full&sslrootcert=${stranger.file}`)],
    [/sslmode in it \(verify-full for TLS\)/, databaseUrl('')],
    [/sslmode in it/, databaseUrl('?sslmode=disable')],
    [/could mean no TLS at all/, databaseUrl(`?sslmode=prefer&${root}`)],
    [/ssl is not understood/, databaseUrl('?ssl=false')],
    [/is no certificate/, databaseUrl('?sslmode=verify-full&sslrootcert=/nowhere')],
    [/check user, password/, databaseUrl(undefined, `${SECRET}-wrong`)],
    [/no such database/, databaseUrl().replace('/millrace?', '/elsewhere?')],
  ]
  for (const [says, url] of cases) {
    const error = await migrateDatabase(url).then(
      () => assert.unreachable(url),
      (thrown: unknown) => databaseRefused(thrown) ?? thrown,
    )
    const text = inspect(error, { depth: 9, showHidden: true })
    assert.match(text, says)
    assert.is((error as { code: string }).code, 'invalid_config', text)
    assert.not.match(text, new RegExp(SECRET), 'no secret in an error')
  }
  const wrong = environment('migrate', { DATABASE_URL: databaseUrl(undefined, `${SECRET}-wrong`) })
  const { code, out } = await millrace(['migrate'], wrong)
  assert.is(code, 1, out)
  assert.match(out, /millrace: Postgres at DATABASE_URL does not let this user in/)
  assert.not.match(out, new RegExp(SECRET))
  const unencrypted = new pg.Client({ connectionString: postgres.url.replace('postgres@', `millrace:${SECRET}-pg@`) })
  assert.match(String(await unencrypted.connect().catch((error: Error) => error)), /no encryption/)
})

test.run()
