import { join } from 'node:path'
import { setTimeout as pause } from 'node:timers/promises'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { startRun, workflow } from '../../src/index.ts'
import { startServers, startTestPostgres } from '../servers.ts'
import { enginesOf, until } from './engine.ts'

const servers = await startServers()
const engines = enginesOf(servers)
let restarted = async () => {}
test.after(async () => {
  await engines.stop()
  await servers.stop()
  await restarted()
})

/** Counts the runs of which an engine says that it lost them. */
const lossesOf = () => {
  const losses: number[] = []
  const none = () => {}
  const metrics = {
    runEnded: none,
    stepAttempted: none,
    runBegun: none,
    observeRuns: none,
    leaseLost: (n: number) => losses.push(n),
  }
  return { losses: () => losses.reduce((sum, n) => sum + n, 0), telemetry: { tracing: { tracer: undefined }, metrics } }
}

/** A workflow whose step, the first time for each run, lasts until its signal aborts. */
const hangs = (name: string, aborted: string[]) => {
  const tried = new Set<string>()
  return workflow(name, async (run) =>
    run.step('hang', ({ signal }) => {
      if (tried.has(run.runId)) return 'done'
      tried.add(run.runId)
      return new Promise<string>((_, reject) =>
        signal.addEventListener('abort', () => {
          aborted.push(run.runId)
          reject(signal.reason)
        }),
      )
    }),
  )
}

test('a step is told to stop while its lease still holds, and does its work again', async () => {
  const { losses, telemetry } = lossesOf()
  const own = enginesOf(servers, telemetry)
  const aborted: string[] = []
  const definition = hangs('doubted', aborted)
  const engine = await own.start([definition], { leaseMs: 2_000 })
  const handle = await startRun(engine, definition, null)
  // Nobody can renew the lease, nor end it.
  const client = await servers.database.pool.connect()
  await client.query('begin')
  const held = await client.query(
    'select from workflow_workers where id = (select worker from workflow_runs where run_id = $1) for update',
    [handle.runId],
  )
  assert.is(held.rowCount, 1)
  await until(() => aborted.length > 0)
  assert.equal(aborted, [handle.runId])
  assert.is(losses(), 1)
  await client.query('rollback')
  client.release()
  assert.is(await handle.result(), 'done')
  await own.stop()
})

test('a worker that was taken for dead stops its steps and counts what it lost', async () => {
  const { losses, telemetry } = lossesOf()
  const own = enginesOf(servers, telemetry)
  const aborted: string[] = []
  const definition = hangs('taken', aborted)
  const engine = await own.start([definition])
  const handles = await Promise.all([1, 2, 3].map(() => startRun(engine, definition, null)))
  await servers.database.pool.query(
    `with ended as (delete from workflow_workers where id in (select worker from workflow_runs where name = 'taken') returning id)
     update workflow_runs set status = 'queued', worker = null where worker in (select id from ended)`,
  )
  assert.equal(await Promise.all(handles.map((handle) => handle.result())), ['done', 'done', 'done'])
  assert.equal(aborted.toSorted(), handles.map(({ runId }) => runId).toSorted())
  assert.is(losses(), 3)
  assert.ok(own.errors.some((error) => error.includes('taken for dead')))
  await own.stop()
})

test('of two workers that fight over one run, the epoch decides', async () => {
  let released = () => {}
  const held = new Promise<void>((resolve) => {
    released = resolve
  })
  const ran: string[] = []
  const fought = (name: string, wait: Promise<void>) =>
    workflow('fought', async (run) => {
      const first = await run.step('first', async () => {
        ran.push(name)
        await wait
        return name
      })
      return run.step('second', () => `${first} then ${name}`)
    })
  const slow = await engines.start([fought('old', held)])
  const handle = await startRun(slow, fought('old', held), null)
  await until(() => ran.length === 1)
  // Another believes the first is dead.
  await servers.database.pool.query(`update workflow_runs set status = 'queued', worker = null where run_id = $1`, [
    handle.runId,
  ])
  await engines.start([fought('new', Promise.resolve())])
  await until(async () => (await handle.status()).status === 'completed' || (ran.length > 1 && released()))
  released()
  const status = await handle.status()
  assert.is(status.status, 'completed')
  const { rows } = await servers.database.pool.query(
    `select output from workflow_steps where run_id = $1 order by pos`,
    [handle.runId],
  )
  const winner = rows[0].output
  assert.equal(
    rows.map((row) => row.output),
    [winner, `${winner} then ${winner}`],
  )
})

test('a run whose claim got lost on the way is found by the worker that holds it', async () => {
  const strays = workflow('strays', async (run) => run.step('one', () => 'found'))
  const starter = await engines.start([])
  const handle = await startRun(starter, strays, null, { delay: '1h' })
  const engine = await engines.start([strays], { leaseMs: 2_000 })
  // As after a claim that committed while its answer was lost.
  await servers.database.pool.query(
    `update workflow_runs set status = 'running', epoch = 1, due_at = null,
       worker = (select id from workflow_workers order by expires_at desc limit 1) where run_id = $1`,
    [handle.runId],
  )
  assert.is(await handle.result(), 'found')
  await engine.stop()
})

test('jumps of the machine clock move no timer and no time of a run', async () => {
  const jumps = workflow('jumps', async (run) => {
    const times = [run.now()]
    for (const name of ['a', 'b', 'c']) {
      await run.step(name, () => name)
      await run.sleep(60)
      times.push(run.now())
    }
    return times
  })
  const engine = await engines.start([jumps])
  const realNow = Date.now
  const startedAt = realNow()
  try {
    Date.now = () => realNow() + 86_400_000
    const handle = await startRun(engine, jumps, null)
    await until(
      async () => (await servers.database.pool.query(`select 1 from workflow_steps where name = 'b'`)).rowCount,
    )
    Date.now = () => realNow() - 86_400_000
    const times = (await handle.result()) as number[]
    assert.equal(
      times,
      [...times].sort((a, b) => a - b),
    )
    assert.ok(times[0]! > startedAt - 3_600_000 && times.at(-1)! < startedAt + 3_600_000)
  } finally {
    Date.now = realNow
  }
})

test('runs outlive a restart of Postgres', async () => {
  const outlives = workflow('outlives', async (run, n: number) => {
    let sum = n
    for (let k = 0; k < 5; k += 1) {
      sum = await run.step(`add ${k}`, async () => {
        await pause(20)
        return sum + 1
      })
      await run.sleep(10)
    }
    return sum
  })
  const engine = await engines.start([outlives])
  const handles = await Promise.all(Array.from({ length: 100 }, (_, n) => startRun(engine, outlives, n)))
  servers.postgres.process.kill('SIGKILL')
  await new Promise((resolve) => servers.postgres.process.once('exit', resolve))
  // It refuses to start until the killed one's children are gone.
  const again = await until(() =>
    startTestPostgres(join(servers.dir, 'pg'), { port: servers.postgres.port }).catch(() => null),
  )
  process.once('exit', () => again.process.kill('SIGKILL'))
  restarted = again.stop
  assert.equal(
    await Promise.all(handles.map((handle) => handle.result())),
    handles.map((_, n) => n + 5),
  )
})

test.run()
