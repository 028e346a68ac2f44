/**
 * JSON as sent and as it can be stored. JSON.parse rounds numbers beyond 2^53 and makes Infinity of 1e400, and Postgres
 * refuses \u0000 and lone surrogates (RFC 8259 section 8.2 calls them unpredictable). Bodies that can hold such things are told apart
 * by one regular expression over the text; only they take the slow way.
 */

import { MillraceError } from '../errors.ts'
import { jsonProblem } from '../secrets.ts'

/** A JSON text with a value for validation, and the same with every number as it was written. */
export type Json = {
  value: unknown
  /** Its numbers are raw JSON where a double would not print the same; undefined when `value` says it all. */
  exact: unknown
  /** Whether it may hold what Postgres refuses: see `findUnstorable`. */
  suspect: boolean
}

/** What is wrong with a value, and where: `pointer` is a JSON pointer (RFC 6901). */
export type Problem = { code: string; pointer: string; message: string }

/** A number that may not survive as a double: 16 characters of digits or more, or an exponent. */
const ODD_NUMBER = /[:[,\s]-?(?:\d[\d.]{15}|[\d.]+[eE])|^-?(?:\d[\d.]{15}|[\d.]+[eE])/
/** Both can stand in JSON only as escapes, since the body is checked to be UTF-8. */
const ODD_TEXT = /\\u(?:0000|[dD][89a-fA-F])/

/** jsonb takes thousands, but every reader recurses; no honest event comes near. */
export const DEPTH_MAX = 128
/** Digits and exponent as written. numeric would take 16,383 decimal places. */
const NUMBER_CHARACTERS_MAX = 1_000

// Not yet in TypeScript's library: https://github.com/tc39/proposal-json-parse-with-source
const rawJson = JSON as unknown as {
  rawJSON: (text: string) => { rawJSON: string }
  isRawJSON: (value: unknown) => value is { rawJSON: string }
  parse: (text: string, reviver: (key: string, value: unknown, context: { source?: string }) => unknown) => unknown
}

const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: false })

/** @throws MillraceError `invalid_request` for bytes that are not UTF-8 */
export function decodeText(bytes: Uint8Array): string {
  try {
    return utf8.decode(bytes)
  } catch {
    throw new MillraceError('invalid_request', 'The text is not valid UTF-8', { details: { reason: 'invalid_utf8' } })
  }
}

/** @throws MillraceError `invalid_request` with the place of the mistake */
export function parseJson(text: string): Json {
  try {
    const value = JSON.parse(text)
    const oddNumber = ODD_NUMBER.test(text)
    return {
      value,
      exact: oddNumber ? rawJson.parse(text, asWritten) : undefined,
      suspect: oddNumber || ODD_TEXT.test(text),
    }
  } catch (error) {
    throw new MillraceError('invalid_request', `The text is not JSON: ${jsonProblem(error)}`, {
      details: { reason: 'invalid_json' },
    })
  }
}

const asWritten = (_key: string, value: unknown, { source }: { source?: string }) =>
  typeof value === 'number' && String(value) !== source ? rawJson.rawJSON(source!) : value

/** Whether arrays and objects nest deeper than `levels`. */
export function deeperThan(value: unknown, levels: number): boolean {
  if (typeof value !== 'object' || value === null) return false
  if (levels === 0) return true
  if (Array.isArray(value)) {
    for (let i = 0; i < value.length; i++) if (deeperThan(value[i], levels - 1)) return true
    return false
  }
  for (const key in value) if (deeperThan((value as Record<string, unknown>)[key], levels - 1)) return true
  return false
}

/**
 * Looks for the first text or number that Postgres refuses, or that no reader in double precision could tell.
 * @param value  with raw numbers, at most DEPTH_MAX deep
 */
export function findUnstorable(value: unknown, pointer = ''): Problem | undefined {
  if (typeof value === 'string') return unstorableText(value, pointer, 'a string')
  if (typeof value !== 'object' || value === null) return undefined
  if (rawJson.isRawJSON(value)) return unstorableNumber(value.rawJSON, pointer)
  for (const [key, child] of Object.entries(value)) {
    const at = `${pointer}/${key.replaceAll('~', '~0').replaceAll('/', '~1')}`
    const problem = unstorableText(key, at, 'a name') ?? findUnstorable(child, at)
    if (problem !== undefined) return problem
  }
  return undefined
}

function unstorableText(text: string, pointer: string, what: string): Problem | undefined {
  if (text.includes('\0'))
    return {
      code: 'unstorable_text',
      pointer: pointer.toWellFormed(),
      message: `${what} holds \\u0000, which Postgres cannot store`,
    }
  if (!text.isWellFormed())
    return {
      code: 'unstorable_text',
      pointer: pointer.toWellFormed(),
      message: `${what} holds half of a surrogate pair, which is no character`,
    }
  return undefined
}

function unstorableNumber(source: string, pointer: string): Problem | undefined {
  const number = Number(source)
  if (!Number.isFinite(number) || (number === 0 && /[1-9]/.test(source.split(/[eE]/, 1)[0]!)))
    return { code: 'unstorable_number', pointer, message: 'a number is beyond the range of double precision' }
  if (source.length > NUMBER_CHARACTERS_MAX)
    return { code: 'unstorable_number', pointer, message: `a number has more than ${NUMBER_CHARACTERS_MAX} characters` }
  return undefined
}
