import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { adapt, startPace } from '../../src/ingest/pace.ts'

const SIZE_MAX = 1_000
const start = startPace({ WORKER_BATCH_SIZE: 50, WORKER_BATCH_SIZE_MAX: SIZE_MAX })

/** Drains a deep queue by full batches, each of which takes `msOf(size)`. */
function drain(batches: number, msOf: (size: number) => number) {
  let pace = start
  for (let i = 0; i < batches; i++) {
    const insertMs = msOf(pace.size)
    pace = adapt(pace, { size: pace.size, insertMs, depth: 100_000, gapMs: insertMs }, SIZE_MAX)
  }
  return pace
}

test('a backlog fills ever larger batches, up to the most allowed', () => {
  assert.is(drain(1, (size) => 2 + size / 50).size, 100)
  assert.is(drain(20, (size) => 2 + size / 50).size, SIZE_MAX)
})

test('on a slow disk too, where small batches would never catch up', () => {
  assert.is(drain(20, (size) => 400 + size / 50).size, SIZE_MAX)
})

test('without a backlog the size stays', () => {
  assert.is(adapt(start, { size: 50, insertMs: 3, depth: 0, gapMs: 10 }, SIZE_MAX).size, 50)
  assert.is(adapt(start, { size: 7, insertMs: 3, depth: 9, gapMs: 10 }, SIZE_MAX).size, 50)
})

test('a batch lingers only when more is expected to arrive during an insert, and never long', () => {
  assert.is(adapt(start, { size: 1, insertMs: 4, depth: 0, gapMs: 100 }, SIZE_MAX).lingerMs, 0)
  assert.is(adapt(start, { size: 10, insertMs: 4, depth: 0, gapMs: 10 }, SIZE_MAX).lingerMs, 8)
  assert.is(drain(20, () => 400).lingerMs, 50)
})

test.run()
