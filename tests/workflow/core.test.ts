import { test } from 'uvu'
import * as assert from 'uvu/assert'
import {
  type Engine,
  type EngineOptions,
  MillraceError,
  nonRetryable,
  startEngine,
  startRun,
  type Workflow,
  workflow,
} from '../../src/index.ts'
import { startServers } from '../servers.ts'

const servers = await startServers()
const engines: Engine[] = []
test.after(async () => {
  for (const engine of engines) await engine.stop()
  await servers.stop()
})

const engineOf = async (workflows: Workflow[], options: EngineOptions = {}) => {
  const engine = await startEngine(
    {
      database: servers.database,
      databaseUrl: servers.config.DATABASE_URL,
      broker: servers.broker,
      onError: (error, doing) => console.error(doing, error),
    },
    { workflows, ...options },
  )
  engines.push(engine)
  return engine
}

test('three steps run once each, in order, and their results are kept', async () => {
  const ran: string[] = []
  const adds = workflow('adds', async (run, n: number) => {
    const a = await run.step('a', () => {
      ran.push('a')
      return n + 1
    })
    const b = await run.step('b', async () => {
      ran.push('b')
      return { sum: a + 1 }
    })
    return run.step('c', () => {
      ran.push('c')
      return b.sum + 1
    })
  })
  const engine = await engineOf([adds])
  const handle = await startRun(engine, adds, 1)
  assert.is(await handle.result(), 4)
  assert.equal(ran, ['a', 'b', 'c'])
  const { rows } = await servers.database.pool.query(
    'select pos, ord, name, output from workflow_steps where run_id = $1 order by pos',
    [handle.runId],
  )
  assert.equal(
    rows.map((row) => [row.pos, row.ord, row.name, row.output]),
    [
      [0, 0, 'a', 2],
      [1, 1, 'b', { sum: 3 }],
      [2, 2, 'c', 4],
    ],
  )
})

test('a step whose line is there unexpectedly is recorded all the same, and so is what shares its commit', async () => {
  const lines = workflow('lines', async (run) =>
    Promise.all(
      ['a', 'b', 'c'].map((name) =>
        run.step(name, async () => {
          // As a commit leaves it whose answer was lost, and which is made again.
          if (name === 'b')
            await servers.database.pool.query(
              `insert into workflow_steps (run_id, pos, kind, name, attempt, at) values ($1, 1, 'step', 'b', 1, now())`,
              [run.runId],
            )
          return name
        }),
      ),
    ),
  )
  const engine = await engineOf([lines])
  const handle = await startRun(engine, lines, null)
  assert.equal(await handle.result(), ['a', 'b', 'c'])
  const { rows } = await servers.database.pool.query(
    'select pos, output from workflow_steps where run_id = $1 and ord is not null order by pos',
    [handle.runId],
  )
  assert.equal(
    rows.map(({ pos, output }) => [pos, output]),
    [
      [0, 'a'],
      [1, 'b'],
      [2, 'c'],
    ],
  )
})

test('a failing step is tried again, and a non-retryable one is not', async () => {
  let flaky = 0
  let fatal = 0
  const tries = workflow('tries', async (run) => {
    const attempt = await run.step(
      'flaky',
      (tools) => {
        flaky += 1
        if (tools.attempt < 3) throw new Error('not yet')
        return tools.attempt
      },
      { retry: { attempts: 5, first: 1 } },
    )
    try {
      await run.step('fatal', () => {
        fatal += 1
        throw nonRetryable('card declined')
      })
    } catch (error) {
      return { attempt, code: (error as MillraceError).code, message: (error as Error).message }
    }
  })
  const engine = await engineOf([tries])
  assert.equal(await (await startRun(engine, tries, null)).result(), {
    attempt: 3,
    code: 'step_failed',
    message: 'card declined',
  })
  assert.is(flaky, 3)
  assert.is(fatal, 1)
})

test('a slow step times out, its signal aborts, and the run fails with the reason', async () => {
  let aborted = false
  const slow = workflow('slow', async (run) => {
    await run.step(
      'wait',
      ({ signal }) =>
        new Promise<void>((resolve) => {
          signal.addEventListener('abort', () => {
            aborted = true
            resolve()
          })
        }),
      { timeout: 20, retry: { attempts: 1 } },
    )
  })
  const engine = await engineOf([slow])
  const handle = await startRun(engine, slow, null)
  try {
    await handle.result()
    assert.unreachable()
  } catch (error) {
    assert.instance(error, MillraceError)
    assert.is((error as MillraceError).code, 'timed_out')
  }
  assert.is(aborted, true)
})

test('an attempt that falls silent is ended, one that beats is not', async () => {
  const beats = workflow('beats', async (run) =>
    run.step(
      'long',
      async ({ attempt, signal, heartbeat }) => {
        if (attempt === 1) await new Promise((resolve) => signal.addEventListener('abort', resolve))
        for (let beat = 0; beat < 30; beat += 1) {
          await new Promise((resolve) => setTimeout(resolve, 30))
          heartbeat()
        }
        return attempt
      },
      { heartbeat: 600, retry: { attempts: 2, first: 1 } },
    ),
  )
  const engine = await engineOf([beats])
  assert.is(await (await startRun(engine, beats, null)).result(), 2)
})

test('a run that sleeps long leaves memory and is replayed when its time comes', async () => {
  let before = 0
  const naps = workflow('naps', async (run) => {
    await run.step('before', () => {
      before += 1
    })
    await run.sleep('1h')
    return run.step('after', () => 'awake')
  })
  const engine = await engineOf([naps])
  const handle = await startRun(engine, naps, null)
  while (engine.runsHere() > 0) await new Promise((resolve) => setTimeout(resolve, 5))
  const { rows } = await servers.database.pool.query('select status from workflow_runs where run_id = $1', [
    handle.runId,
  ])
  assert.is(rows[0].status, 'waiting')
  // The hour is over.
  for (const table of ['workflow_steps', 'workflow_runs'])
    await servers.database.pool.query(
      `update ${table} set due_at = due_at - interval '1 hour' where run_id = $1 and due_at is not null`,
      [handle.runId],
    )
  assert.is(await handle.result(), 'awake')
  assert.is(before, 1)
})

test('a short sleep ends by itself, in memory or out of it', async () => {
  const dozes = workflow('dozes', async (run) => {
    await run.sleep('100ms')
    await run.sleep('2500ms')
    return 'awake'
  })
  const engine = await engineOf([dozes])
  assert.is(await (await startRun(engine, dozes, null)).result(), 'awake')
})

test('a run started by a process without workflows is run by another', async () => {
  const greets = workflow('greets', async (run, name: string) => run.step('greet', () => `hello ${name}`))
  const starter = await engineOf([])
  const handle = await startRun(starter, greets, 'world')
  await engineOf([greets])
  assert.is(await handle.result(), 'hello world')
})

test.run()
