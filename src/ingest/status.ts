/** What an operator asks a process: is it ready, how do the workers fare, how long do events take. */

import { Router } from '@koa/router'
import { MillraceError } from '../errors.ts'
import { watchWorkers } from '../telemetry/workers.ts'
import { latencyStats } from './latency.ts'
import { checkReadiness, type ReadinessDeps } from './readiness.ts'

const HOUR_MS = 3_600_000

/** `/healthz` and `/readyz`, for API and worker processes alike. */
export function probeRoutes(deps: ReadinessDeps, role: 'api' | 'worker'): Router {
  const router = new Router()
  router.get('/healthz', (ctx) => {
    ctx.body = { status: 'ok' }
  })
  router.get('/readyz', async (ctx) => {
    const readiness = await checkReadiness(deps, role === 'api' ? ['jetstream'] : ['jetstream', 'postgres', 'workers'])
    ctx.status = readiness.ready ? 200 : 503
    ctx.body = readiness
  })
  return router
}

/** `/v1/workers`: every pull worker of every process. `/v1/stats/latency?from&to&type`: by SQL, over every row. */
export function statusRoutes(deps: ReadinessDeps): Router {
  const workers = watchWorkers(deps)
  const router = new Router()
  router.get('/v1/workers', (ctx) => {
    ctx.body = { processes: workers() }
  })
  router.get('/v1/stats/latency', async (ctx) => {
    const to = instant('to', ctx.query.to, Date.now())
    const from = instant('from', ctx.query.from, to.getTime() - HOUR_MS)
    const type = typeof ctx.query.type === 'string' ? ctx.query.type : null
    ctx.body = { from, to, type, unit: 'ms', ...(await latencyStats(deps, { from, to, type })) }
  })
  return router
}

function instant(name: string, text: string | string[] | undefined, fallbackMs: number): Date {
  const date = new Date(text === undefined ? fallbackMs : String(text))
  if (Number.isNaN(date.getTime()))
    throw new MillraceError('invalid_request', `${name} must be a time such as 2026-01-31T12:00:00Z`)
  return date
}
