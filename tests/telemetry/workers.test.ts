import { type ChildProcess, spawn } from 'node:child_process'
import { createInterface } from 'node:readline'
import { sql } from 'drizzle-orm'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import type { HeardPool } from '../../src/telemetry/workers.ts'
import { startServers } from '../servers.ts'
import { startService, until } from '../service.ts'

/** A short ack_wait: a worker that is twice as long at one batch is stuck. */
const servers = await startServers({ WORKER_POOL_SIZE: '3', ACK_WAIT_MS: '1000' })
const service = await startService(servers)
const children: ChildProcess[] = []
process.once('exit', () => {
  for (const child of children) child.kill('SIGKILL')
})
test.after(async () => {
  await service.stop()
  await servers.stop()
})

const pools = async (): Promise<HeardPool[]> => (await service.get('/v1/workers')).body.processes
const named = async (pid: number) => (await pools()).find(({ process }) => process.endsWith(`/${pid}`))
const event = (id: string) => ({ id, type: 't', source: 'test' })
const stored = async (like: string) => {
  const { rows } = await servers.db.execute<{ count: string }>(sql`select count(*) from events where id like ${like}`)
  return Number(rows[0]!.count)
}

/** A worker process of its own; resolves with the port of its probes. */
async function startWorker(): Promise<{ child: ChildProcess; port: number }> {
  const child = spawn(process.execPath, ['src/cli.ts', 'worker'], {
    env: {
      ...process.env,
      ...Object.fromEntries(Object.entries(servers.config).map(([k, v]) => [k, String(v)])),
      LOG_LEVEL: 'info',
    },
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  children.push(child)
  for await (const line of createInterface({ input: child.stdout! })) {
    const { port } = JSON.parse(line)
    if (port !== undefined) return { child, port }
  }
  throw new Error('the worker ended')
}

test('a worker that cannot get on is stuck, says so, and stops none of the others', async () => {
  const blocker = await servers.database.pool.connect()
  await blocker.query('begin')
  await blocker.query(`insert into event_ids values (event_key('default', 'test', 'blocked'), now(), 0)`)
  await service.post(event('blocked'))
  const own = await until(async () => {
    const pool = await named(process.pid)
    return pool?.workers.some((worker) => worker.stuck) && pool
  })
  const stuck = own.workers.filter((worker) => worker.stuck)
  assert.is(stuck.length, 1)
  assert.is(stuck[0]!.inFlight, 1)
  const ready = await service.get('/readyz')
  // The API itself can go on.
  assert.is(ready.status, 200)
  assert.match(ready.body.checks.workers, /^worker \d is stuck at a batch for \d+ s$/)

  await service.post(Array.from({ length: 300 }, (_, index) => event(`meanwhile-${index}`)))
  await until(async () => (await stored('meanwhile-%')) === 300)
  assert.is((await named(process.pid))!.workers.filter((worker) => worker.stuck).length, 1)

  await blocker.query('rollback')
  blocker.release()
  await until(async () => (await stored('blocked')) === 1)
  await until(async () => (await service.get('/readyz')).body.checks.workers === 'ok')
})

test('workers of all processes are listed; one that falls silent is seen, one that ends well is gone', async () => {
  const [ending, paused, killed] = await Promise.all([startWorker(), startWorker(), startWorker()])
  await until(async () => (await pools()).length === 4)
  for (const { child } of [ending, paused, killed]) {
    const pool = await until(async () => {
      const heard = await named(child.pid!)
      return heard?.silent === false && heard.workers.every(({ state }) => state === 'pulling') && heard
    })
    assert.equal(
      pool.workers.map(({ worker }) => worker),
      [0, 1, 2],
    )
  }
  const probe = async (path: string) => {
    const response = await fetch(`http://127.0.0.1:${ending.port}${path}`)
    return { status: response.status, text: await response.text() }
  }
  assert.is((await probe('/healthz')).status, 200)
  assert.is((await probe('/readyz')).status, 200)
  await until(async () => (await probe('/metrics')).text.includes('millrace_workers{state="pulling"} 3'))

  killed.child.kill('SIGKILL')
  paused.child.kill('SIGSTOP')
  ending.child.kill('SIGTERM')
  await until(async () => (await named(killed.child.pid!))?.silent)
  await until(async () => (await named(paused.child.pid!))?.silent)
  await until(async () => (await named(ending.child.pid!)) === undefined)
  paused.child.kill('SIGCONT')
  await until(async () => (await named(paused.child.pid!))?.silent === false)
  paused.child.kill('SIGTERM')
  await until(async () => (await named(paused.child.pid!)) === undefined)
})

test.run()
