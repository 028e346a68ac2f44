/** The shapes of the workflow API: the schemas that check requests, and the same as OpenAPI. */

import { describeBody, describeParameters, describeResponses, instantSchema, type Parameters } from '../http/routes.ts'

export const duration = {
  description: "milliseconds, or text such as '30s', '1h30m' or '3d'",
  oneOf: [
    { type: 'number', minimum: 0, maximum: 1e13 },
    { type: 'string', maxLength: 50, pattern: '^([0-9]{1,6}(\\.[0-9]{1,3})?(ms|s|m|h|d|w) ?)+$' },
  ],
}
export const name = { type: 'string', pattern: '^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$' }
const key = { type: 'string', minLength: 1, maxLength: 512 }
const instant = { type: 'string', format: 'date-time' }
const version = { type: 'string', maxLength: 128 }
const STATUSES = [
  'queued',
  'running',
  'waiting',
  'completed',
  'failed',
  'cancelled',
  'terminated',
  'continued',
  'stuck',
]

/** What a start may say beside the input; a schedule's runs take the same but the id. */
export const runOptions = {
  queue: name,
  priority: { type: 'integer', minimum: -32768, maximum: 32767, description: 'lower is sooner' },
  concurrencyKey: { ...key, description: 'runs with the same key share the limit of their queue' },
  timeout: { ...duration, description: `of the whole run, waiting included: ${duration.description}` },
  attributes: {
    type: 'object',
    maxProperties: 64,
    propertyNames: { maxLength: 128 },
    additionalProperties: {
      oneOf: [{ type: 'string', maxLength: 1024 }, { type: 'number' }, { type: 'boolean' }],
    },
    description: 'to filter runs by',
  },
}

export const startBody = {
  type: 'object',
  properties: {
    input: { description: 'what the workflow is given: any JSON' },
    id: { ...key, description: 'makes the start idempotent' },
    onConflict: { enum: ['use', 'fail', 'terminate'], description: 'where a run of this id is open (default use)' },
    reuse: {
      enum: ['use', 'again', 'again-if-failed', 'fail'],
      description: 'where the last run of this id has ended (default use)',
    },
    version: { ...version, description: 'of the code; default: the newest' },
    delay: { ...duration, description: `before it begins: ${duration.description}` },
    ...runOptions,
  },
  additionalProperties: false,
}
export type StartBody = {
  input?: unknown
  id?: string
  onConflict?: 'use' | 'fail' | 'terminate'
  reuse?: 'use' | 'again' | 'again-if-failed' | 'fail'
  version?: string
  delay?: number | string
  queue?: string
  priority?: number
  concurrencyKey?: string
  timeout?: number | string
  attributes?: Record<string, unknown>
}

export const listParameters: Parameters = {
  name: { description: 'only this workflow', schema: name },
  status: {
    description: `one or more of ${STATUSES.join(', ')}, separated by commas`,
    schema: { type: 'string', pattern: `^(${STATUSES.join('|')})(,(${STATUSES.join('|')}))*$` },
  },
  id: { description: 'started under this id; an event starts `<workflow>:<key>`', schema: key },
  key: { description: 'with this concurrency key', schema: key },
  queue: { description: 'in this queue', schema: name },
  from: { description: 'created at this time or later', schema: instantSchema },
  to: { description: 'created before this time', schema: instantSchema },
  attributes: {
    description: 'with all these attributes, such as tenant:acme,attempt:2',
    schema: {
      type: 'string',
      maxLength: 512,
      pattern: '^[^:,\\u0000]{1,128}:[^,\\u0000]*(,[^:,\\u0000]{1,128}:[^,\\u0000]*)*$',
    },
  },
  limit: { description: 'runs per page', schema: { type: 'integer', minimum: 1, maximum: 1_000, default: 100 } },
  cursor: { description: '`next` of the page before', schema: { type: 'string', format: 'uuid' } },
}
export type ListQuery = {
  name?: string
  status?: string
  id?: string
  key?: string
  queue?: string
  from?: string
  to?: string
  attributes?: string
  limit: number
  cursor?: string
}

