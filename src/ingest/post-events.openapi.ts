/** POST /v1/events as /openapi.json describes it. */

import { describeParameters, describeResponses, type Parameters } from '../http/routes.ts'
import { eventSchema } from './validate.ts'

export const postEventsParameters: Parameters = {
  wait: { description: 'answer when the rows are committed', schema: { enum: ['committed'] } },
}

const problem = {
  code: { type: 'string' },
  pointer: { type: 'string', description: 'JSON pointer' },
  message: { type: 'string' },
}

const outcome = {
  type: 'object',
  required: ['status'],
  properties: {
    status: { enum: ['accepted', 'inserted', 'duplicate', 'dead_lettered', 'rejected', 'failed'] },
    id: { type: 'string', description: 'as sent, or as made; retry a failed event with it' },
    ...problem,
    warning: { type: 'object', properties: problem, description: 'what a schema in mode warn has against the event' },
  },
}

const outcomes = {
  type: 'object',
  required: ['accepted', 'rejected', 'events'],
  properties: {
    accepted: { type: 'integer', description: 'on disk in the stream' },
    rejected: { type: 'integer' },
    inserted: { type: 'integer' },
    duplicate: { type: 'integer' },
    dead_lettered: { type: 'integer' },
    failed: { type: 'integer' },
    events: { type: 'array', items: outcome, description: 'in the order of the request' },
  },
}

const refusal = { anyOf: [{ $ref: '#/components/schemas/Error' }, outcomes] }

export const postEventsOperation = {
  summary: 'Takes events: one, an array, NDJSON, or CloudEvents 1.0',
  description:
    'A 2xx means on disk. Bodies may be compressed (gzip, br, zstd). NDJSON is streamed. CloudEvents binary mode takes any other content type with ce- headers.',
  parameters: describeParameters('query', postEventsParameters),
  requestBody: {
    required: true,
    content: {
      'application/json': { schema: { anyOf: [eventSchema, { type: 'array', minItems: 1, items: eventSchema }] } },
      'application/cloudevents+json': { schema: eventSchema },
      'application/cloudevents-batch+json': { schema: { type: 'array', minItems: 1, items: eventSchema } },
      'application/x-ndjson': { schema: { type: 'string', description: 'one event per line' } },
    },
  },
  responses: describeResponses({
    200: ['with wait=committed: every good event has its fate', outcomes],
    202: ['the good events are on disk in the stream', outcomes],
    400: ['no event is good, or the request is not', refusal],
    408: ['the body stopped coming', refusal],
    413: ['a limit is exceeded, which the answer names', refusal],
    415: ['the content type or encoding is not understood', refusal],
    429: ['the key has sent its share; Retry-After says when to come back', refusal],
    503: ['JetStream is away or too far behind; the answer says which events were accepted', refusal],
  }),
}
