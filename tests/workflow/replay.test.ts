import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { findRun, type MillraceError, type Run, startRun, workflow } from '../../src/index.ts'
import { startServers } from '../servers.ts'
import { codeOf, enginesOf, until } from './engine.ts'

const servers = await startServers()
const engines = enginesOf(servers)
test.after(async () => {
  await engines.stop()
  await servers.stop()
})

type Body = (run: Run) => Promise<unknown>

/** Runs `before` until it waits for the signal `go`, then hands the run to a process that has loaded `after`. */
async function deploy(name: string, before: Body, after: Body, versions: [string, string] = ['', '']) {
  const [old, next] = [
    workflow(name, { version: versions[0] }, before),
    workflow(name, { version: versions[1] }, after),
  ]
  const first = await engines.start([old])
  const handle = await startRun(first, old, null)
  await until(
    async () =>
      (
        await servers.database.pool.query(`select 1 from workflow_steps where run_id = $1 and kind = 'signal'`, [
          handle.runId,
        ])
      ).rowCount,
  )
  await first.stop()
  const second = await engines.start(versions[0] === versions[1] ? [next] : [old, next])

  const again = await findRun(second, handle.runId)
  return { handle: again, engine: second, next }
}

test('code that no longer matches its journal stops the run, names both sides, and loses nothing', async () => {
  let charged = 0
  const charge = () => {
    charged += 1
    return charged
  }
  const good: Body = async (run) => {
    const n = await run.step('charge', charge)
    await run.signal('go')
    return run.step('ship', () => `shipped ${n}`)
  }
  const { handle, engine } = await deploy('changed', good, async (run) => {
    await run.step('check stock', () => true)
    return good(run)
  })
  const status = await until(async () => {
    const now = await handle.status()
    return now.status === 'stuck' && now
  })
  assert.is(status.error?.code, 'nondeterminism')
  assert.match(status.error!.message, /step 'check stock'.*step 'charge' at position 0/)
  await engine.stop()
  const mended = await engines.start([workflow('changed', good)])

  const again = await findRun(mended, handle.runId)
  await again.resume()
  await again.signal('go')
  assert.is(await again.result(), 'shipped 1')
  assert.is(charged, 1)
})

test('code that ends before its journal does is stuck too', async () => {
  const { handle } = await deploy(
    'shortened',
    async (run) => {
      await run.step('one', () => 1)
      await run.step('two', () => 2)
      await run.signal('go')
    },
    async (run) => run.step('one', () => 1),
  )
  await until(async () => (await handle.status()).status === 'stuck')
  assert.match((await handle.status()).error!.message, /ended after 1 calls.*step 'two' at position 1/)
})

test('patched lets runs that are past the change go on the old way, and new ones the new way', async () => {
  const before: Body = async (run) => {
    await run.step('old', () => 'old')
    await run.signal('go')
    return 'old way'
  }
  const after: Body = async (run) => {
    const fresh = await run.patched('new-step')
    if (fresh) await run.step('new', () => 'new')
    else await run.step('old', () => 'old')
    await run.signal('go')
    return fresh ? 'new way' : 'old way'
  }
  const { handle, engine, next } = await deploy('patches', before, after)
  await handle.signal('go')
  assert.is(await handle.result(), 'old way')
  const fresh = await startRun(engine, next, null)
  await until(async () => (await fresh.status()).status === 'waiting')
  await fresh.signal('go')
  assert.is(await fresh.result(), 'new way')
})

test('a run finishes with the version it started with', async () => {
  const of =
    (answer: string): Body =>
    async (run) => {
      await run.step(answer, () => answer)
      await run.signal('go')
      return answer
    }
  const { handle, engine, next } = await deploy('versions', of('v1'), of('v2'), ['1', '2'])
  const fresh = await startRun(engine, next, null)
  await handle.signal('go')
  await fresh.signal('go')
  assert.is(await handle.result(), 'v1')
  assert.is(await fresh.result(), 'v2')
})

