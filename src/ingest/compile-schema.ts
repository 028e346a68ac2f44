/**
 * Compiles a JSON Schema that someone sent. It then runs on every event of its type, so nothing in it may be able to
 * hold the process: patterns run in linear time (RE2), references stay inside the schema, sizes are bounded.
 */

import { Ajv, type AnySchemaObject, type ErrorObject } from 'ajv'
import { Ajv2020 } from 'ajv/dist/2020.js'
import addFormats from 'ajv-formats'
import { RE2JS } from 're2js'
import { MillraceError } from '../errors.ts'
import { deeperThan } from './json.ts'
import { findRunaway } from './schema-cost.ts'

/** @returns the first thing wrong with the data, or undefined */
export type CheckData = (data: unknown) => Pick<ErrorObject, 'instancePath' | 'message'> | undefined

export const SCHEMA_BYTES_MAX = 64 * 1024
const SCHEMA_DEPTH_MAX = 64
/** uniqueItems compares each object with each other. */
const UNIQUE_ITEMS_MAX = 1_000
/** How often one value may be looked at; large honest schemas need some dozens. */
const LOOKS_MAX = 1_000

const META_SCHEMA = /^https?:\/\/json-schema\.org\//
const DRAFT_07 = /^https?:\/\/json-schema\.org\/draft-07\/schema#?$/
const DRAFT_2020 = /^https?:\/\/json-schema\.org\/draft\/2020-12\/schema#?$/

const options = {
  allErrors: false,
  strictSchema: true,
  strictTypes: false,
  strictTuples: false,
  strictRequired: false,
  ownProperties: true,
  inlineRefs: false,
  logger: false,
  // Only standalone code would need `code`.
  code: { regExp: Object.assign((pattern: string) => linearPattern(pattern), { code: '' }) },
} as const

const draft2020 = new Ajv2020(options)
const draft07 = new Ajv(options)
addFormats.default(draft2020)
addFormats.default(draft07)

/** Ajv keeps patterns apart by their `toString`. */
function linearPattern(pattern: string): { test: (text: string) => boolean; toString: () => string } {
  const compiled = RE2JS.compile(pattern)
  return { test: (text) => compiled.test(text), toString: () => pattern }
}

/**
 * @param schema  draft 2020-12, or draft-07 where `$schema` says so
 * @throws MillraceError `invalid_request` with a sentence on what is wrong with the schema
 */
export function compileSchema(schema: unknown): CheckData {
  if (typeof schema !== 'object' || schema === null || Array.isArray(schema)) throw refusal('it is no JSON object')
  if (deeperThan(schema, SCHEMA_DEPTH_MAX)) throw refusal(`it nests deeper than ${SCHEMA_DEPTH_MAX} levels`)
  const dangerous = findDangerous(schema) ?? findRunaway(schema, LOOKS_MAX)
  if (dangerous !== undefined) throw refusal(dangerous)
  const ajv = compilerFor((schema as AnySchemaObject).$schema)
  try {
    const isValid = ajv.compile(schema)
    return (data) => (isValid(data) ? undefined : isValid.errors?.[0])
  } catch (error) {
    throw refusal((error as Error).message)
  } finally {
    // Schemas know nothing of each other, and the compiler would keep every one it has ever seen.
    ajv.removeSchema(schema)
  }
}

function compilerFor(dialect: unknown): Ajv {
  if (dialect === undefined || DRAFT_2020.test(String(dialect))) return draft2020
  if (DRAFT_07.test(String(dialect))) return draft07
  throw refusal(`its $schema is neither draft 2020-12 nor draft-07 but ${String(dialect).slice(0, 200)}`)
}

const refusal = (why: string) => new MillraceError('invalid_request', `The schema cannot be used: ${why}`)

function findDangerous(schema: object): string | undefined {
  const { $async, $id, uniqueItems, maxItems } = schema as AnySchemaObject
  if (META_SCHEMA.test(String($id))) return 'its $id is that of a meta-schema'
  if ($async !== undefined) return '$async validation is not supported'
  if (uniqueItems === true && !(Number(maxItems) <= UNIQUE_ITEMS_MAX))
    return `uniqueItems needs maxItems of at most ${UNIQUE_ITEMS_MAX} beside it`
  for (const child of Object.values(schema)) {
    const found = typeof child === 'object' && child !== null ? findDangerous(child) : undefined
    if (found !== undefined) return found
  }
  return undefined
}
