/**
 * One batch into Postgres: drop in-batch duplicates, sort by the key, one static statement in one transaction, which also
 * starts and wakes the workflow runs that the events concern. A bad event is found by halving, so that the rest commits;
 * an outage changes nothing.
 */

import { sql, TransactionRollbackError } from 'drizzle-orm'
import { PgDialect } from 'drizzle-orm/pg-core'
import { uuidv7 } from 'uuidv7'
import type { Broker } from '../broker/connect.ts'
import { nowMs } from '../clock.ts'
import { type Database, inTransaction, sqlStateOf, type Transaction } from '../db/connect.ts'
import { matchEvents } from '../workflow/events.ts'
import { publishWakes } from '../workflow/wakes.ts'
import { identityOf, type OutgoingEvent, type ReceivedEvent, traceIdOf } from './event.ts'

type EventOutcome =
  | { kind: 'inserted' }
  /** (source, id) was there before. */
  | { kind: 'duplicate' }
  /** Postgres refuses this very event, whatever it is stored with. */
  | { kind: 'poison'; sqlstate: string; error: string }

/** What became of a batch: an outcome for each event by stream sequence, or nothing yet for all of them. */
export type BatchOutcome = {
  batchId: string
  /** From the first BEGIN to the end of the last transaction. */
  insertMs: number
  /** Just after the last COMMIT or failure, in ms since 1970. */
  endedMs: number
} & (
  | { kind: 'settled'; outcomes: Map<number, EventOutcome> }
  /** Postgres is away, overloaded, or not what we expect: no event is to blame. */
  | ({ kind: 'postponed' } & Failure)
)

type Failure = { sqlstate: string; error: string }

/** ASCII record separator: JSON must escape it inside strings, so it never stands in a valid payload. */
const SEPARATOR = '\x1e'

/**
 * Splits the payloads by the separator and casts each on its own, so that no payload can reach into another's row.
 * `offset 0` keeps the planner from repeating the cast in every column.
 */
const insertStatement = (columns: Columns) => sql`
  insert into events (source, id, type, subject, time, datacontenttype, dataschema, data, data_base64, extensions,
                      trace_id, received_at, published_at, stream_seq, batch_id)
  select source, id, event->>'type', event->>'subject', (event->>'time')::timestamptz, event->>'datacontenttype',
         event->>'dataschema', event->'data', event->>'data_base64',
         nullif(event - '{specversion,id,source,type,subject,time,datacontenttype,dataschema,data,data_base64}'::text[], '{}'),
         trace_id, to_timestamp(received_ms / 1000), to_timestamp(published_ms / 1000), seq, ${columns.batchId}::uuid
  from (
    select source, id, payload::jsonb as event, trace_id, received_ms, published_ms, seq
    from unnest(string_to_array(${columns.sources}, ${SEPARATOR}), string_to_array(${columns.ids}, ${SEPARATOR}),
                string_to_array(${columns.payloads}, ${SEPARATOR}), ${columns.traceIds}::uuid[],
                ${columns.receivedMs}::float8[], ${columns.publishedMs}::float8[], ${columns.seqs}::bigint[])
         as sent(source, id, payload, trace_id, received_ms, published_ms, seq)
    offset 0
  ) as row
  on conflict (source, id) do nothing
  returning stream_seq`

/** The statement as Postgres sees it, for traces. */
export const INSERT_TEXT = new PgDialect().sqlToQuery(insertStatement(columnsOf([], ''))).sql

type Columns = ReturnType<typeof columnsOf>

type Row = Pick<ReceivedEvent, 'id' | 'source' | 'payload' | 'traceparent' | 'receivedMs' | 'publishedMs' | 'seq'>

function columnsOf(events: Row[], batchId: string) {
  const list = (values: (string | number)[]) => `{${values.join(',')}}`
  return {
    batchId,
    sources: events.map((event) => event.source).join(SEPARATOR),
    ids: events.map((event) => event.id).join(SEPARATOR),
    payloads: events.map((event) => event.payload).join(SEPARATOR),
    traceIds: list(events.map((event) => traceIdOf(event.traceparent) ?? 'null')),
    receivedMs: list(events.map((event) => event.receivedMs)),
    publishedMs: list(events.map((event) => event.publishedMs)),
    seqs: list(events.map((event) => event.seq)),
  }
}

/** @property broker  tells other processes which workflow runs the events started and woke */
export type InsertDeps = { db: Database; broker: Broker | null }

