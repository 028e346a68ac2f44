/** Turns what a client sent into events for the stream, or says for each what is wrong with it. */

import { Ajv } from 'ajv'
import addFormats from 'ajv-formats'
import { uuidv7 } from 'uuidv7'
import type { OutgoingEvent } from './event.ts'

export type Rejection = { status: 'rejected'; code: string; pointer: string; message: string }

/** CloudEvents 1.0 attributes; further top-level names are its extensions. */
export const eventSchema = {
  type: 'object',
  required: ['type', 'source'],
  properties: {
    specversion: { const: '1.0' },
    id: { type: 'string', minLength: 1, maxLength: 512 },
    source: { type: 'string', minLength: 1, maxLength: 1024 },
    type: { type: 'string', minLength: 1, maxLength: 255 },
    subject: { type: 'string', minLength: 1, maxLength: 1024 },
    time: { type: 'string', format: 'date-time' },
    datacontenttype: { type: 'string', minLength: 1 },
    dataschema: { type: 'string', minLength: 1 },
    data: {},
    data_base64: { type: 'string' },
  },
} as const

const ajv = new Ajv({ allErrors: false, strict: true })
addFormats.default(ajv)
const isEvent = ajv.compile(eventSchema)

/** @returns the event ready to publish, or why it is refused */
export function validateEvent(
  input: unknown,
  { receivedMs, traceparent, commitReply }: Pick<OutgoingEvent, 'receivedMs' | 'traceparent' | 'commitReply'>,
): OutgoingEvent | Rejection {
  if (!isEvent(input)) {
    const problem = isEvent.errors![0]!
    return {
      status: 'rejected',
      code: 'invalid_event',
      pointer: problem.instancePath,
      message: problem.message ?? 'is not an event',
    }
  }
  const event = input as unknown as Record<string, unknown> & { id?: string; source: string; type: string }
  event.id ??= uuidv7()
  event.specversion ??= '1.0'
  return {
    id: event.id,
    source: event.source,
    type: event.type,
    payload: JSON.stringify(event),
    receivedMs,
    traceparent,
    commitReply,
  }
}
