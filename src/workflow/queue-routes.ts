/** `/v1/queues`: the limits of workflow queues. */

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
import { duration, problem, runOptions } from './api.openapi.ts'
import type { Engine } from './engine.ts'
import { listLimits, type QueueLimits, removeLimits, setLimits } from './limits.ts'
import { VALUE_LIMIT } from './values.ts'

const count = { type: 'integer', minimum: 1, maximum: 1_000_000 }
const limitsBody = {
  type: 'object',
  minProperties: 1,
  properties: {
    concurrency: { ...count, description: 'runs begun and not ended in the whole queue' },
    perKey: { ...count, description: 'the same, of one concurrency key' },
    rate: {
      type: 'object',
      required: ['runs', 'per'],
      properties: { runs: count, per: duration },
      additionalProperties: false,
      description: 'so many runs begin in each `per` on average, and at once at most',
    },
  },
  additionalProperties: false,
}
const queueParameters = { queue: { description: 'the queue', schema: runOptions.queue } }

export function queueRoutes({ control: { pool } }: Pick<Engine, 'control'>, config: Config): Routes {
  const router = new Router<RequestState>()
  const readBody = jsonBodies(config, VALUE_LIMIT)
  const readQueue = parameterReader<{ queue: string }>(queueParameters)
  const readLimits = bodyReader<QueueLimits>(limitsBody)

  router.get('/v1/queues', async (ctx) => {
    ctx.body = { queues: await listLimits(pool) }
  })
  router.put('/v1/queues/:queue', async (ctx) => {
    const { queue } = readQueue(ctx.params)
    const limits = readLimits(await readBody(ctx))
    await setLimits(pool, queue, limits, ctx.state.caller)
    ctx.body = { queue, limits }
  })
  router.delete('/v1/queues/:queue', async (ctx) => {
    await removeLimits(pool, readQueue(ctx.params).queue, ctx.state.caller)
    ctx.status = 204
  })
  return { router, paths }
}

const limited = {
  type: 'object',
  required: ['queue', 'limits'],
  properties: {
    queue: { type: 'string' },
    limits: limitsBody,
    holding: { type: 'integer', description: 'runs that count against the limits now' },
    queued: { type: 'integer', description: 'runs that wait for their turn; 10,001 stands for more' },
  },
}
const wrong: [string, object] = ['the request is wrong', problem]

const paths = {
  '/v1/queues': {
    get: {
      summary: 'Lists the queues that have limits',
      responses: describeResponses({
        200: [
          'the queues',
          { type: 'object', required: ['queues'], properties: { queues: { type: 'array', items: limited } } },
        ],
      }),
    },
  },
  '/v1/queues/{queue}': {
    parameters: describeParameters('path', queueParameters),
    put: {
      summary: 'Limits a queue from the next claim on; runs that are already begun go on',
      requestBody: describeBody(limitsBody),
      responses: describeResponses({
        200: ['the limits', limited],
        400: wrong,
        413: ['the body is too large', problem],
        503: ['a dependency is away', problem],
      }),
    },
    delete: {
      summary: 'Removes the limits of a queue',
      responses: {
        204: { description: 'done' },
        ...describeResponses({ 400: wrong, 404: ['it has none', problem], 503: ['a dependency is away', problem] }),
      },
    },
  },
}
