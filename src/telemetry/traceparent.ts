/** W3C Trace Context, level 2: `version-traceid-parentid-flags`, in lower-case hexadecimal. */

import { randomUUID } from 'node:crypto'
import { type SpanContext, TraceFlags } from '@opentelemetry/api'

/** Version 00 ends here; a later one may go on. */
const LENGTH_00 = 55

const FORM = /^(?!ff)([0-9a-f]{2})-((?!0{32})[0-9a-f]{32})-((?!0{16})[0-9a-f]{16})-([0-9a-f]{2})(?:$|-)/

/** What a caller's header says; undefined when it is absent or wrong, which the protocol treats alike. */
export function parseTraceparent(header: string | undefined): SpanContext | undefined {
  const match = FORM.exec(header ?? '')
  if (match === null || (match[1] === '00' && header!.length !== LENGTH_00)) return undefined
  const traceFlags = Number.parseInt(match[4]!, 16) & TraceFlags.SAMPLED
  return { traceId: match[2]!, spanId: match[3]!, traceFlags, isRemote: true }
}

export const formatTraceparent = ({ traceId, spanId, traceFlags }: SpanContext): string =>
  `00-${traceId}-${spanId}-${(traceFlags & TraceFlags.SAMPLED) === 0 ? '00' : '01'}`

/**
 * A new trace that nobody records: every event has a trace id, sampled or not. randomUUID is the cheapest strong source
 * Node has. The span is never made, so its id need only be valid.
 */
export function newSpanContext(): SpanContext {
  const traceId = randomUUID().replaceAll('-', '')
  return { traceId, spanId: traceId.slice(16), traceFlags: TraceFlags.NONE }
}
