/**
 * What a file of routes hands to the API: a router, and the same routes as OpenAPI path items. Ajv checks queries by
 * the very schemas that /openapi.json shows.
 */

import type { Router } from '@koa/router'
import { Ajv, type AnySchemaObject, type SchemaObject } from 'ajv'
import addFormats from 'ajv-formats'
import { MillraceError } from '../errors.ts'
import type { RequestState } from './caller.ts'

export type Routes = {
  router: Router<RequestState>
  /** OpenAPI 3.1 path items by path, such as `/v1/events/{source}/{id}`. */
  paths: Record<string, object>
}

/** A time that Postgres can hold: it knows no year 0, and no offset from 16 hours on. */
export const instantSchema = {
  type: 'string',
  maxLength: 64,
  format: 'date-time',
  pattern: '^(?!0000).*([zZ]|[+-](0[0-9]|1[0-5])(:?[0-9]{2})?)$',
  description: 'RFC 3339, years 1 to 9999, offsets below 16 hours',
} as const

/** One query or path parameter. Strings are turned into the type that the schema names. */
type Parameter = { description: string; schema: AnySchemaObject; required?: boolean }
export type Parameters = Record<string, Parameter>

const ajv = new Ajv({ coerceTypes: true, useDefaults: true, strict: true })
addFormats.default(ajv)

/**
 * Compiles the parameters of a route, from `ctx.query` or `ctx.params`, into a reader.
 * @returns a function that gives the checked values, and throws `invalid_request` naming the wrong parameter
 */
export function parameterReader<T extends object>(parameters: Parameters): (given: object) => T {
  const isValid = ajv.compile<T>({
    type: 'object',
    properties: Object.fromEntries(Object.entries(parameters).map(([name, { schema }]) => [name, schema])),
    required: Object.keys(parameters).filter((name) => parameters[name]!.required),
    additionalProperties: false,
  })
  const known = Object.keys(parameters).join(', ') || 'none'
  return (given) => {
    const values: object = { ...given }
    if (isValid(values)) return values
    const { keyword, instancePath, params, message } = isValid.errors![0]!
    throw new MillraceError(
      'invalid_request',
      keyword === 'additionalProperties'
        ? `There is no parameter '${params.additionalProperty}' here; known: ${known}`
        : `Parameter ${instancePath.slice(1) || 'list'} ${message}`,
    )
  }
}

const strictAjv = new Ajv({ useDefaults: true, strict: true, strictRequired: false, allowUnionTypes: true })
addFormats.default(strictAjv)

/**
 * Compiles the schema of a JSON body into a reader; unlike parameters, nothing is turned into another type.
 * @returns a function that gives the checked body with its defaults, and throws `invalid_request` naming the wrong place
 */
export function bodyReader<T extends object>(schema: SchemaObject): (body: unknown) => T {
  const isValid = strictAjv.compile<T>(schema)
  const known = Object.keys(schema.properties ?? {}).join(', ')
  const meaning = (pointer: string) => {
    const description = schema.properties?.[pointer.split('/')[1] ?? '']?.description
    return description === undefined ? '' : ` (${description})`
  }
  return (body) => {
    if (isValid(body)) return body
    const { keyword, instancePath, params, message } = isValid.errors![0]!
    throw new MillraceError(
      'invalid_request',
      keyword === 'additionalProperties'
        ? `There is no '${params.additionalProperty}' in this body; known: ${known}`
        : `The body${instancePath === '' ? '' : ` at ${instancePath}`} ${message}${meaning(instancePath)}`,
    )
  }
}

/** The same parameters for an OpenAPI operation. */
export const describeParameters = (place: 'query' | 'path', parameters: Parameters): object[] =>
  Object.entries(parameters).map(([name, { description, schema, required = place === 'path' }]) => ({
    name,
    in: place,
    required,
    description,
    schema,
  }))

/** OpenAPI responses: a description and the schema of the JSON body, by status. */
export const describeResponses = (responses: Record<number, [description: string, schema: object]>): object =>
  Object.fromEntries(
    Object.entries(responses).map(([status, [description, schema]]) => [
      status,
      { description, content: { 'application/json': { schema } } },
    ]),
  )

/** A JSON body for an OpenAPI operation. */
export const describeBody = (schema: object, required = true): object => ({
  required,
  content: { 'application/json': { schema } },
})
