/** The one error family: every refusal Millrace makes on purpose carries a stable `code`. */

import { withoutSecrets } from './secrets.ts'

export type ErrorCode =
  | 'invalid_config'
  | 'invalid_request'
  | 'invalid_event'
  | 'unsupported_media_type'
  | 'too_large'
  | 'not_found'
  | 'archived'
  | 'unauthenticated'
  | 'forbidden'
  | 'rate_limited'
  | 'request_timeout'
  | 'conflict'
  | 'unavailable'
  | 'overloaded'
  | 'broker_too_old'
  | 'schema_too_new'
  /** a workflow's step, run or child failed for good; `details.code` is the original's */
  | 'step_failed'
  | 'run_failed'
  | 'cancelled'
  | 'terminated'
  | 'timed_out'
  /** a workflow's code no longer makes the calls that its journal holds */
  | 'nondeterminism'

/** @property details  facts for a machine: limits, pointers, ids. Never a secret. */
export class MillraceError extends Error {
  readonly code: ErrorCode
  readonly details: Record<string, unknown>

  constructor(code: ErrorCode, message: string, options: { cause?: unknown; details?: Record<string, unknown> } = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause })
    this.name = 'MillraceError'
    this.code = code
    this.details = options.details ?? {}
  }
}

/** The message of anything thrown, with the messages of its causes, without what looks like a secret. */
export function describe(error: unknown): string {
  if (!(error instanceof Error)) return withoutSecrets(String(error))
  // Drizzle's own message is the statement and every value in it; its cause says what was wrong.
  if ('query' in error && 'params' in error && error.cause !== undefined) return describe(error.cause)
  const message = withoutSecrets(error.message)
  return error.cause === undefined ? message : `${message}: ${describe(error.cause)}`
}
