/**
 * How a request carries its events. CloudEvents 1.0, HTTP protocol binding: `application/cloudevents+json` is the
 * structured mode, `application/cloudevents-batch+json` the batched one, and `ce-` headers make it the binary mode.
 */

import type { IncomingHttpHeaders } from 'node:http'
import { MillraceError } from '../errors.ts'
import { decodeText, type Json, parseJson } from './json.ts'

/** `json` is one event or an array of them. */
export type ContentMode = 'json' | 'ndjson' | 'structured' | 'batch' | 'binary'

const MODES: Record<string, ContentMode> = {
  'application/json': 'json',
  'application/x-ndjson': 'ndjson',
  'application/ndjson': 'ndjson',
  'application/cloudevents+json': 'structured',
  'application/cloudevents-batch+json': 'batch',
}

/** @throws MillraceError `unsupported_media_type` with what is understood */
export function contentModeOf(headers: IncomingHttpHeaders): ContentMode {
  const contentType = headers['content-type'] ?? ''
  const mode = MODES[contentType] ?? MODES[mediaTypeOf(contentType)]
  if (mode !== undefined && mode !== 'json') {
    requireUtf8(contentType)
    return mode
  }
  if (headers['ce-specversion'] !== undefined || headers['ce-type'] !== undefined) return 'binary'
  if (mode === undefined && contentType !== '')
    throw new MillraceError(
      'unsupported_media_type',
      `Send events as ${Object.keys(MODES).join(', ')}, or in CloudEvents binary mode; not as ${contentType}`,
    )
  requireUtf8(contentType)
  return 'json'
}

const mediaTypeOf = (contentType: string): string => contentType.split(';', 1)[0]!.trim().toLowerCase()

function requireUtf8(contentType: string): void {
  const charset = /;\s*charset\s*=\s*"?([^";\s]+)/i.exec(contentType)?.[1]
  if (charset !== undefined && !/^(utf-?8|us-ascii)$/i.test(charset))
    throw new MillraceError('unsupported_media_type', `JSON is UTF-8, not ${charset}`)
}

/** The event of a binary-mode request: attributes from `ce-` headers, data from the body. */
export function eventOfBinary(headers: IncomingHttpHeaders, body: Buffer): Json {
  const attributes: [string, unknown][] = []
  for (const [name, value] of Object.entries(headers))
    if (name.startsWith('ce-') && typeof value === 'string')
      attributes.push([name.slice(3), percentDecode(name, value)])
  const contentType = headers['content-type'] ?? ''
  if (contentType !== '') attributes.push(['datacontenttype', contentType])
  if (body.length === 0) return { value: objectOf(attributes), exact: undefined, suspect: true }

  const mediaType = mediaTypeOf(contentType)
  if (mediaType === '' || /[/+]json$/.test(mediaType)) {
    requireUtf8(contentType)
    const data = parseJson(decodeText(body))
    const value = objectOf([...attributes, ['data', data.value]])
    const exact = data.exact === undefined ? undefined : objectOf([...attributes, ['data', data.exact]])
    return { value, exact, suspect: true }
  }
  const data: [string, string] = mediaType.startsWith('text/')
    ? ['data', decodeText(body)]
    : ['data_base64', body.toString('base64')]
  return { value: objectOf([...attributes, data]), exact: undefined, suspect: true }
}

/** fromEntries defines own properties, so that a header `ce-__proto__` is a name like any other. */
const objectOf = (attributes: [string, unknown][]): object => Object.fromEntries(attributes)

/** Section 3.1.3.2 of the binding: header values are percent-encoded UTF-8. */
function percentDecode(name: string, value: string): string {
  if (!value.includes('%')) return value
  try {
    return decodeURIComponent(value)
  } catch {
    throw new MillraceError('invalid_request', `The header ${name} is not percent-encoded UTF-8`)
  }
}
