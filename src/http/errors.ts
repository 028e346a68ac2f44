/** The HTTP edge: the one place where an error of a request becomes an answer. */

import type { Middleware } from 'koa'
import { isOutage } from '../db/connect.ts'
import { describe, type ErrorCode, MillraceError } from '../errors.ts'
import { withoutSecrets } from '../secrets.ts'

const STATUS: Partial<Record<ErrorCode, number>> = {
  invalid_request: 400,
  invalid_event: 400,
  unauthenticated: 401,
  forbidden: 403,
  not_found: 404,
  request_timeout: 408,
  conflict: 409,
  archived: 410,
  too_large: 413,
  unsupported_media_type: 415,
  rate_limited: 429,
  unavailable: 503,
  overloaded: 503,
}

/** Long enough to spare a struggling service, short enough that its recovery is noticed. */
const RETRY_AFTER_S = 1

export const statusOf = (error: unknown): number => (error instanceof MillraceError ? (STATUS[error.code] ?? 500) : 500)

/** The JSON of an error; what is not ours is logged and not told. */
export function errorBody(error: unknown): { error: string; message: string } & Record<string, unknown> {
  if (!(error instanceof MillraceError) || statusOf(error) === 500)
    return { error: 'internal', message: 'An internal error; the log of the API has it' }
  return { error: error.code, message: withoutSecrets(error.message), ...error.details }
}

/** Headers that belong to a refusal: when to come back, and whether the connection is still of use. */
export function errorHeaders(error: unknown): Record<string, string> {
  const status = statusOf(error)
  if (status === 401) return { 'WWW-Authenticate': 'Bearer realm="millrace"' }
  if (status === 429) return { 'Retry-After': String((error as MillraceError).details.retry_after_s) }
  if (status === 503) return { 'Retry-After': String(RETRY_AFTER_S) }
  if (status === 408) return { Connection: 'close' }
  if (status === 415) return { 'Accept-Encoding': 'gzip, br, zstd' }
  return {}
}

/** Answers whatever the handlers below throw, and unknown paths. */
export function answerErrors({ log }: { log: { error: (facts: object, message: string) => void } }): Middleware {
  return async (ctx, next) => {
    try {
      await next()
      if (ctx.status === 404 && ctx.body == null)
        throw new MillraceError('not_found', `There is no ${ctx.method} ${ctx.path}; /openapi.json lists what there is`)
      // The router calls a method that no route has at all not implemented.
      if ((ctx.status === 405 || ctx.status === 501) && ctx.body == null) {
        ctx.body = { error: 'method_not_allowed', message: `${ctx.path} takes ${ctx.response.get('Allow')}` }
        ctx.status = 405
      }
    } catch (thrown) {
      const error = isOutage(thrown)
        ? new MillraceError('unavailable', 'Postgres is away or too busy; retry later', { cause: thrown })
        : thrown
      ctx.status = statusOf(error)
      if (ctx.status === 500) log.error({ error: describe(error), method: ctx.method, path: ctx.path }, 'failed')
      ctx.set(errorHeaders(error))
      ctx.body = errorBody(error)
    }
  }
}
