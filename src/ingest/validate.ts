/** Turns what a client sent into events for the stream, or says for each what is wrong with it. */

import { Ajv, type ErrorObject } from 'ajv'
import addFormats from 'ajv-formats'
import { uuidv7 } from 'uuidv7'
import { instantSchema } from '../http/routes.ts'
import { parseTraceparent } from '../telemetry/traceparent.ts'
import type { EventObject, OutgoingEvent } from './event.ts'
import { DEPTH_MAX, deeperThan, findUnstorable, type Json, type Problem } from './json.ts'
import type { Rejection } from './outcomes.ts'
import type { SchemaRegistry } from './schemas.ts'

/** CloudEvents 1.0 forbids control characters in attributes; id and source also travel as headers, which lose outer space. */
const CONTROL = '\\u0000-\\u001f\\u007f-\\u009f'
const SPACE = '\\u0020\\u00a0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000\\ufeff'
const PLAIN = `^[^${CONTROL}]*$`
const TRIMMED = `^[^${CONTROL}${SPACE}]([^${CONTROL}]*[^${CONTROL}${SPACE}])?$`

/** CloudEvents 1.0 attributes; further top-level names are its extensions. */
export const eventSchema = {
  type: 'object',
  required: ['type', 'source'],
  properties: {
    specversion: { const: '1.0' },
    id: { type: 'string', minLength: 1, maxLength: 512, pattern: TRIMMED, description: 'a UUIDv7 is made when absent' },
    source: { type: 'string', minLength: 1, maxLength: 1024, pattern: TRIMMED },
    type: { type: 'string', minLength: 1, maxLength: 255, pattern: TRIMMED },
    subject: { type: 'string', minLength: 1, maxLength: 1024, pattern: PLAIN },
    time: instantSchema,
    datacontenttype: { type: 'string', minLength: 1, maxLength: 255, pattern: PLAIN },
    dataschema: { type: 'string', minLength: 1, maxLength: 2048, pattern: PLAIN },
    data: { description: 'any JSON' },
    data_base64: { type: 'string', format: 'byte', description: 'data that is not JSON; excludes `data`' },
  },
  not: { required: ['data', 'data_base64'] },
  additionalProperties: { description: 'CloudEvents extensions, kept as they are' },
} as const

/** What an index entry of Postgres can hold (a third of a page) less its overhead: beyond it the row is refused. */
const KEY_BYTES_MAX = 2_600

const ajv = new Ajv({ allErrors: false, strict: true, strictRequired: false, ownProperties: true })
addFormats.default(ajv)
const isEvent = ajv.compile(eventSchema)

/** An event fit for the stream, perhaps with what its schema warns of. */
export type Admission = { event: OutgoingEvent; warning: Problem | undefined }

export type ValidateDeps = { schemas: SchemaRegistry }

/**
 * Checks one event in the order: shape, depth, what Postgres can hold, its type's JSON Schema, size.
 * @param stamp  what the request gives each of its events; an event's own `traceparent` extension wins
 */
export function validateEvent(
  { schemas }: ValidateDeps,
  { value, exact, suspect }: Json,
  stamp: { receivedMs: number; commitReply: string; eventBytesMax: number; tenant: string },
): Admission | Rejection {
  if (!isEvent(value)) return rejection(value, shapeProblem(isEvent.errors![0]!))
  if (deeperThan(value, DEPTH_MAX))
    return rejection(value, { code: 'too_deep', pointer: '', message: `nests deeper than ${DEPTH_MAX} levels` })
  const problem = suspect ? findUnstorable(exact ?? value) : undefined
  if (problem !== undefined) return rejection(value, problem)
  const event = value as EventObject
  if (keyTooLong(event))
    return rejection(value, {
      code: 'invalid_event',
      pointer: '',
      message: `source and id together hold more than ${KEY_BYTES_MAX} bytes`,
    })
  const verdict = schemas.check(stamp.tenant, event)
  if (verdict?.mode === 'strict') return rejection(value, verdict.problem)

  const payloadOf = (exact ?? value) as EventObject
  if (event.id === undefined) payloadOf.id = event.id = uuidv7()
  payloadOf.specversion ??= '1.0'
  const payload = JSON.stringify(payloadOf)
  if (payload.length * 3 > stamp.eventBytesMax && Buffer.byteLength(payload) > stamp.eventBytesMax)
    return rejection(value, tooLargeEvent(stamp.eventBytesMax))
  const { id, source, type, traceparent } = event
  return {
    event: {
      id,
      source,
      type,
      payload,
      receivedMs: stamp.receivedMs,
      traceparent: typeof traceparent === 'string' && parseTraceparent(traceparent) !== undefined ? traceparent : '',
      commitReply: stamp.commitReply,
      tenant: stamp.tenant,
      seq: 0,
      place: 0,
    },
    warning: verdict?.problem,
  }
}

/** In words where Ajv would show a regular expression. */
function shapeProblem({ keyword, instancePath: pointer, message }: ErrorObject): Problem {
  const code = 'invalid_event'
  if (keyword === 'not') return { code, pointer, message: 'has both data and data_base64; send one' }
  if (pointer === '/time' && keyword !== 'type')
    return { code, pointer, message: 'must be a time of RFC 3339, in years 1 to 9999, with an offset below 16 hours' }
  if (keyword === 'pattern')
    return { code, pointer, message: 'must have no control characters, and no white space at its ends' }
  return { code, pointer, message: message ?? 'is not an event' }
}

export const tooLargeEvent = (eventBytesMax: number): Problem => ({
  code: 'event_too_large',
  pointer: '',
  message: `is larger than EVENT_BYTES_MAX=${eventBytesMax} bytes`,
})

function rejection(value: unknown, problem: Problem): Rejection {
  const id = (value as { id?: unknown } | null)?.id
  return typeof id === 'string' && id.length <= 512
    ? { status: 'rejected', id: id.toWellFormed(), ...problem }
    : { status: 'rejected', ...problem }
}

function keyTooLong({ source, id = '' }: { source: string; id?: string }): boolean {
  if ((source.length + id.length) * 3 <= KEY_BYTES_MAX) return false
  return Buffer.byteLength(source) + Buffer.byteLength(id) > KEY_BYTES_MAX
}
