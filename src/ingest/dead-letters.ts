/**
 * Events that were refused too often: pg-boss jobs in the queue `dead-letters`, each written in one transaction with its
 * audit row. An open letter is a `created` job, a replayed one `completed`, a discarded one `cancelled`.
 */

import { isUtf8 } from 'node:buffer'
import type { PgBoss } from 'pg-boss'
import { SUBJECT_PREFIX } from '../broker/streams.ts'
import type { Transaction } from '../db/connect.ts'
import { DEAD_LETTERS, within } from '../db/jobs.ts'
import { deadLetterAudit } from '../db/schema.ts'
import { OPERATOR_TENANT } from '../http/caller.ts'
import { traceIdOf } from './event.ts'
import { deterministicId, eventKey, type Refusal, storable, storableError } from './failed-batches.ts'
import { headersOfEvent, type ReceivedEvent } from './parcel.ts'

export type DeadLetter = {
  /** Empty where the message told none. */
  id: string
  source: string
  /** Whose it is; absent for `default`. */
  tenant?: string
  /** Set where `id` and `source` are not exactly the event's, because Postgres cannot hold them. */
  identityLost?: true
  type: string
  /** SQLSTATE, or `unreadable`. */
  code: string
  error: string
  attempts: number
  deliveries: number
  subject: string
  streamSeq: number
  /** Its place in that message; absent for 0. */
  streamPlace?: number
  /** ISO 8601 */
  receivedAt: string
  publishedAt: string
  /** Of the span of its death, so that its replay continues from there. */
  traceparent: string
  /** As they were on the message. */
  headers: Record<string, string[]>
  /** The event, byte for byte: as text where it is UTF-8 without U+0000, which jsonb cannot hold, else in base64. */
  payload?: string
  payloadBase64?: string
}

/** Longer ones come only from producers that bypass the API; the payload and the headers keep them whole. */
const TYPE_CHARS_MAX = 255
const IDENTITY_CHARS_MAX = 4_096
const HEADER_CHARS_MAX = 8_192

/** One insert of pg-boss carries so much at most, since JSON of hundreds of megabytes helps nobody. */
const INSERT_BYTES_MAX = 8 * 1024 * 1024

export const deadLetterId = (event: Pick<ReceivedEvent, 'seq' | 'place' | 'publishedMs'>): string =>
  deterministicId('dead letter', eventKey(event))

/** @param traceparent  what traceDeadLetter returned */
export function deadLetterOf({ event, code, error, attempt }: Refusal, traceparent: string): DeadLetter {
  const data = event.parcel.bytes
  const text = isUtf8(data) && !data.includes(0) ? data.toString() : undefined
  const id = storable(event.id, IDENTITY_CHARS_MAX)
  const source = storable(event.source, IDENTITY_CHARS_MAX)
  return {
    id,
    source,
    ...(event.tenant === OPERATOR_TENANT ? {} : { tenant: storable(event.tenant, IDENTITY_CHARS_MAX) }),
    ...(id === event.id && source === event.source ? {} : { identityLost: true as const }),
    type: storable(typeOf(event), TYPE_CHARS_MAX),
    code,
    error: storableError(error),
    attempts: attempt,
    deliveries: event.deliveries,
    subject: storable(event.parcel.from.message.subject, IDENTITY_CHARS_MAX),
    streamSeq: event.seq,
    ...(event.place === 0 ? {} : { streamPlace: event.place }),
    receivedAt: instant(event.receivedMs, event.publishedMs),
    publishedAt: instant(event.publishedMs, 0),
    traceparent: storable(traceparent, IDENTITY_CHARS_MAX),
    headers: headersOf(event),
    ...(text === undefined ? { payloadBase64: data.toString('base64') } : { payload: text }),
  }
}

/** A header from anywhere may hold no time at all. */
const instant = (ms: number, otherwiseMs: number) => new Date(Math.abs(ms) <= 8.64e15 ? ms : otherwiseMs).toISOString()

function typeOf(event: ReceivedEvent): string {
  try {
    const { type } = JSON.parse(event.payload)
    if (typeof type === 'string') return type
  } catch {
    // What cannot be read has the type its subject tells.
  }
  return event.parcel.from.message.subject.slice(SUBJECT_PREFIX.length)
}

function headersOf(event: ReceivedEvent): Record<string, string[]> {
  const headers: Record<string, string[]> = {}
  for (const [name, values] of headersOfEvent(event))
    headers[storable(name, HEADER_CHARS_MAX)] = values.map((value) => storable(value, HEADER_CHARS_MAX))
  return headers
}

/** Writes letters and their `recorded` audit rows; a letter that is there already is left as it is. */
export async function recordDeadLetters(
  { jobs, actor }: { jobs: PgBoss; actor: string },
  tx: Transaction,
  letters: Map<string, DeadLetter>,
): Promise<void> {
  for (const part of parts([...letters])) {
    const inserts = part.map(([id, data]) => ({ id, data }))
    const recorded = new Set(await jobs.insert(DEAD_LETTERS, inserts, { db: within(tx), returnId: true }))
    const rows = part
      .filter(([id]) => recorded.has(id))
      .map(([id, letter]) => ({
        deadLetterId: id,
        source: letter.source,
        eventId: letter.id,
        type: letter.type,
        code: letter.code,
        action: 'recorded' as const,
        actor,
        tenant: letter.tenant ?? OPERATOR_TENANT,
        detail: {
          error: letter.error,
          attempts: letter.attempts,
          streamSeq: letter.streamSeq,
          ...(letter.streamPlace === undefined ? {} : { streamPlace: letter.streamPlace }),
          traceId: traceIdOf(letter.traceparent),
        },
      }))
    if (rows.length > 0) await tx.insert(deadLetterAudit).values(rows)
  }
}

function parts(letters: [string, DeadLetter][]): [string, DeadLetter][][] {
  const out: [string, DeadLetter][][] = []
  let bytes = Number.POSITIVE_INFINITY
  for (const letter of letters) {
    const size = (letter[1].payload ?? letter[1].payloadBase64 ?? '').length
    if (bytes + size > INSERT_BYTES_MAX) {
      out.push([])
      bytes = 0
    }
    out.at(-1)!.push(letter)
    bytes += size
  }
  return out
}
