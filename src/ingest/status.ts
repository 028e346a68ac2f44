/** What an operator asks a process: is it ready, how do the workers fare, how long do events take. */

import { Router } from '@koa/router'
import type { RequestState } from '../http/caller.ts'
import { describeParameters, describeResponses, parameterReader, type Routes } from '../http/routes.ts'
import { watchWorkers } from '../telemetry/workers.ts'
import { latencyStats } from './latency.ts'
import { checkReadiness, type ReadinessDeps } from './readiness.ts'
import { eventSchema } from './validate.ts'

const HOUR_MS = 3_600_000

/** `/healthz` and `/readyz`, for API and worker processes alike. */
export function probeRoutes(deps: ReadinessDeps, role: 'api' | 'worker'): Routes {
  const router = new Router<RequestState>()
  router.get('/healthz', (ctx) => {
    ctx.body = { status: 'ok' }
  })
  router.get('/readyz', async (ctx) => {
    const readiness = await checkReadiness(deps, role === 'api' ? ['jetstream'] : ['jetstream', 'postgres', 'workers'])
    ctx.status = readiness.ready ? 200 : 503
    ctx.body = readiness
  })
  return { router, paths: probePaths }
}

/** `/metrics`: the metrics of this process in the Prometheus text format. */
export function metricsRoutes({ telemetry: { metrics } }: Pick<ReadinessDeps, 'telemetry'>): Routes {
  const router = new Router<RequestState>()
  router.get('/metrics', async (ctx) => {
    ctx.type = 'text/plain; version=0.0.4; charset=utf-8'
    ctx.body = await metrics.render()
  })
  return { router, paths: metricsPaths }
}

/** `/v1/workers`: every pull worker of every process. `/v1/stats/latency?from&to&type`: by SQL, over every row. */
export function statusRoutes(deps: ReadinessDeps): Routes {
  const workers = watchWorkers(deps)
  const router = new Router<RequestState>()
  const readQuery = parameterReader<{ from?: string; to?: string; type?: string }>(latencyParameters)
  router.get('/v1/workers', (ctx) => {
    ctx.body = { processes: workers() }
  })
  router.get('/v1/stats/latency', async (ctx) => {
    const query = readQuery(ctx.query)
    const to = query.to === undefined ? new Date() : new Date(query.to)
    const from = query.from === undefined ? new Date(to.getTime() - HOUR_MS) : new Date(query.from)
    const type = query.type ?? null
    ctx.body = {
      from,
      to,
      type,
      unit: 'ms',
      ...(await latencyStats(deps, { tenant: ctx.state.caller.tenant, from, to, type })),
    }
  })
  return { router, paths: statusPaths }
}

const readinessSchema = {
  type: 'object',
  required: ['ready', 'checks'],
  properties: {
    ready: { type: 'boolean' },
    checks: {
      type: 'object',
      required: ['jetstream', 'postgres', 'workers'],
      additionalProperties: { type: 'string', description: '`ok`, or what is wrong' },
    },
  },
}

const probePaths = {
  '/healthz': {
    get: {
      summary: 'Whether the process runs',
      responses: describeResponses({
        200: ['it runs', { type: 'object', required: ['status'], properties: { status: { const: 'ok' } } }],
      }),
    },
  },
  '/readyz': {
    get: {
      summary: 'Whether the process can do its work, dependency by dependency; an API needs JetStream alone',
      responses: describeResponses({ 200: ['ready', readinessSchema], 503: ['not ready', readinessSchema] }),
    },
  },
}

const metricsPaths = {
  '/metrics': {
    get: {
      summary: 'The metrics of this process in the Prometheus text format',
      responses: { 200: { description: 'the metrics', content: { 'text/plain': { schema: { type: 'string' } } } } },
    },
  },
}

// A leap second and the fractions of years before 100 are Postgres's to understand, not of JavaScript's dates.
const instant = { type: 'string', format: 'date-time', pattern: '^[1-9][0-9]{3}-.{6}[0-9]{2}:[0-9]{2}:[0-5]' }
const latencyParameters = {
  from: { description: 'stored at this time or later; an hour before `to` when absent', schema: instant },
  to: { description: 'stored before this time; now when absent', schema: instant },
  type: { description: 'only this type', schema: eventSchema.properties.type },
}
const percentiles = {
  type: 'object',
  required: ['p50', 'p90', 'p99', 'max'],
  additionalProperties: { type: ['number', 'null'], description: 'ms' },
}

const statusPaths = {
  '/v1/workers': {
    get: {
      summary: 'Every pull worker of every process, as it reported itself',
      responses: describeResponses({
        200: [
          'the workers by process',
          {
            type: 'object',
            required: ['processes'],
            properties: { processes: { type: 'array', items: { type: 'object' } } },
          },
        ],
      }),
    },
  },
  '/v1/stats/latency': {
    get: {
      summary: 'True latency from request, and from the stream, to the committed row',
      parameters: describeParameters('query', latencyParameters),
      responses: describeResponses({
        200: [
          'percentiles',
          {
            type: 'object',
            required: ['from', 'to', 'type', 'unit', 'count', 'event', 'queue'],
            properties: { count: { type: 'integer' }, event: percentiles, queue: percentiles },
          },
        ],
        400: ['a parameter is wrong', { $ref: '#/components/schemas/Error' }],
        503: ['the question takes too long, or Postgres is away', { $ref: '#/components/schemas/Error' }],
      }),
    },
  },
}