/** Inserts a batch. Never throws for what Postgres says: that is the outcome. */
export async function insertBatch(deps: InsertDeps, events: ReceivedEvent[]): Promise<BatchOutcome> {
  const batchId = uuidv7()
  const outcomes = new Map<number, EventOutcome>()
  const startedAt = performance.now()
  let rest: ReceivedEvent[] = []
  for (const event of events) {
    const reason = unstorable(event)
    if (reason === '') rest.push(event)
    else outcomes.set(event.seq, { kind: 'poison', sqlstate: '', error: reason })
  }
  let failure: Failure | undefined
  while (rest.length > 0 && failure === undefined) {
    const { firsts, repeats } = splitRepeats(rest)
    failure = await insertHalving(deps, firsts, batchId, outcomes)
    if (failure !== undefined) break
    // Only a stored event makes its repeat a duplicate: the repeat of a refused one may itself be good.
    rest = repeats.filter(({ first }) => outcomes.get(first)!.kind === 'poison').map(({ event }) => event)
    for (const { event, first } of repeats)
      if (outcomes.get(first)!.kind !== 'poison') outcomes.set(event.seq, { kind: 'duplicate' })
  }
  const ended = { batchId, insertMs: performance.now() - startedAt, endedMs: nowMs() }
  return failure === undefined ? { kind: 'settled', ...ended, outcomes } : { kind: 'postponed', ...ended, ...failure }
}

/** The first event of each key, sorted by it, and the others with the sequence of their first. */
function splitRepeats(events: ReceivedEvent[]) {
  const byKey = new Map<string, ReceivedEvent>()
  const repeats: { event: ReceivedEvent; first: number }[] = []
  for (const event of events) {
    const key = identityOf(event)
    const first = byKey.get(key)
    if (first === undefined) byKey.set(key, event)
    else repeats.push({ event, first: first.seq })
  }
  // Overlapping batches of two workers that lock their keys in different orders would deadlock.
  const firsts = [...byKey.keys()].sort().map((key) => byKey.get(key)!)
  return { firsts, repeats }
}

function unstorable(event: ReceivedEvent): string {
  if (event.unreadable !== '') return event.unreadable
  if (event.payload.includes(SEPARATOR) || event.id.includes(SEPARATOR) || event.source.includes(SEPARATOR))
    return 'a control character (U+001E) stands unescaped in the event'
  return ''
}

/** Inserts all rows, or each half on its own when one of them is to blame; log2(n) more transactions per bad event. */
async function insertHalving(
  deps: InsertDeps,
  rows: ReceivedEvent[],
  batchId: string,
  outcomes: Map<number, EventOutcome>,
): Promise<Failure | undefined> {
  if (rows.length === 0) return
  try {
    const inserted = await insertRows(deps, rows, batchId)
    for (const { seq } of rows) outcomes.set(seq, { kind: inserted.has(seq) ? 'inserted' : 'duplicate' })
    return
  } catch (thrown) {
    const { sqlstate, error } = readError(thrown)
    if (!blamesData(sqlstate)) return { sqlstate, error }
    if (rows.length === 1) {
      outcomes.set(rows[0]!.seq, { kind: 'poison', sqlstate, error })
      return
    }
  }
  const half = rows.length >> 1
  return (
    (await insertHalving(deps, rows.slice(0, half), batchId, outcomes)) ??
    (await insertHalving(deps, rows.slice(half), batchId, outcomes))
  )
}

async function insertRows(deps: InsertDeps, rows: ReceivedEvent[], batchId: string): Promise<Set<number>> {
  const { inserted, wakes } = await inTransaction(deps.db, async (tx) => {
    const { rows: stored } = await tx.execute<{ stream_seq: string }>(insertStatement(columnsOf(rows, batchId)))
    const inserted = new Set(stored.map((row) => Number(row.stream_seq)))
    const fresh = rows.filter(({ seq }) => inserted.has(seq))
    const wakes = await matchEvents(
      tx,
      fresh.map(({ source, id, traceparent }) => ({ source, id, traceparent })),
    )
    return { inserted, wakes }
  })
  publishWakes(deps.broker, wakes)
  return inserted
}

/** Inserts events and takes them back, so that nothing changes; tells why Postgres refuses them, if it does. */
export async function rehearse(tx: Transaction, events: OutgoingEvent[]): Promise<Failure | undefined> {
  const rows = events.map((event, seq) => ({ ...event, publishedMs: Date.now(), seq }))
  try {
    await tx.transaction(async (savepoint) => {
      await savepoint.execute(insertStatement(columnsOf(rows, uuidv7())))
      await matchEvents(savepoint, rows)
      savepoint.rollback()
    })
  } catch (thrown) {
    if (thrown instanceof TransactionRollbackError) return
    const failure = readError(thrown)
    if (!blamesData(failure.sqlstate)) throw thrown
    return failure
  }
}

/** SQLSTATE and message of what the driver threw; `08000` where there is no SQLSTATE, for then there is no server. */
function readError(thrown: unknown): Failure {
  let error = thrown as Error
  while (error.cause instanceof Error) error = error.cause
  return { sqlstate: sqlStateOf(thrown) ?? '08000', error: error.message }
}

/** Classes 22 (data exception), 23 (integrity constraint) and 54 (a value too large for an index) blame a row. */
export const blamesData = (sqlstate = '') => /^(22|23|54)/.test(sqlstate)
