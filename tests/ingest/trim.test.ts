import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { trimDue } from '../../src/ingest/trim.ts'

const fresh = { trimmedSeq: 1_000, trimmedAtMs: 0 }

test('nothing new is settled: no purge, however long ago the last one was', () => {
  assert.is(trimDue(fresh, { settledSeq: 1_000, redelivering: 0, nowMs: 1e9 }), false)
})

test('many settled events are purged at once, few after a minute', () => {
  assert.is(trimDue(fresh, { settledSeq: 101_000, redelivering: 0, nowMs: 0 }), true)
  assert.is(trimDue(fresh, { settledSeq: 1_001, redelivering: 0, nowMs: 59_999 }), false)
  assert.is(trimDue(fresh, { settledSeq: 1_001, redelivering: 0, nowMs: 60_000 }), true)
})

test('redeliveries put a purge off, but not for ever', () => {
  assert.is(trimDue(fresh, { settledSeq: 1_000_000, redelivering: 1, nowMs: 1e9 }), false)
  assert.is(trimDue(fresh, { settledSeq: 2_001_000, redelivering: 1, nowMs: 0 }), true)
})

test.run()
