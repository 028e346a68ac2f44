/** Limits of queues: concurrency, per key, and rate, with several workers at once. */

import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { startRun, workflow } from '../../src/index.ts'
import { listLimits, removeLimits, setLimits } from '../../src/workflow/limits.ts'
import { startServers } from '../servers.ts'
import { enginesOf, until } from './engine.ts'

const servers = await startServers()
const engines = enginesOf(servers)
const { pool } = servers.database
test.after(async () => {
  await engines.stop()
  await servers.stop()
})

/** Who is inside now, and the most that ever were, over all workers of this process. */
const counter = () => {
  const inside = new Map<string, number>()
  const most = new Map<string, number>()
  return {
    most: (key: string) => most.get(key) ?? 0,
    enter: (key: string) => {
      const now = (inside.get(key) ?? 0) + 1
      inside.set(key, now)
      most.set(key, Math.max(now, most.get(key) ?? 0))
    },
    leave: (key: string) => inside.set(key, inside.get(key)! - 1),
  }
}

const holds = (queue: string, count: ReturnType<typeof counter>) =>
  workflow(queue, { queue }, async (run, key: string) => {
    await run.step('enter', () => [key, 'all'].forEach(count.enter))
    await run.sleep(20)
    await run.step('leave', () => [key, 'all'].forEach((each) => void count.leave(each)))
  })

test('a queue has no more runs in hand than its concurrency, and uses it', async () => {
  const count = counter()
  const limited = holds('narrow', count)
  await setLimits(pool, 'narrow', { concurrency: 3 })
  const engine = await engines.start([limited])
  await engines.start([limited])
  const runs = await Promise.all(Array.from({ length: 20 }, (_, n) => startRun(engine, limited, `k${n}`)))
  await Promise.all(runs.map((run) => run.result()))
  assert.is(count.most('all'), 3)
})

test('runs of one key go one after the other, and do not keep those of other keys waiting', async () => {
  const count = counter()
  const limited = holds('keyed', count)
  await setLimits(pool, 'keyed', { perKey: 1 })
  const engine = await engines.start([limited])
  await engines.start([limited])
  const start = (key: string) => startRun(engine, limited, key, { concurrencyKey: key })
  const runs = await Promise.all([...Array(12).fill('a'), ...Array(4).fill('b'), ...Array(4).fill('c')].map(start))
  await Promise.all(runs.map((run) => run.result()))
  assert.equal(
    ['a', 'b', 'c'].map((key) => count.most(key)),
    [1, 1, 1],
  )
  assert.ok(count.most('all') > 1)
})

test('a run that sleeps long keeps its place, and a terminated one gives it back', async () => {
  const sleeper = workflow('sleeper', { queue: 'beds' }, async (run, long: boolean) => {
    await run.sleep(long ? '1h' : 1)
  })
  await setLimits(pool, 'beds', { concurrency: 1 })
  const engine = await engines.start([sleeper])
  const first = await startRun(engine, sleeper, true)
  await until(async () => (await first.status()).status === 'waiting')
  const second = await startRun(engine, sleeper, false)
  assert.equal(
    (await listLimits(pool)).find(({ queue }) => queue === 'beds'),
    { queue: 'beds', limits: { concurrency: 1 }, holding: 1, queued: 1 },
  )
  await first.terminate()
  await second.result()
})

test('runs begin at the rate of the queue', async () => {
  const quick = workflow('quick', { queue: 'slow' }, async (run) => run.step('go', () => 1))
  await setLimits(pool, 'slow', { rate: { runs: 2, per: '1h' } })
  const engine = await engines.start([quick])
  const runs = await Promise.all(Array.from({ length: 5 }, () => startRun(engine, quick, null)))
  const statuses = async () => (await Promise.all(runs.map((run) => run.status()))).map(({ status }) => status)
  await until(async () => (await statuses()).filter((status) => status === 'completed').length === 2)
  // An hour's wait is over when the bucket is full again.
  await pool.query(`update workflow_queues set refilled_at = refilled_at - interval '1 hour' where queue = 'slow'`)
  await until(async () => (await statuses()).filter((status) => status === 'completed').length === 4)
  await removeLimits(pool, 'slow')
  await Promise.all(runs.map((run) => run.result()))
})

test('a limit set on a queue at work holds from the next start on', async () => {
  const count = counter()
  const later = holds('later', count)
  const engine = await engines.start([later])
  await (await startRun(engine, later, 'x')).result()
  await setLimits(pool, 'later', { concurrency: 1 })
  // The worker reads the limits at each sweep; a run that it begins after that counts against them.
  await until(async () => {
    const { runId, result } = await startRun(engine, later, 'x')
    await result()
    return (await pool.query('select from workflow_runs where run_id = $1 and holds', [runId])).rowCount === 1
  })
  const runs = await Promise.all(Array.from({ length: 5 }, () => startRun(engine, later, 'y')))
  await Promise.all(runs.map((run) => run.result()))
  assert.is(count.most('y'), 1)
})

test('runs of a lower number begin first, those of one number in the order of their start', async () => {
  for (const [queue, limits, runsMax] of [
    ['urgent-all', null, 1],
    ['urgent-limited', { concurrency: 1 }, 100],
  ] as const) {
    const began: number[] = []
    const urgent = workflow(queue, { queue, priority: 3 }, async (run, n: number) => {
      await run.step('begin', () => began.push(n))
    })
    if (limits !== null) await setLimits(pool, queue, limits)
    const starter = await engines.start([])
    const runs = []
    for (const [n, priority] of [5, 0, undefined, -1, 5, 0, undefined, 30_000].entries())
      runs.push(await startRun(starter, urgent, n, priority === undefined ? {} : { priority }))
    await engines.start([urgent], { runsMax })
    await Promise.all(runs.map((run) => run.result()))
    assert.equal(began, [3, 1, 5, 2, 6, 0, 4, 7], queue)
  }
})

test.run()
