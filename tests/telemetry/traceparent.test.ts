import * as published from '@opentelemetry/semantic-conventions/incubating'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import * as copied from '../../src/telemetry/semconv.ts'
import { formatTraceparent, newSpanContext, parseTraceparent } from '../../src/telemetry/traceparent.ts'

const TRACE = '4bf92f3577b34da6a3ce929d0e0e4736'
const SPAN = '00f067aa0ba902b7'

test('a valid traceparent is read and written back', () => {
  for (const flags of ['00', '01']) {
    const header = `00-${TRACE}-${SPAN}-${flags}`
    const context = parseTraceparent(header)!
    assert.is(context.traceId, TRACE)
    assert.is(context.spanId, SPAN)
    assert.is(formatTraceparent(context), header)
  }
})

test('a later version is read as far as it is known, and only the sampled flag is kept', () => {
  assert.is(formatTraceparent(parseTraceparent(`cc-${TRACE}-${SPAN}-03-what-comes`)!), `00-${TRACE}-${SPAN}-01`)
})

test('what the protocol calls invalid starts a new trace', () => {
  for (const header of [
    undefined,
    '',
    `ff-${TRACE}-${SPAN}-01`,
    `00-${'0'.repeat(32)}-${SPAN}-01`,
    `00-${TRACE}-${'0'.repeat(16)}-01`,
    `00-${TRACE.toUpperCase()}-${SPAN}-01`,
    `00-${TRACE}-${SPAN}`,
    `00-${TRACE}-${SPAN}-0`,
    `00-${TRACE}-${SPAN}-01x`,
    `00-${TRACE}-${SPAN}-01-more`,
    `00-${TRACE.slice(1)}-${SPAN}-01`,
  ])
    assert.is(parseTraceparent(header), undefined, String(header))
})

test('a new span context is valid and unsampled', () => {
  const header = formatTraceparent(newSpanContext())
  assert.equal(parseTraceparent(header)?.traceFlags, 0)
  assert.not.equal(header, formatTraceparent(newSpanContext()))
})

test('names copied from the semantic conventions are those of the conventions', () => {
  const known = published as unknown as Record<string, unknown>
  for (const [name, value] of Object.entries(copied)) assert.is(value, known[name], name)
})

test.run()