export const historyParameters: Parameters = {
  after: { description: '`next` of the page before', schema: { type: 'integer', minimum: -2, default: -2 } },
  limit: { description: 'lines per page', schema: { type: 'integer', minimum: 1, maximum: 1_000, default: 1_000 } },
}
export const resultParameters: Parameters = {
  wait: {
    description: 'seconds to wait for the end',
    schema: { type: 'number', minimum: 0, maximum: 60, default: 0 },
  },
}
export const nameParameters: Parameters = { name: { description: 'the workflow', schema: name } }
export const idParameters: Parameters = {
  id: { description: 'the run’s own id, or the id it was started under, percent-encoded', schema: key },
}
export const signalParameters: Parameters = {
  ...idParameters,
  signal: { description: 'the signal', schema: { type: 'string', minLength: 1, maxLength: 256 } },
}

export const restartBody = {
  type: 'object',
  properties: {
    from: {
      description: 'the first step to run again: its name, its position in the history, or `failure` (default 0: all)',
      oneOf: [
        { type: 'integer', minimum: 0, maximum: 2_147_483_647 },
        { type: 'string', minLength: 1, maxLength: 512 },
      ],
    },
    version: { ...version, description: 'of the code; default: the old run’s' },
  },
  additionalProperties: false,
}
export type RestartBody = { from?: number | string; version?: string }

export const replayBody = {
  type: 'object',
  properties: {
    name,
    from: instantSchema,
    to: instantSchema,
    attributes: runOptions.attributes,
    step: { ...restartBody.properties.from, description: 'as `from` of restart (default `failure`)' },
    version: restartBody.properties.version,
    limit: { type: 'integer', minimum: 1, maximum: 1_000, description: 'runs at once (default 100)' },
    dryRun: { type: 'boolean', description: 'only say which' },
  },
  additionalProperties: false,
}
export type ReplayBody = {
  name?: string
  from?: string
  to?: string
  attributes?: Record<string, unknown>
  step?: number | string
  version?: string
  limit?: number
  dryRun?: boolean
}

export const problem = { $ref: '#/components/schemas/Error' }
const nullable = (schema: { type: string; format?: string }) => ({ ...schema, type: [schema.type, 'null'] })
const text = { type: 'string' }
const errorOfRun = {
  type: ['object', 'null'],
  required: ['name', 'message'],
  properties: { name: text, message: text, code: text, stack: text, details: {} },
}
const summary = {
  type: 'object',
  required: ['runId', 'id', 'name', 'version', 'status', 'createdAt', 'finishedAt', 'error'],
  properties: {
    runId: { type: 'string', format: 'uuid' },
    id: nullable(text),
    name: text,
    version: text,
    queue: text,
    priority: { type: 'integer' },
    concurrencyKey: nullable(text),
    status: { enum: STATUSES },
    attributes: { type: ['object', 'null'] },
    traceId: nullable(text),
    parentId: nullable({ type: 'string', format: 'uuid' }),
    createdAt: instant,
    dueAt: nullable(instant),
    deadlineAt: nullable(instant),
    cancelRequestedAt: nullable(instant),
    finishedAt: nullable(instant),
    error: errorOfRun,
  },
}
const detail = {
  ...summary,
  properties: {
    ...summary.properties,
    input: {},
    output: {},
    state: {},
    generation: { type: 'integer' },
    epoch: { type: 'integer' },
    steps: { type: 'integer' },
  },
}
const line = {
  type: 'object',
  required: ['pos', 'ord', 'kind', 'name', 'attempt', 'at'],
  properties: {
    pos: { type: 'integer' },
    ord: { type: ['integer', 'null'] },
    kind: { enum: ['step', 'sleep', 'event', 'signal', 'child', 'patch', 'cancel'] },
    name: text,
    output: {},
    error: errorOfRun,
    attempt: { type: 'integer' },
    dueAt: nullable(instant),
    at: instant,
    ms: { type: ['number', 'null'] },
  },
}
const started = {
  type: 'object',
  required: ['runId', 'id'],
  properties: { runId: { type: 'string', format: 'uuid' }, id: text },
}
const result = {
  type: 'object',
  required: ['runId', 'status'],
  properties: { runId: { type: 'string', format: 'uuid' }, status: text, output: {}, error: errorOfRun },
}
const list = (of: string, item: object) => ({
  type: 'object',
  required: [of],
  properties: { [of]: { type: 'array', items: item }, next: { type: ['string', 'integer', 'null'] } },
})