test('races, random, uuid and now come out the same at a replay', async () => {
  const seen: unknown[] = []
  const body: Body = async (run) => {
    const race = () =>
      Promise.race(
        [1, 2, 3, 4].map(async (n) => {
          await run.step(`pace ${n}`, () => new Promise((resolve) => setTimeout(resolve, Math.random() * 20)))
          await run.step(`then ${n}`, () => n)
          return n
        }),
      )
    const any = await Promise.any([
      run.step('fails', () => Promise.reject(new Error('no')), { retry: { attempts: 1 } }),
      run.step('works', () => 'any'),
    ])
    const facts = [await race(), await race(), any, run.random(), run.uuid(), run.now()]
    seen.push(facts)
    await run.signal('go')
    return facts
  }
  for (let round = 0; round < 5; round += 1) {
    seen.length = 0
    const { handle } = await deploy(`races-${round}`, body, body)
    await handle.signal('go')
    const facts = await handle.result()
    assert.is(seen.length, 2)
    assert.equal(seen[0], seen[1])
    assert.equal(facts, seen[0])
  }
})

test('a cancellation is replayed where it came', async () => {
  const said: string[] = []
  const body: Body = async (run) => {
    try {
      await Promise.all([run.sleep('1h'), run.step('hang', () => new Promise(() => {}))])
    } catch (error) {
      said.push((error as MillraceError).code)
      await run.step('cleaned', () => said.push('cleaning'))
      await run.signal('go')
      throw error
    }
  }
  const old = workflow('cancel-replay', body)
  const first = await engines.start([old])
  const started = await startRun(first, old, null)
  await started.cancel()
  await until(
    async () =>
      (
        await servers.database.pool.query(`select 1 from workflow_steps where run_id = $1 and kind = 'signal'`, [
          started.runId,
        ])
      ).rowCount,
  )
  await first.stop()
  await engines.start([old])
  const reader = await engines.start([])

  const handle = await findRun(reader, started.runId)
  await handle.signal('go')
  assert.is(await codeOf(handle.result()), 'cancelled')
  assert.equal(said, ['cancelled', 'cleaning', 'cancelled'])
})

test('a failed run is restarted from a step, with what came before it kept', async () => {
  const ran: string[] = []
  let broken = true
  const flow = workflow('restarts', async (run) => {
    const a = await run.step('a', () => ran.push('a'))
    await run.step('b', () => ran.push('b'))
    await run.step(
      'c',
      () => {
        ran.push('c')
        if (broken) throw new Error('broken')
      },
      { retry: { attempts: 1 } },
    )
    return a
  })
  const engine = await engines.start([flow])
  const handle = await startRun(engine, flow, null, { id: 'r1' })
  assert.is(await codeOf(handle.result()), 'step_failed')
  const letters = async () => {
    const { rows } = await servers.database.pool.query(
      `select id, state, data from pgboss.job where name = 'dead-runs'`,
    )
    return rows.filter((row) => row.data.name === 'restarts')
  }
  const [letter] = await letters()
  assert.is(letter.id, handle.runId)
  assert.is(letter.data.error.message, 'broken')
  assert.equal(
    letter.data.history.map((line: { name: string; output: string | null }) => [line.name, line.output]),
    [
      ['a', '1'],
      ['b', '2'],
      ['c', null],
    ],
  )
  broken = false
  const again = await handle.restart('c')
  assert.is(await again.result(), 1)
  assert.equal(ran, ['a', 'b', 'c', 'c'])
  assert.is((await letters())[0].state, 'completed')
  const whole = await again.restart()
  assert.is(await whole.result(), 5)
  assert.is((await handle.status()).status, 'failed')
  assert.is(await codeOf(handle.restart('nowhere')), 'not_found')
})

test('10,000 steps in one run stay linear, live and replayed', async () => {
  const long = workflow('long', async (run, steps: number) => {
    let sum = 0
    for (let n = 0; n < steps; n += 100)
      for (const value of await Promise.all(Array.from({ length: 100 }, (_, k) => run.step(`s${n + k}`, () => 1))))
        sum += value
    await run.signal('go')
    return sum
  })
  const first = await engines.start([long])
  const handle = await startRun(first, long, 10_000)
  await until(
    async () =>
      (
        await servers.database.pool.query(`select 1 from workflow_steps where run_id = $1 and kind = 'signal'`, [
          handle.runId,
        ])
      ).rowCount,
  )
  await first.stop()
  const second = await engines.start([long])

  const again = await findRun(second, handle.runId)
  await again.signal('go')
  assert.is(await again.result(), 10_000)
})

test.run()
