import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { createPool } from '../../src/telemetry/pool.ts'

const workers = (pool: ReturnType<typeof createPool>) => pool.report().workers

test('a worker is stuck when one batch takes longer than any batch does', () => {
  let nowMs = 0
  const pool = createPool(2, 60_000, () => nowMs)
  pool.started(0)
  pool.took(0, 100)
  nowMs = 60_000
  assert.is(workers(pool)[0]!.stuck, false)
  nowMs = 60_001
  assert.is(workers(pool)[0]!.stuck, true)
  assert.is(workers(pool)[0]!.inFlight, 100)
  assert.is(workers(pool)[1]!.stuck, false)
  pool.committed(0, 100)
  assert.is(workers(pool)[0]!.stuck, false)
  assert.is(workers(pool)[0]!.inFlight, 0)
})

test('a worker that waits for Postgres is holding, not stuck', () => {
  let nowMs = 0
  const pool = createPool(1, 60_000, () => nowMs)
  pool.started(0)
  pool.took(0, 5)
  pool.held(0, '57P03 the database system is starting up')
  nowMs = 600_000
  const [worker] = workers(pool)
  assert.is(worker!.state, 'holding')
  assert.is(worker!.stuck, false)
  assert.is(worker!.errors, 1)
  assert.match(worker!.lastError!, '57P03')
})

test('the rate follows what is committed and falls back to nothing', () => {
  let nowMs = 0
  const pool = createPool(1, 60_000, () => nowMs)
  pool.started(0)
  for (let second = 0; second < 20; second++) {
    nowMs += 1_000
    pool.committed(0, 500)
    pool.report()
  }
  assert.ok(Math.abs(workers(pool)[0]!.eventsPerSecond - 500) < 5)
  for (let second = 0; second < 30; second++) {
    nowMs += 1_000
    pool.report()
  }
  assert.is(workers(pool)[0]!.eventsPerSecond, 0)
  assert.is(workers(pool)[0]!.committed, 10_000)
})

test('draining shows until the worker has ended', () => {
  const pool = createPool(1, 60_000)
  assert.is(workers(pool)[0]!.state, 'ended')
  pool.started(0)
  assert.is(workers(pool)[0]!.state, 'pulling')
  pool.took(0, 1)
  pool.drain()
  assert.is(workers(pool)[0]!.state, 'draining')
  pool.committed(0, 1)
  assert.is(workers(pool)[0]!.state, 'draining')
  pool.ended(0)
  assert.is(workers(pool)[0]!.state, 'ended')
})

test.run()