type Response = [description: string, schema: object]
const refusals: Record<400 | 404 | 413 | 503, Response> = {
  400: ['the request is wrong', problem],
  404: ['there is none', problem],
  413: ['the body is too large', problem],
  503: ['a dependency is away', problem],
}
const changes = { ...refusals, 409: ['its state does not allow this', problem] as Response }
const done = { type: 'object', required: ['runId'], properties: { runId: { type: 'string', format: 'uuid' } } }
const onRun = describeParameters('path', idParameters)

export const runPaths = {
  '/v1/workflows': {
    get: {
      summary: 'Lists the workflows that workers have loaded, the newest version of each first',
      responses: describeResponses({
        200: [
          'the workflows',
          list('workflows', {
            type: 'object',
            required: ['name', 'version'],
            properties: { name: text, version: text },
          }),
        ],
      }),
    },
  },
  '/v1/workflows/{name}/runs': {
    parameters: describeParameters('path', nameParameters),
    post: {
      summary: 'Starts a run; answers when it is durable',
      requestBody: describeBody(startBody, false),
      responses: describeResponses({ 201: ['started, or the run that has its id', started], ...changes }),
    },
  },
  '/v1/runs': {
    get: {
      summary: 'Lists runs, newest first',
      parameters: describeParameters('query', listParameters),
      responses: describeResponses({ 200: ['a page', list('runs', summary)], 400: refusals[400], 503: refusals[503] }),
    },
  },
  '/v1/dead-runs/replay': {
    post: {
      summary: 'Runs dead runs (failed, or stuck) again, each from the step that failed',
      requestBody: describeBody(replayBody, false),
      responses: describeResponses({
        200: [
          'what became of each',
          list('runs', { type: 'object', required: ['runId', 'outcome'], properties: { runId: text, outcome: text } }),
        ],
        ...refusals,
      }),
    },
  },
  '/v1/runs/{id}': {
    parameters: onRun,
    get: {
      summary: 'One run, with its input, output and state',
      responses: describeResponses({ 200: ['the run', detail], ...refusals }),
    },
  },
  '/v1/runs/{id}/history': {
    parameters: onRun,
    get: {
      summary: 'The journal of a run, in the order of its calls',
      parameters: describeParameters('query', historyParameters),
      responses: describeResponses({ 200: ['a page', list('lines', line)], ...refusals }),
    },
  },
  '/v1/runs/{id}/state': {
    parameters: onRun,
    get: {
      summary: 'What the run shows of itself (run.setState)',
      responses: describeResponses({
        200: ['the state', { type: 'object', required: ['runId', 'status'], properties: { state: {} } }],
        ...refusals,
      }),
    },
  },
  '/v1/runs/{id}/result': {
    parameters: onRun,
    get: {
      summary: 'The result of a run, waiting for it if asked to',
      parameters: describeParameters('query', resultParameters),
      responses: describeResponses({ 200: ['it has ended', result], 202: ['it has not', result], ...refusals }),
    },
  },
  '/v1/runs/{id}/signals/{signal}': {
    parameters: describeParameters('path', signalParameters),
    post: {
      summary: 'Sends a signal; the body is its payload',
      requestBody: describeBody({}, false),
      responses: describeResponses({ 202: ['kept until the run takes it', done], ...changes }),
    },
  },
  '/v1/runs/{id}/cancel': {
    parameters: onRun,
    post: {
      summary: 'Asks a run to end: its cleanup and compensations run',
      responses: describeResponses({ 202: ['it knows, or will', done], ...changes }),
    },
  },
  '/v1/runs/{id}/terminate': {
    parameters: onRun,
    post: {
      summary: 'Ends a run at once, and its open children, without cleanup',
      responses: describeResponses({ 200: ['it has ended', done], ...changes }),
    },
  },
  '/v1/runs/{id}/resume': {
    parameters: onRun,
    post: {
      summary: 'Lets a stuck run go on with the code that is loaded now',
      responses: describeResponses({ 202: ['it goes on', done], ...changes }),
    },
  },
  '/v1/runs/{id}/restart': {
    parameters: onRun,
    post: {
      summary: 'Runs an ended run again from a step, as a new run under the same id; the old one stays as it is',
      requestBody: describeBody(restartBody, false),
      responses: describeResponses({ 201: ['the new run', started], ...changes }),
    },
  },
}
