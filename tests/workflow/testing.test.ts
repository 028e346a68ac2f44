/** The test kit: no servers, no waiting. */

import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { workflow } from '../../src/index.ts'
import { type ExportedHistory, replayHistory, testRun } from '../../src/workflow/testing.ts'
import { codeOf } from './engine.ts'

const DAY_MS = 86_400_000

test('sleeps and retries take no time, and the clock says what they took', async () => {
  let tries = 0
  const patient = workflow('patient', async (run) => {
    const began = run.now()
    await run.sleep('30d')
    const tried = await run.step(
      'flaky',
      ({ attempt }) => {
        tries += 1
        if (attempt < 4) throw new Error('not yet')
        return attempt
      },
      { retry: { attempts: 5, first: '1h', max: '1d', jitter: 0 } },
    )
    await run.sleep(500)
    return { tried, days: Math.round((run.now() - began) / DAY_MS) }
  })
  const wall = performance.now()
  const run = testRun(patient, null, { now: new Date('2030-01-01') })
  assert.equal(await run.result, { tried: 4, days: 30 })
  assert.is(tries, 4)
  // 30 days, 1 + 2 + 4 hours, half a second.
  assert.is(run.now() - Date.parse('2030-01-01'), 30 * DAY_MS + 7 * 3_600_000 + 500)
  assert.ok(performance.now() - wall < 60_000)
})

const approval = workflow('approval', { awaits: { 'order.paid': (e) => e.data.orderId } }, async (run, id: string) => {
  const reminded = await run.signal('approve', { timeout: '2d' })
  if (reminded === null) await run.step('remind', () => 'sent')
  const yes = reminded ?? (await run.signal('approve', { timeout: '5d' }))
  run.setState({ yes })
  if (yes === null) return 'expired'
  const paid = await run.waitFor('order.paid', { key: id, timeout: '1d' })
  return paid === null ? 'unpaid' : paid.data.amount
})

test('signals and events come when the test says, timeouts when their time has come', async () => {
  assert.is(await testRun(approval, 'o-1').result, 'expired')

  const late = testRun(approval, 'o-1')
  late.after('3d', () => late.signal('approve', true))
  assert.is(await late.result, 'unpaid')
  assert.equal(
    late.history().map(({ kind, name }) => `${kind} ${name}`),
    ['signal approve', 'step remind', 'signal approve', 'event order.paid'],
  )

  const paid = testRun(approval, 'o-1')
  paid.after('1d', () => paid.signal('approve', true))
  paid.after('25h', () => paid.event('order.paid', { data: { orderId: 'other', amount: 1 } }))
  paid.after('26h', () => paid.event('order.paid', { data: { orderId: 'o-1', amount: 42 } }))
  assert.is(await paid.result, 42)
  assert.equal(paid.state(), { yes: true })
})

test('steps and children are stood in for, transactions must be', async () => {
  const child = workflow('child', async (run, n: number) => {
    await run.sleep('1h')
    return n + 1
  })
  const parent = workflow('parent', async (run) => {
    const charged = await run.step('charge', () => {
      throw new Error('must not be called')
    })
    const stored = await run.transaction('store', async () => 'in the database')
    return [charged, stored, await run.child(child, 1)]
  })
  const steps = { charge: () => 'ok', store: () => 'stored' }
  assert.equal(await testRun(parent, null, { steps }).result, ['ok', 'stored', 2])
  assert.equal(await testRun(parent, null, { steps, children: { child: () => 9 } }).result, ['ok', 'stored', 9])
  assert.is(await codeOf(testRun(parent, null, { steps: { charge: () => 1 } }).result), 'run_failed')
})

test('a cancelled run compensates, and a run that waits for what nobody sends says so', async () => {
  const undone: string[] = []
  const saga = workflow('saga', async (run) => {
    for (const name of ['hotel', 'flight']) {
      await run.step(name, () => name)
      run.compensate(`undo ${name}`, () => undone.push(name))
    }
    await run.signal('go')
  })
  const run = testRun(saga, null)
  run.after('1h', () => run.cancel())
  assert.is(await codeOf(run.result), 'cancelled')
  assert.equal(undone, ['flight', 'hotel'])
  try {
    await testRun(saga, null).result
    assert.unreachable()
  } catch (error) {
    assert.match((error as Error).message, /waits for ever for signal 'go'/)
  }
})

const line = (pos: number, name: string, output: unknown): ExportedHistory['lines'][number] => ({
  pos,
  ord: pos,
  kind: 'step',
  name,
  output,
  error: null,
  attempt: 1,
  dueAt: null,
  at: '2030-01-01T00:00:01.000Z',
  ms: 1,
})
const exported: ExportedHistory = {
  millrace: 1,
  runId: '01930000-0000-7000-8000-000000000000',
  id: null,
  name: 'sums',
  version: '',
  status: 'completed',
  input: 1,
  output: 3,
  error: null,
  createdAt: '2030-01-01T00:00:00.000Z',
  lines: [line(0, 'one', 1), line(1, 'two', 2)],
}
const sums = (names: string[], more = 0) =>
  workflow('sums', async (run) => {
    let sum = more
    for (const name of names)
      sum += await run.step(name, (): number => {
        throw new Error('a replay executes nothing')
      })
    return sum
  })

test('a history fits the code that made it, whole or cut off, and nothing is executed', async () => {
  await replayHistory(sums(['one', 'two']), exported)
  await replayHistory(sums(['one', 'two', 'three']), { ...exported, status: 'running', output: null })
})

test('a history that the code does not fit is refused, naming both sides', async () => {
  for (const [code, says] of [
    [sums(['one', 'zwei']), /calls step 'zwei'.*journal.*step 'two' at position 1/],
    [sums(['one']), /ended after 1 calls.*step 'two' at position 1/],
    [sums(['one', 'two', 'three']), /goes on after 3 calls.*ends there: completed/],
    [sums(['one', 'two'], 1), /gives 4.*says 3/],
  ] as const)
    try {
      await replayHistory(code, exported)
      assert.unreachable()
    } catch (error) {
      assert.is((error as { code?: string }).code, 'nondeterminism', String(error))
      assert.match((error as Error).message, says)
    }
})

test.run()
