import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { type StreamUse, trimDue } from '../../src/ingest/trim.ts'

const roomy: StreamUse = { events: 1e9, settled: 1, redelivering: 0, bytes: 0, bytesMax: 1_000, sinceMs: 0 }
const due = (use: Partial<StreamUse>) => trimDue({ ...roomy, ...use })

test('nothing is settled: no purge, however long ago the last one was, however full the stream', () => {
  assert.is(due({ settled: 0, sinceMs: 1e9, bytes: 1_000 }), false)
})

test('many settled events are purged at once, few after a minute', () => {
  assert.is(due({ settled: 100_000 }), true)
  assert.is(due({ settled: 99_999, sinceMs: 59_999 }), false)
  assert.is(due({ settled: 1, sinceMs: 60_000 }), true)
})

test('redeliveries put a purge off, but not for ever', () => {
  assert.is(due({ settled: 1_000_000, redelivering: 1, sinceMs: 1e9 }), false)
  assert.is(due({ settled: 2_000_000, redelivering: 1 }), true)
})

test('a stream that fills is purged whatever is redelivered, as soon as that makes room', () => {
  assert.is(due({ bytes: 500, events: 1_000, settled: 100, redelivering: 1 }), true)
  assert.is(due({ bytes: 499, events: 1_000, settled: 100, redelivering: 1 }), false)
  assert.is(due({ bytes: 500, events: 1_000, settled: 99, redelivering: 1 }), false)
})

test.run()
