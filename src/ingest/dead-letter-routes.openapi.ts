/** Parameters and OpenAPI description of `/v1/dead-letters`. */

import { describeParameters, describeResponses, type Parameters, type Routes } from '../http/routes.ts'
import type { LetterFilter } from './dead-letter-search.ts'
import { eventSchema } from './validate.ts'

/** Whatever stands on the stream can be a dead letter, so these are wider than the event's own. */
const text = (charsMax: number) => ({ type: 'string', maxLength: charsMax, pattern: '^[^\\u0000]*$' })
const { time } = eventSchema.properties

const narrowing = {
  type: { description: 'of this event type', schema: text(255) },
  source: { description: 'of this event source', schema: text(4_096) },
  code: { description: 'refused with this SQLSTATE, or `unreadable`', schema: text(16) },
  from: { description: 'dead at this time or later', schema: time },
  to: { description: 'dead before this time', schema: time },
}
const filter = { id: { description: 'of a dead letter or an event', schema: text(4_096) }, ...narrowing }
const state = {
  description: 'which ones',
  schema: { enum: ['open', 'replayed', 'discarded', 'all'], default: 'open' },
}

export type FilterQuery = Omit<LetterFilter, 'ids'> & { id?: string }
export type ListQuery = FilterQuery & { state: string; limit: number; before?: number }
export type DiscardBody = LetterFilter & {
  all?: boolean
  by?: string
  dry_run: boolean
  limit: number
  reason?: string
}
export type ReplayBody = Omit<DiscardBody, 'reason'> & { patch?: object[] }

export const idParameter: Parameters = {
  id: { description: 'of the dead letter', schema: { type: 'string', format: 'uuid' } },
}
export const stateParameters: Parameters = { ...filter, state }
export const listParameters: Parameters = {
  ...stateParameters,
  limit: { description: 'per page', schema: { type: 'integer', minimum: 1, maximum: 1_000, default: 100 } },
  before: { description: '`next` of the page before', schema: { type: 'integer', minimum: 1, maximum: 2 ** 53 - 1 } },
}

const handling: Parameters = {
  ids: {
    description: 'of dead letters or events',
    schema: { type: 'array', minItems: 1, maxItems: 100, items: text(512) },
  },
  ...narrowing,
  all: { description: 'every open one; needed where nothing else narrows it', schema: { type: 'boolean' } },
  by: { description: 'who asks, for the audit table', schema: { ...text(255), minLength: 1 } },
  dry_run: { description: 'only say what would happen', schema: { type: 'boolean', default: false } },
  limit: {
    description: 'so many at most; `remaining` tells of the rest',
    schema: { type: 'integer', minimum: 1, maximum: 10_000, default: 1_000 },
  },
}
export const discardSchema = bodyOf({
  ...handling,
  reason: { description: 'for the audit table', schema: text(1_000) },
})

/** RFC 6902, section 4. */
const pointer = { type: 'string', pattern: '^(/.*)?$' }
const operation = (names: string[], more: Record<string, object>) => ({
  required: ['op', 'path', ...Object.keys(more)],
  properties: { op: { enum: names }, path: pointer, ...more },
})
const operations = [
  operation(['add', 'replace', 'test'], { value: {} }),
  operation(['remove'], {}),
  operation(['move', 'copy'], { from: pointer }),
]

export const replaySchema = bodyOf({
  ...handling,
  patch: {
    description: 'RFC 6902 operations on the event document, applied to each letter; source and id may not change',
    schema: { type: 'array', minItems: 1, items: { type: 'object', anyOf: operations } },
  },
})

function bodyOf(properties: Parameters) {
  const described = Object.entries(properties).map(([name, { description, schema }]) => [
    name,
    { ...schema, description },
  ])
  return { type: 'object', properties: Object.fromEntries(described), additionalProperties: false }
}

