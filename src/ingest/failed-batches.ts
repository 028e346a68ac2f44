/**
 * The record of batches that failed and will be tried again: pg-boss jobs in the queue `failed-batches`. A record is open
 * (`created`) until each of its events has been stored, has failed anew (then a newer record has it), or is a dead letter.
 */

import { createHash } from 'node:crypto'
import { sql } from 'drizzle-orm'
import type { PgBoss } from 'pg-boss'
import { STREAM } from '../broker/streams.ts'
import type { Transaction } from '../db/connect.ts'
import { FAILED_BATCHES, within } from '../db/jobs.ts'
import { traceIdOf } from './event.ts'
import type { ReceivedEvent } from './parcel.ts'

/** An event that Postgres refuses, whatever it is stored with. */
export type Refusal = {
  event: ReceivedEvent
  /** SQLSTATE, or `unreadable`. */
  code: string
  error: string
  /** How often it has been refused, this time included; deliveries that an outage or a crash cost do not count. */
  attempt: number
}

type FailedBatch = {
  /** Keys of the events that are still to be tried again. */
  open: string[]
  /** Events the worker had in hand, the good ones included. */
  size: number
  /** The highest among its events. */
  attempt: number
  sqlstate: string
  error: string
  failures: {
    seq: number
    /** Absent for 0. */
    place?: number
    attempt: number
    delivery: number
    sqlstate: string
    error: string
    traceId: string | null
  }[]
}

export type OpenRecord = { id: string; data: FailedBatch }

/** Postgres and drivers may quote a whole payload in a message. */
const ERROR_CHARS_MAX = 1_000

/** What jsonb and text can hold of a text from anywhere: no U+0000, no lone surrogates. */
export const storable = (text: string, charsMax: number): string =>
  text.slice(0, charsMax).toWellFormed().replaceAll('\u0000', '\ufffd')

export const storableError = (error: string): string => storable(error, ERROR_CHARS_MAX)

/** An event's own name, by its message and its place there; with the store time, since the sequences of a stream that was made anew start again. */
export const eventKey = ({ seq, place, publishedMs }: Pick<ReceivedEvent, 'seq' | 'place' | 'publishedMs'>): string =>
  `${seq}${place === 0 ? '' : `.${place}`}@${publishedMs}`

/** The same id for the same facts, so that writing twice writes once (a UUID of version 8, RFC 9562). */
export function deterministicId(kind: string, ...facts: string[]): string {
  const hex = createHash('sha256')
    .update([kind, STREAM, ...facts].join('\n'))
    .digest('hex')
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-8${hex.slice(13, 16)}-8${hex.slice(17, 20)}-${hex.slice(20, 32)}`
}

/**
 * Locks the open records of these events, in an order that all workers share. Reads every open record, of which there
 * are few; an index on their keys was slower where there were many, since planners misjudge it.
 */
export async function findOpen(tx: Transaction, keys: string[]): Promise<OpenRecord[]> {
  if (keys.length === 0) return []
  const { rows } = await tx.execute<OpenRecord>(sql`
    select id, data from pgboss.job
    where name = 'failed-batches' and state = 'created' and id = any(array(
      select id from pgboss.job, jsonb_array_elements_text(data->'open') as key
      where name = 'failed-batches' and state = 'created' and key = any(${sql.param(keys)}::text[])))
    order by id
    for update`)
  return rows
}

/**
 * Which attempt of the event the present refusal is. A refusal that was recorded for this very delivery is not counted
 * again: its COMMIT may have succeeded without us hearing of it.
 */
export function attemptOf(event: ReceivedEvent, records: OpenRecord[]): number {
  let attempt = 1
  for (const { data } of records)
    for (const before of data.failures)
      if (before.seq === event.seq && (before.place ?? 0) === event.place && data.open.includes(eventKey(event)))
        attempt = Math.max(attempt, before.attempt + (before.delivery === event.deliveries ? 0 : 1))
  return attempt
}

/**
 * Writes down what will be tried again, and takes every event that is not out of the older records; one without any left
 * is completed. The same failure of the same deliveries is one record.
 * @param settled  keys of the events that were stored, failed anew, or became dead letters
 */
export async function recordFailedBatch(
  { jobs }: { jobs: PgBoss },
  tx: Transaction,
  failed: { refusals: Refusal[]; size: number; settled: Set<string>; records: OpenRecord[] },
): Promise<void> {
  const data = describeBatch(failed)
  const db = within(tx)
  const id = deterministicId('failed batch', ...failed.refusals.map((refusal) => deliveryKey(refusal.event)).sort())
  const done: string[] = []
  for (const record of failed.records) {
    if (record.id === id) continue
    const open = record.data.open.filter((key) => !failed.settled.has(key))
    if (open.length === 0) done.push(record.id)
    else await jobs.update(FAILED_BATCHES, { ...record.data, open }, { id: record.id, db })
  }
  if (done.length > 0) await jobs.complete(FAILED_BATCHES, done, null, { db, includeQueued: true })
  if (data !== undefined) await jobs.insert(FAILED_BATCHES, [{ id, data }], { db })
}

const deliveryKey = (event: ReceivedEvent) => `${eventKey(event)}#${event.deliveries}`

function describeBatch({ refusals, size }: { refusals: Refusal[]; size: number }): FailedBatch | undefined {
  if (refusals.length === 0) return undefined
  const worst = refusals.reduce((a, b) => (b.attempt > a.attempt ? b : a))
  return {
    open: refusals.map(({ event }) => eventKey(event)),
    size,
    attempt: worst.attempt,
    sqlstate: worst.code,
    error: storableError(worst.error),
    failures: refusals.map(({ event, attempt, code, error }) => ({
      seq: event.seq,
      ...(event.place === 0 ? {} : { place: event.place }),
      attempt,
      delivery: event.deliveries,
      sqlstate: code,
      error: storableError(error),
      traceId: traceIdOf(event.traceparent),
    })),
  }
}
