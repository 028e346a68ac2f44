/** Inputs, results and errors as they are kept: JSON text, so that code sees live what it would see after a restart. */

import { MillraceError } from '../errors.ts'

/** Larger values belong into the user's own tables or an object store, with a reference here. */
const VALUE_BYTES_MAX = 4 * 1024 * 1024
/** The same for the body of a request. */
export const VALUE_LIMIT = { bytesMax: VALUE_BYTES_MAX, limit: 'VALUE_BYTES_MAX' }

/**
 * @returns JSON text, or null for undefined
 * @throws MillraceError `too_large`, or `invalid_request` for what JSON cannot hold (cycles, bigint)
 */
export function encode(value: unknown, what: string): string | null {
  if (value === undefined) return null
  let text: string | undefined
  try {
    text = JSON.stringify(value)
  } catch (error) {
    throw new MillraceError('invalid_request', `${what} must be JSON: return plain data`, { cause: error })
  }
  if (text === undefined) return null
  if (text.length > VALUE_BYTES_MAX)
    throw new MillraceError(
      'too_large',
      `${what} has ${text.length} characters of JSON, ${VALUE_BYTES_MAX} at most: keep it elsewhere and return a reference`,
    )
  return text
}

export const decode = (text: string | null): unknown => (text === null ? undefined : JSON.parse(text))

/** The value as it would be read back. */
export function asRead(value: unknown, text: string | null): unknown {
  switch (typeof value) {
    case 'string':
    case 'boolean':
      return value
    default:
      return decode(text)
  }
}

type ErrorRecord = { name: string; message: string; code?: string; stack?: string; details?: unknown }

const STACK_CHARACTERS_MAX = 4_000

export function encodeError(error: unknown): string {
  const record: ErrorRecord =
    error instanceof Error
      ? { name: error.name, message: error.message, stack: error.stack?.slice(0, STACK_CHARACTERS_MAX) }
      : { name: 'Error', message: typeof error === 'string' ? error : (safely(error) ?? String(error)) }
  const { code, details } = (error ?? {}) as { code?: unknown; details?: unknown }
  if (typeof code === 'string') record.code = code
  if (details !== undefined && safely(details) !== null) record.details = details
  return JSON.stringify(record)
}

function safely(value: unknown): string | null {
  try {
    return JSON.stringify(value) ?? null
  } catch {
    return null
  }
}

/**
 * An error as the code after it sees it, live or replayed: a MillraceError with the original's name, message and, in
 * `details`, its code.
 */
export function decodeError(text: string, fallback: 'step_failed' | 'run_failed'): MillraceError {
  const { name, message, code, details, stack } = JSON.parse(text) as ErrorRecord
  const known =
    code === 'run_failed' ||
    code === 'cancelled' ||
    code === 'timed_out' ||
    code === 'nondeterminism' ||
    code === 'step_failed'
  const error = new MillraceError(known ? code : fallback, message, {
    details: {
      ...(typeof details === 'object' && details !== null ? details : {}),
      ...(known || code === undefined ? {} : { code }),
    },
  })
  error.name = name
  if (stack !== undefined) error.stack = stack
  return error
}
