/** `/v1/schedules`: runs at set times. */

import { Router } from '@koa/router'
import type { Config } from '../config.ts'
import type { RequestState } from '../http/caller.ts'
import { jsonBodies } from '../http/json-body.ts'
import {
  bodyReader,
  describeBody,
  describeParameters,
  describeResponses,
  parameterReader,
  type Routes,
} from '../http/routes.ts'
import { duration, name, problem, runOptions } from './api.openapi.ts'
import { refuseUnstorable } from './api.ts'
import { actingFor, type Engine } from './engine.ts'
import {
  backfillSchedule,
  getSchedule,
  listSchedules,
  pauseSchedule,
  removeSchedule,
  type ScheduleSpec,
  setSchedule,
  triggerSchedule,
} from './schedules.ts'
import { VALUE_LIMIT } from './values.ts'

const specBody = {
  type: 'object',
  required: ['workflow'],
  oneOf: [{ required: ['cron'] }, { required: ['every'] }],
  properties: {
    workflow: name,
    version: { type: 'string', maxLength: 128, description: 'of the code; default: the newest at each start' },
    input: { description: 'what each run is given' },
    options: { type: 'object', properties: runOptions, additionalProperties: false },
    cron: { type: 'string', maxLength: 500, description: 'five fields, or an RFC 5545 rule' },
    every: {
      description: 'instead of cron: milliseconds, 1,000 at least, or text such as 15m',
      oneOf: [
        { type: 'number', minimum: 1_000, maximum: 1e13 },
        { type: 'string', maxLength: 50, pattern: '^([1-9][0-9]{0,5}(s|m|h|d|w))+$' },
      ],
    },
    timezone: { type: 'string', maxLength: 64, description: 'of the cron expression, such as Europe/Berlin' },
    overlap: { enum: ['skip', 'buffer', 'allow', 'cancel', 'terminate'] },
    catchUp: { ...duration, description: 'how late a time may still start its run' },
  },
  additionalProperties: false,
}
const instant = { type: 'string', format: 'date-time' }
const backfillBody = {
  type: 'object',
  required: ['from', 'to'],
  properties: { from: instant, to: instant },
  additionalProperties: false,
}
const nameParameters = { name: { description: 'the schedule', schema: name } }

export function scheduleRoutes(engine: Engine, config: Config): Routes {
  const router = new Router<RequestState>()
  const readBody = jsonBodies(config, VALUE_LIMIT)
  const readName = parameterReader<{ name: string }>(nameParameters)
  const readSpec = bodyReader<ScheduleSpec>(specBody)
  const readBackfill = bodyReader<{ from: string; to: string }>(backfillBody)

  router.get('/v1/schedules', async (ctx) => {
    ctx.body = { schedules: await listSchedules(actingFor(engine, ctx.state.caller)) }
  })
  router.get('/v1/schedules/:name', async (ctx) => {
    ctx.body = await getSchedule(actingFor(engine, ctx.state.caller), readName(ctx.params).name)
  })
  router.put('/v1/schedules/:name', async (ctx) => {
    const spec = readSpec(await readBody(ctx))
    refuseUnstorable(spec.options?.attributes)
    ctx.body = await setSchedule(actingFor(engine, ctx.state.caller), readName(ctx.params).name, spec)
  })
  router.delete('/v1/schedules/:name', async (ctx) => {
    await removeSchedule(actingFor(engine, ctx.state.caller), readName(ctx.params).name)
    ctx.status = 204
  })
  router.post('/v1/schedules/:name/pause', async (ctx) => {
    ctx.body = await pauseSchedule(actingFor(engine, ctx.state.caller), readName(ctx.params).name, true)
  })
  router.post('/v1/schedules/:name/resume', async (ctx) => {
    ctx.body = await pauseSchedule(actingFor(engine, ctx.state.caller), readName(ctx.params).name, false)
  })
  router.post('/v1/schedules/:name/trigger', async (ctx) => {
    ctx.body = { runId: await triggerSchedule(actingFor(engine, ctx.state.caller), readName(ctx.params).name) }
  })
  router.post('/v1/schedules/:name/backfill', async (ctx) => {
    const { from, to } = readBackfill(await readBody(ctx))
    const runs = await backfillSchedule(
      actingFor(engine, ctx.state.caller),
      readName(ctx.params).name,
      new Date(from),
      new Date(to),
    )
    ctx.body = { runs }
  })
  return { router, paths }
}

const nullableInstant = { ...instant, type: ['string', 'null'] }
const schedule = {
  type: 'object',
  required: ['name', 'workflow', 'overlap', 'paused', 'nextAt'],
  properties: {
    name: { type: 'string' },
    workflow: { type: 'string' },
    version: { type: ['string', 'null'] },
    input: {},
    options: { type: 'object' },
    cron: { type: ['string', 'null'] },
    everyMs: { type: ['number', 'null'] },
    timezone: { type: 'string' },
    overlap: specBody.properties.overlap,
    catchUpMs: { type: 'number' },
    paused: { type: 'boolean' },
    nextAt: instant,
    bufferedAt: nullableInstant,
    lastAt: nullableInstant,
    lastRunId: { type: ['string', 'null'] },
    started: { type: 'integer' },
    skipped: { type: 'integer' },
  },
}
const refusals: Record<400 | 404 | 413 | 503, [string, object]> = {
  400: ['the request is wrong', problem],
  404: ['there is no such schedule or workflow', problem],
  413: ['the body is too large', problem],
  503: ['a dependency is away', problem],
}
const answers = (schema: object) => describeResponses({ 200: ['done', schema], ...refusals })
const act = (summary: string, schema: object = schedule) => ({
  parameters: describeParameters('path', nameParameters),
  post: { summary, responses: answers(schema) },
})
const run = { type: 'object', required: ['runId'], properties: { runId: { type: 'string', format: 'uuid' } } }
const listOf = (of: string, items: object) => ({
  type: 'object',
  required: [of],
  properties: { [of]: { type: 'array', items } },
})

const paths = {
  '/v1/schedules': {
    get: { summary: 'Lists schedules', responses: describeResponses({ 200: ['all', listOf('schedules', schedule)] }) },
  },
  '/v1/schedules/{name}': {
    parameters: describeParameters('path', nameParameters),
    get: { summary: 'One schedule', responses: answers(schedule) },
    put: {
      summary: 'Creates or changes a schedule; its phase stays unless its times change',
      requestBody: describeBody(specBody),
      responses: answers(schedule),
    },
    delete: {
      summary: 'Removes a schedule; its runs go on',
      responses: { 204: { description: 'done' }, ...describeResponses(refusals) },
    },
  },
  '/v1/schedules/{name}/pause': act('Times that pass while it is paused start nothing'),
  '/v1/schedules/{name}/resume': act('Goes on with the next time'),
  '/v1/schedules/{name}/trigger': act('Starts a run now, whatever runs', run),
  '/v1/schedules/{name}/backfill': {
    parameters: describeParameters('path', nameParameters),
    post: {
      summary: 'Starts the runs of past times (1,000 at most); those that had their run are left out',
      requestBody: describeBody(backfillBody),
      responses: answers(listOf('runs', run)),
    },
  },
}