const problem = { $ref: '#/components/schemas/Error' }
const instant = { type: 'string', format: 'date-time' }
const stateName = { enum: ['open', 'replayed', 'discarded'] }
const about = {
  deadLetterId: { type: 'string', format: 'uuid' },
  source: { type: 'string' },
  id: { type: 'string' },
  type: { type: 'string' },
}
const summary = {
  type: 'object',
  required: ['deadLetterId', 'state', 'source', 'id', 'type', 'code', 'error', 'attempts', 'deadAt', 'seq'],
  properties: {
    ...about,
    state: stateName,
    code: { type: 'string' },
    error: { type: 'string' },
    attempts: { type: 'integer' },
    deadAt: instant,
    seq: { type: 'integer' },
  },
}
const cause = {
  type: 'object',
  required: ['code', 'type', 'count', 'oldest', 'newest', 'error'],
  properties: {
    code: { type: 'string' },
    type: { type: 'string' },
    count: { type: 'integer' },
    oldest: instant,
    newest: instant,
    error: { type: 'string', description: 'of the newest' },
  },
}
const whole = {
  type: 'object',
  required: ['deadLetterId', 'state', 'source', 'id', 'type', 'code', 'error', 'attempts', 'headers', 'history'],
  properties: {
    ...about,
    state: stateName,
    payload: { type: 'string', description: 'the message as it was' },
    payloadBase64: { type: 'string', description: 'the same, where it is no text' },
    history: { type: 'array', items: { type: 'object' }, description: 'all that was done to letters of this event' },
  },
}
const handled = {
  type: 'object',
  required: ['counts', 'outcomes', 'remaining'],
  properties: {
    counts: { type: 'object', additionalProperties: { type: 'integer' } },
    outcomes: {
      type: 'array',
      items: {
        type: 'object',
        required: ['deadLetterId', 'outcome'],
        properties: {
          ...about,
          outcome: {
            enum: ['replayed', 'stored', 'discarded', 'refused'],
            description: 'stored: the event was stored meanwhile, so the letter is closed; refused: it stays open',
          },
          reason: { type: 'string' },
          event: { type: 'object', description: 'as it would be published; in a dry run' },
        },
      },
    },
    remaining: { type: 'integer', description: 'open ones that still match' },
  },
}

const listOf = (name: string, items: object, more: Record<string, object> = {}) => ({
  type: 'object',
  required: [name, ...Object.keys(more)],
  properties: { [name]: { type: 'array', items }, ...more },
})
const failures: Record<number, [string, object]> = {
  400: ['the request is wrong', problem],
  503: ['JetStream or Postgres is away', problem],
}
const narrowed = [
  { required: ['all'], properties: { all: { const: true } } },
  ...['ids', ...Object.keys(narrowing)].map((name) => ({ required: [name] })),
]
const action = (what: string, schema: object) => ({
  post: {
    summary: what,
    requestBody: { required: true, content: { 'application/json': { schema: { ...schema, anyOf: narrowed } } } },
    responses: describeResponses({
      200: ['what became of each', handled],
      ...failures,
      413: ['the body is too large', problem],
    }),
  },
})

export const paths: Routes['paths'] = {
  '/v1/dead-letters': {
    get: {
      summary: 'Searches dead letters, newest first',
      parameters: describeParameters('query', listParameters),
      responses: describeResponses({
        200: ['a page', listOf('dead_letters', summary, { next: { type: ['integer', 'null'] } })],
        ...failures,
      }),
    },
  },
  '/v1/dead-letters/causes': {
    get: {
      summary: 'Counts dead letters by cause',
      parameters: describeParameters('query', stateParameters),
      responses: describeResponses({ 200: ['the causes, most frequent first', listOf('causes', cause)], ...failures }),
    },
  },
  '/v1/dead-letters/{id}': {
    get: {
      summary: 'One dead letter whole, with the history of its event',
      parameters: describeParameters('path', idParameter),
      responses: describeResponses({
        200: ['the dead letter', whole],
        404: ['there is none', problem],
        ...failures,
      }),
    },
  },
  '/v1/dead-letters/actions/replay': action('Publishes dead letters again, under the same identity', replaySchema),
  '/v1/dead-letters/actions/discard': action('Closes dead letters without replaying them', discardSchema),
}
