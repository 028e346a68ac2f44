/** Processes that are there before their servers: alive, not ready, and at work once both have come. */

import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import pg from 'pg'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { startNats } from '../src/embedded/nats.ts'
import { freePort } from '../src/embedded/port.ts'
import type { EmbeddedServer } from '../src/embedded/postgres.ts'
import { startChild } from './faults/processes.ts'
import { startTestPostgres, temporaryFolder } from './servers.ts'
import { until } from './service.ts'

const CLI = fileURLToPath(new URL('../src/cli.ts', import.meta.url))
const dir = temporaryFolder('start')
const [natsPort, postgresPort, apiPort, workerPort] = await Promise.all([
  freePort(),
  freePort(),
  freePort(),
  freePort(),
])
const env = {
  DATABASE_URL: `postgres://postgres@127.0.0.1:${postgresPort}/millrace`,
  NATS_URL: `nats://127.0.0.1:${natsPort}`,
  HOST: '127.0.0.1',
  PORT: String(apiPort),
  API_KEYS: 'off',
  WORKER_PORT: String(workerPort),
}
const servers: EmbeddedServer[] = []
process.once('exit', () => servers.forEach((server) => void server.process.kill('SIGKILL')))
test.after(async () => {
  await Promise.all(servers.map((server) => server.stop()))
})

type Answer = { status: number; body: { ready?: boolean; checks?: Record<string, string>; error?: string } }
const get = async (port: number, path: string): Promise<Answer | undefined> => {
  try {
    const response = await fetch(`http://127.0.0.1:${port}${path}`)
    return { status: response.status, body: (await response.json()) as Answer['body'] }
  } catch {
    return undefined
  }
}

test('api and worker wait for NATS and Postgres, live but not ready, and go to work when they come', async () => {
  const processes = [startChild(CLI, ['api'], env), startChild(CLI, ['worker'], env)]
  const ports = [apiPort, workerPort]
  const running = () => processes.forEach((child) => void assert.ok(child.running(), child.log()))
  const untilReadiness = (port: number, wanted: (answer: Answer) => boolean) =>
    until(async () => {
      running()
      const answer = await get(port, '/readyz')
      return answer !== undefined && wanted(answer) && answer
    })

  for (const port of ports) {
    const { status, body } = await untilReadiness(port, ({ body }) => /ECONNREFUSED/.test(body.checks?.postgres ?? ''))
    assert.is(status, 503)
    assert.match(body.checks?.jetstream ?? '', /No NATS server answers|not reached yet/)
    assert.is((await get(port, '/healthz'))?.status, 200)
  }
  const early = await fetch(`http://127.0.0.1:${apiPort}/v1/events`, { method: 'POST', body: '{}' })
  assert.is(early.status, 503)
  assert.is(early.headers.get('retry-after'), '1')
  assert.match(((await early.json()) as { message: string }).message, /waiting for postgres and jetstream/)

  servers.push(await startNats(join(dir, 'nats'), { port: natsPort }))
  for (const port of ports) {
    const { status, body } = await untilReadiness(port, ({ body }) => body.checks?.jetstream === 'ok')
    assert.is(status, 503)
    assert.match(body.checks?.postgres ?? '', /ECONNREFUSED/)
  }

  servers.push(await startTestPostgres(join(dir, 'pg'), { port: postgresPort }))
  for (const port of ports) await untilReadiness(port, ({ status }) => status === 200)
  const answer = await fetch(`http://127.0.0.1:${apiPort}/v1/events?wait=committed`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ id: 'first', source: 'start', type: 'first' }),
  })
  assert.is(answer.status, 200, await answer.text())

  for (const child of processes) child.signal('SIGTERM')
  for (const child of processes) assert.equal(await child.exited, { code: 0, signal: null }, child.log())
})

test('a process asked to end while it waits ends in good order', async () => {
  const child = startChild(CLI, ['worker'], { ...env, DATABASE_URL: 'postgres://postgres@127.0.0.1:1/millrace' })
  await until(() => {
    assert.ok(child.running(), child.log())
    return child.log().includes('waiting for postgres')
  })
  child.signal('SIGTERM')
  assert.equal(await child.exited, { code: 0, signal: null }, child.log())
})

test('what waiting cannot mend ends a process, in a sentence', async () => {
  const elsewhere = { ...env, DATABASE_URL: env.DATABASE_URL.replace('/millrace', '/elsewhere') }
  const child = startChild(CLI, ['api'], { ...elsewhere, NATS_URL: 'nats://127.0.0.1:1' })
  assert.equal(await child.exited, { code: 1, signal: null }, child.log())
  assert.match(child.log(), /millrace: Postgres at DATABASE_URL has no such database/)
  const database = new pg.Client({ connectionString: env.DATABASE_URL })
  await database.connect()
  const { rows } = await database.query(`select 1 from events where id = 'first'`)
  assert.is(rows.length, 1)
  await database.end()
})

test.run()
