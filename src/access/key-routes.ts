/** `/v1/keys`: what `millrace keys` does, over HTTP. A key of the operators' tenant reaches the keys of all tenants. */

import { Router } from '@koa/router'
import type { Broker } from '../broker/connect.ts'
import type { Config } from '../config.ts'
import type { Database } from '../db/connect.ts'
import { type Duration, milliseconds } from '../durations.ts'
import { type RequestState, SCOPES, type Scope } from '../http/caller.ts'
import { jsonBodies } from '../http/json-body.ts'
import {
  bodyReader,
  describeBody,
  describeParameters,
  describeResponses,
  parameterReader,
  type Routes,
} from '../http/routes.ts'
import { createKey, listKeys, revokeKey, rotateKey } from './keys.ts'
import { tenantMeant } from './reach.ts'

const BODY_LIMIT = { bytesMax: 64 * 1024, limit: 'KEY_BODY_BYTES_MAX' }

const duration = {
  oneOf: [
    { type: 'number', minimum: 0, maximum: 1e13 },
    { type: 'string', maxLength: 50, pattern: '^([0-9]{1,6}(ms|s|m|h|d|w))+$' },
  ],
}
const tenant = { type: 'string', pattern: '^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$' }
const count = { type: 'integer', minimum: 1, maximum: 1_000_000_000 }
const PLAIN = '^[^\\u0000-\\u001f\\u007f]+$'
const createBody = {
  type: 'object',
  required: ['name', 'scopes'],
  properties: {
    name: { type: 'string', minLength: 1, maxLength: 128, pattern: PLAIN, description: 'who uses it' },
    scopes: { type: 'array', minItems: 1, uniqueItems: true, maxItems: SCOPES.length, items: { enum: SCOPES } },
    tenant: { ...tenant, description: 'default: yours; another only for the operators' },
    sources: {
      type: 'array',
      minItems: 1,
      maxItems: 100,
      items: { type: 'string', minLength: 1, maxLength: 1024, pattern: PLAIN },
      description: 'of which it may send events: as they are, or their beginning and *; default: all',
    },
    rate: {
      type: 'object',
      required: ['events'],
      properties: {
        events: { ...count, description: 'per second on average, in each API process' },
        burst: { ...count, description: 'events at once; default: those of one second' },
      },
      additionalProperties: false,
      description: 'default: no limit',
    },
    expires: { ...duration, description: "from now: milliseconds, or text such as '90d'; default: never" },
  },
  additionalProperties: false,
}
type CreateBody = {
  name: string
  scopes: Scope[]
  tenant?: string
  sources?: string[]
  rate?: { events: number; burst?: number }
  expires?: Duration
}
const rotateBody = {
  type: 'object',
  properties: {
    overlap: { ...duration, description: "how long the old key goes on, such as '24h'; default: not at all" },
  },
  additionalProperties: false,
}
const listParameters = {
  tenant: { description: 'only of this tenant', schema: tenant },
  ended: { description: 'also revoked and expired ones', schema: { type: 'boolean', default: false } },
}
const idParameters = {
  id: { description: 'the key: its id or prefix', schema: { type: 'string', maxLength: 64, pattern: PLAIN } },
}

export function keyRoutes(deps: { db: Database; broker: Broker }, config: Config): Routes {
  const router = new Router<RequestState>()
  const readBody = jsonBodies(config, BODY_LIMIT)
  const readList = parameterReader<{ tenant?: string; ended: boolean }>(listParameters)
  const readId = parameterReader<{ id: string }>(idParameters)
  const readCreate = bodyReader<CreateBody>(createBody)
  const readRotate = bodyReader<{ overlap?: Duration }>(rotateBody)

  router.get('/v1/keys', async (ctx) => {
    const { tenant, ended } = readList(ctx.query)
    ctx.body = { keys: await listKeys(deps, { tenant: tenantMeant(ctx.state.caller, tenant), ended }) }
  })

  router.post('/v1/keys', async (ctx) => {
    const { caller } = ctx.state
    const { expires, tenant = caller.tenant, ...spec } = readCreate(await readBody(ctx))
    tenantMeant(caller, tenant)
    const expiresMs = expires === undefined ? undefined : milliseconds(expires)
    ctx.status = 201
    ctx.body = await createKey(deps, caller, { ...spec, tenant, expiresMs })
  })

  router.post('/v1/keys/:id/rotate', async (ctx) => {
    const { overlap = 0 } = readRotate(await readBody(ctx, {}))
    const which = { which: readId(ctx.params).id, tenant: tenantMeant(ctx.state.caller) }
    ctx.status = 201
    ctx.body = await rotateKey(deps, ctx.state.caller, { ...which, overlapMs: milliseconds(overlap) })
  })

  router.delete('/v1/keys/:id', async (ctx) => {
    ctx.body = await revokeKey(deps, ctx.state.caller, {
      which: readId(ctx.params).id,
      tenant: tenantMeant(ctx.state.caller),
    })
  })

  return { router, paths }
}

const nullable = (type: string) => ({ type: [type, 'null'] })
const summary = {
  type: 'object',
  required: ['id', 'prefix', 'tenant', 'name', 'scopes'],
  properties: {
    id: { type: 'string', format: 'uuid' },
    prefix: { type: 'string', description: 'the part of the key that may be seen' },
    tenant: { type: 'string' },
    name: { type: 'string' },
    scopes: createBody.properties.scopes,
    sources: { type: ['array', 'null'], items: { type: 'string' } },
    rate: { type: ['object', 'null'], properties: createBody.properties.rate.properties },
    createdAt: { type: 'string', format: 'date-time' },
    expiresAt: { ...nullable('string'), format: 'date-time' },
    revokedAt: { ...nullable('string'), format: 'date-time' },
    rotatedFrom: { ...nullable('string'), format: 'uuid' },
  },
}
const made = {
  ...summary,
  required: [...summary.required, 'token'],
  properties: {
    ...summary.properties,
    token: { type: 'string', description: 'the key itself; nothing can tell it again' },
  },
}
const problem = { $ref: '#/components/schemas/Error' }
const wrong: [string, object] = ['the request is wrong', problem]
const away: [string, object] = ['Postgres is away', problem]
const missing: [string, object] = ['there is no such key, or it has ended', problem]
const large: [string, object] = ['the body is too large', problem]

const paths = {
  '/v1/keys': {
    get: {
      summary: 'Lists API keys, without their secrets',
      parameters: describeParameters('query', listParameters),
      responses: describeResponses({
        200: [
          'the keys',
          { type: 'object', required: ['keys'], properties: { keys: { type: 'array', items: summary } } },
        ],
        400: wrong,
        503: away,
      }),
    },
    post: {
      summary: 'Makes an API key; it works at once in all processes that hear NATS, after two seconds in the others',
      requestBody: describeBody(createBody),
      responses: describeResponses({ 201: ['the key', made], 400: wrong, 413: large, 503: away }),
    },
  },
  '/v1/keys/{id}/rotate': {
    parameters: describeParameters('path', idParameters),
    post: {
      summary: 'Makes a key that may do the same; the old one ends after the overlap',
      requestBody: describeBody(rotateBody, false),
      responses: describeResponses({ 201: ['the new key', made], 400: wrong, 404: missing, 413: large, 503: away }),
    },
  },
  '/v1/keys/{id}': {
    parameters: describeParameters('path', idParameters),
    delete: {
      summary: 'Revokes a key',
      responses: describeResponses({ 200: ['the key as it was', summary], 400: wrong, 404: missing, 503: away }),
    },
  },
}
