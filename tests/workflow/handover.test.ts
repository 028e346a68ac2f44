import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { type Engine, startEngine, startRun, type Workflow, workflow } from '../../src/index.ts'
import { startServers } from '../servers.ts'

const servers = await startServers()
const engines: Engine[] = []
test.after(async () => {
  for (const engine of engines) await engine.stop()
  await servers.stop()
})

const engineOf = async (workflows: Workflow[], broker: typeof servers.broker | null = servers.broker) => {
  const engine = await startEngine(
    {
      database: servers.database,
      databaseUrl: servers.config.DATABASE_URL,
      broker,
      onError: (error, doing) => console.error(doing, error),
    },
    { workflows },
  )
  engines.push(engine)
  return engine
}

const runsOf = async (name: string) => {
  const { rows } = await servers.database.pool.query('select run_id, status from workflow_runs where name = $1', [name])
  return rows
}

const greeting = (name: string, queue: string) =>
  workflow(name, { queue }, async (run, whom: string) => run.step('greet', () => `hello ${whom}`))

test('a worker takes what a starter hands over, and the starter gets the end', async () => {
  const greets = greeting('hands-over', 'handed')
  await engineOf([greets])
  const starter = await engineOf([])
  const results = await Promise.all(
    Array.from({ length: 50 }, async (_, n) => (await startRun(starter, greets, `${n}`, { id: `h-${n}` })).result()),
  )
  assert.equal(
    results,
    Array.from({ length: 50 }, (_, n) => `hello ${n}`),
  )
  assert.is((await runsOf('hands-over')).length, 50)
})

test('an input too large for a message goes by way of the queue', async () => {
  const measures = workflow('measures', { queue: 'large' }, async (_, text: string) => text.length)
  await engineOf([measures])
  const starter = await engineOf([])
  assert.is(await (await startRun(starter, measures, 'x'.repeat(2_000_000))).result(), 2_000_000)
})

test('a result too large for a message is read from the database', async () => {
  const repeats = workflow('repeats', { queue: 'long' }, async (_, length: number) => 'x'.repeat(length))
  await engineOf([repeats])
  const starter = await engineOf([])
  const handle = await startRun(starter, repeats, 100_000)
  assert.is(((await handle.result()) as string).length, 100_000)
  assert.is(((await handle.result()) as string).length, 100_000)
})

test('without a worker the run waits in the queue for the first one', async () => {
  const greets = greeting('waits-for-a-worker', 'late')
  const starter = await engineOf([])
  const handle = await startRun(starter, greets, 'you')
  assert.equal(await runsOf('waits-for-a-worker'), [{ run_id: handle.runId, status: 'queued' }])
  await engineOf([greets])
  assert.is(await handle.result(), 'hello you')
})

test('a worker that inserts the run and dies before it answers leaves one run, and the start succeeds', async () => {
  const greets = greeting('answers-never', 'silent')
  // Not on NATS, so that the offer below is the only way to it.
  const worker = await engineOf([greets], null)
  const offers = servers.broker.nc.subscribe('millrace.offer.silent', {
    queue: 'millrace-workers',
    callback: (_, message) => {
      for (const row of message.json<{ rows: Parameters<Engine['begin']>[0][] }>().rows) void worker.begin(row)
    },
  })
  const starter = await engineOf([])
  const handle = await startRun(starter, greets, 'you', { id: 'silent-1' })
  offers.unsubscribe()
  assert.is(await handle.result(), 'hello you')
  assert.equal(await runsOf('answers-never'), [{ run_id: handle.runId, status: 'completed' }])
})

test.run()
