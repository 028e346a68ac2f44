/** `/v1/schemas`: what data the events of a type may have. */

import { Router } from '@koa/router'
import { sql } from 'drizzle-orm'
import type { Context } from 'koa'
import type { Config } from '../config.ts'
import type { Database } from '../db/connect.ts'
import { MillraceError } from '../errors.ts'
import { createBodyMemory, readWhole } from '../http/body.ts'
import type { RequestState } from '../http/caller.ts'
import { describeParameters, describeResponses, parameterReader, type Routes } from '../http/routes.ts'
import { SCHEMA_BYTES_MAX } from './compile-schema.ts'
import { decodeText, type Json, parseJson } from './json.ts'
import type { Mode, SchemaRegistry } from './schemas.ts'
import { eventSchema } from './validate.ts'

const typeParameter = {
  type: { description: 'the events’ type', schema: eventSchema.properties.type },
}
const versionParameters = {
  ...typeParameter,
  version: { description: 'from 1 up', schema: { type: 'integer', minimum: 1, maximum: 999_999_999 } },
}
const modeSchema = {
  type: 'object',
  required: ['mode'],
  properties: { mode: { enum: ['strict', 'warn', 'off'] } },
  additionalProperties: false,
} as const

const problem = { $ref: '#/components/schemas/Error' }
const noContent = { 204: { description: 'done' } }

export function schemaRoutes({ db, schemas }: { db: Database; schemas: SchemaRegistry }, config: Config): Routes {
  const router = new Router<RequestState>()
  const memory = createBodyMemory(config)
  const readType = parameterReader<{ type: string }>(typeParameter)
  const readVersion = parameterReader<{ type: string; version: number }>(versionParameters)
  const readMode = parameterReader<{ mode: Mode }>({
    mode: { description: '', schema: modeSchema.properties.mode, required: true },
  })

  async function readBody(ctx: Context): Promise<Json> {
    const limits = { bytesMax: SCHEMA_BYTES_MAX, limit: 'SCHEMA_BYTES_MAX', memory }
    const body = await readWhole(ctx.req, limits, config)
    memory.give(body.length)
    return parseJson(decodeText(body))
  }

  router.get('/v1/schemas', async (ctx) => {
    const { rows } = await db.execute(sql`
      select type, coalesce(mode, 'strict') as mode, array_agg(version order by version) as versions
      from event_schemas left join event_schema_modes using (type, tenant)
      where tenant = ${ctx.state.caller.tenant} group by type, mode order by type`)
    ctx.body = { schemas: rows }
  })

  router.get('/v1/schemas/:type', async (ctx) => {
    const { type } = readType(ctx.params)
    const { tenant } = ctx.state.caller
    const { rows } = await db.execute(sql`
      select coalesce((select mode from event_schema_modes where type = ${type} and tenant = ${tenant}), 'strict') as mode,
             array_agg(version order by version) as versions
      from event_schemas where type = ${type} and tenant = ${tenant} having count(*) > 0`)
    if (rows.length === 0) throw new MillraceError('not_found', `No schema is stored for ${type}`)
    ctx.body = { type, ...rows[0] }
  })

  router.put('/v1/schemas/:type', async (ctx) => {
    const { type } = readType(ctx.params)
    const { value } = await readBody(ctx)
    if (typeof value !== 'object' || value === null || Array.isArray(value))
      throw new MillraceError('invalid_request', 'Send {"mode":"strict"}, "warn" or "off"')
    await schemas.setMode(ctx.state.caller, type, readMode(value).mode)
    ctx.status = 204
  })

  router.get('/v1/schemas/:type/:version', async (ctx) => {
    const { type, version } = readVersion(ctx.params)
    const { rows } = await db.execute<{ schema: string }>(sql`
      select schema::text from event_schemas
      where tenant = ${ctx.state.caller.tenant} and type = ${type} and version = ${version}`)
    if (rows[0] === undefined) throw new MillraceError('not_found', `No version ${version} is stored for ${type}`)
    ctx.type = 'application/schema+json'
    ctx.body = rows[0].schema
  })

  router.put('/v1/schemas/:type/:version', async (ctx) => {
    const { type, version } = readVersion(ctx.params)
    const created = await schemas.put(ctx.state.caller, type, version, await readBody(ctx))
    ctx.status = created ? 201 : 200
    ctx.body = { type, version, created }
  })

  router.delete('/v1/schemas/:type/:version', async (ctx) => {
    const { type, version } = readVersion(ctx.params)
    if (!(await schemas.remove(ctx.state.caller, type, version)))
      throw new MillraceError('not_found', `No version ${version} is stored for ${type}`)
    ctx.status = 204
  })

  return { router, paths }
}

const typeSchemas = {
  type: 'object',
  required: ['type', 'mode', 'versions'],
  properties: {
    type: { type: 'string' },
    mode: modeSchema.properties.mode,
    versions: { type: 'array', items: { type: 'integer' } },
  },
}
const stored = {
  type: 'object',
  required: ['type', 'version', 'created'],
  properties: { type: { type: 'string' }, version: { type: 'integer' }, created: { type: 'boolean' } },
}
const jsonBody = (schema: object) => ({ required: true, content: { 'application/json': { schema } } })
const badRequest = {
  ...describeResponses({ 400: ['the request is wrong', problem], 413: ['the body is too large', problem] }),
}

const paths = {
  '/v1/schemas': {
    get: {
      summary: 'Lists the types that have schemas',
      responses: describeResponses({
        200: [
          'the types',
          { type: 'object', required: ['schemas'], properties: { schemas: { type: 'array', items: typeSchemas } } },
        ],
      }),
    },
  },
  '/v1/schemas/{type}': {
    parameters: describeParameters('path', typeParameter),
    get: {
      summary: 'Says which versions a type has, and its mode',
      responses: describeResponses({
        200: ['the type', typeSchemas],
        400: ['bad type', problem],
        404: ['no schema', problem],
      }),
    },
    put: {
      summary: 'Sets what happens to events that the schema refuses: strict rejects, warn accepts with a warning',
      requestBody: jsonBody(modeSchema),
      responses: { ...noContent, ...badRequest },
    },
  },
  '/v1/schemas/{type}/{version}': {
    parameters: describeParameters('path', versionParameters),
    get: {
      summary: 'The JSON Schema itself',
      responses: {
        200: { description: 'the schema', content: { 'application/schema+json': { schema: { type: 'object' } } } },
        ...describeResponses({ 400: ['bad type or version', problem], 404: ['no such version', problem] }),
      },
    },
    put: {
      summary: 'Stores a JSON Schema for the data of a type; it applies at once in all API processes',
      requestBody: jsonBody({ type: 'object', description: 'JSON Schema, draft 2020-12 or draft-07' }),
      responses: { ...describeResponses({ 200: ['replaced', stored], 201: ['created', stored] }), ...badRequest },
    },
    delete: {
      summary: 'Removes a version',
      responses: {
        ...noContent,
        ...describeResponses({ 400: ['bad type or version', problem], 404: ['no such version', problem] }),
      },
    },
  },
}
