/** What an HTTP server does for whoever watches it: a SERVER span and a duration per request. */

import type { Middleware } from 'koa'
import type { Telemetry } from './telemetry.ts'
import { endRequest, type RequestTrace, startRequest } from './tracing.ts'

/** Asked every few seconds by machines; their spans would bury the others. */
const UNTRACED = new Set(['/healthz', '/readyz', '/metrics'])

/** What `observeRequests` leaves for the handlers. */
export type TracedState = { trace: RequestTrace }

/**
 * The outermost middleware. Accepts the caller's traceparent and returns the request's own, by which its events are
 * found in Jaeger and in Postgres.
 */
export function observeRequests({ metrics, tracing }: Telemetry): Middleware<TracedState> {
  return async (ctx, next) => {
    if (UNTRACED.has(ctx.path)) return next()
    const startedAt = performance.now()
    const trace = startRequest(tracing, { method: ctx.method, path: ctx.path, traceparent: ctx.get('traceparent') })
    ctx.state.trace = trace
    ctx.set('traceparent', trace.traceparent)
    try {
      await next()
    } finally {
      // The pattern of the route, never the path: ids in it would make a series of each.
      const route = (ctx as { _matchedRoute?: string | RegExp })._matchedRoute?.toString() ?? 'unmatched'
      endRequest(trace, { method: ctx.method, route, status: ctx.status })
      metrics.requestAnswered(ctx.method, route, ctx.status, (performance.now() - startedAt) / 1_000)
    }
  }
}
