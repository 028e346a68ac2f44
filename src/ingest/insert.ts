/**
 * One batch into Postgres: one static statement in one transaction, which also starts and wakes the workflow runs that the
 * events concern. A bad event is found by halving, so that the rest commits; an outage changes nothing.
 */

import { sql, TransactionRollbackError } from 'drizzle-orm'
import { PgDialect } from 'drizzle-orm/pg-core'
import { uuidv7 } from 'uuidv7'
import type { Broker } from '../broker/connect.ts'
import { nowMs } from '../clock.ts'
import { type Database, inTransaction, isMisrouted, sqlStateOf, type Transaction } from '../db/connect.ts'
import { type InsertedEvents, matchEvents } from '../workflow/events.ts'
import { publishWakes } from '../workflow/wakes.ts'
import { type OutgoingEvent, traceIdOf } from './event.ts'
import { countEvents, divide, type Parcel, unreadable } from './parcel.ts'

/** What became of a parcel, or of the part of it that halving left. */
export type ParcelOutcome = { parcel: Parcel } & (
  | {
      kind: 'stored'
      /** How many were inserted; (source, id) of the others was there before. */
      inserted: number
      /** Which ones, by place; undefined when all or none. */
      places: ReadonlySet<number> | undefined
    }
  /** Postgres refuses this very event, whatever it is stored with. `sqlstate` is empty where none can be read. */
  | { kind: 'poison'; sqlstate: string; error: string }
)

/** What became of a batch: every event of it in one outcome, or nothing yet for all of them. */
export type BatchOutcome = {
  batchId: string
  /** From the first BEGIN to the end of the last transaction. */
  insertMs: number
  /** Just after the last COMMIT or failure, in ms since 1970. */
  endedMs: number
} & (
  | { kind: 'settled'; outcomes: ParcelOutcome[] }
  /** Postgres is away, overloaded, or not what we expect: no event is to blame. */
  | ({ kind: 'postponed' } & Failure)
)

type Failure = { sqlstate: string; error: string }

/** Of `text` in Postgres's catalogue. */
const TEXT_OID = 25

/**
 * 1. `sent`: the texts of each parcel, split by their separator and cast each on its own, so that no payload can reach into
 *    another's row; `offset 0` keeps the planner from repeating the cast.
 * 2. `fresh`: those whose identity was never stored; of one that comes twice the first. In the order of the keys, because
 *    overlapping batches of two workers that lock their keys in different orders would deadlock.
 * 3. `stored`: their rows, once, also where a batch has one message twice.
 */
const insertStatement = (columns: Columns) => sql`
  with sent as materialized (
    select *, event_key(tenant, nullif(event->>'source', ''), nullif(event->>'id', '')) as key
    from (
      select text::jsonb as event, tenant, trace_id, to_timestamp(received_ms / 1000) as received_at,
             to_timestamp(published_ms / 1000) as published_at, seq, (place + n - 1)::int as place
      from unnest(${columns.texts}::text[], ${columns.traceIds}::uuid[], ${columns.receivedMs}::float8[],
                  ${columns.publishedMs}::float8[], ${columns.seqs}::bigint[], ${columns.places}::int[],
                  ${columns.tenants}::text[])
             as parcel(texts, trace_id, received_ms, published_ms, seq, place, tenant),
           unnest(string_to_array(texts, e'\\x1e')) with ordinality as each(text, n)
      offset 0) as cast_once),
  fresh as (
    insert into event_ids (key, published_at, stream_seq, stream_place)
    select key, published_at, seq, place from sent order by key, seq, place
    on conflict do nothing
    returning stream_seq, stream_place),
  stored as (
    insert into events (source, id, type, subject, time, datacontenttype, dataschema, data, data_base64, extensions,
                        trace_id, received_at, published_at, stream_seq, stream_place, batch_id, tenant)
    select event->>'source', event->>'id', event->>'type', event->>'subject', (event->>'time')::timestamptz,
           event->>'datacontenttype', event->>'dataschema', event->'data', event->>'data_base64',
           nullif(event - '{specversion,id,source,type,subject,time,datacontenttype,dataschema,data,data_base64}'::text[], '{}'),
           trace_id, received_at, published_at, seq, place, ${columns.batchId}::uuid, tenant
    from (
      select distinct on (seq, place) * from sent
      where (seq, place) in (select stream_seq, stream_place from fresh)
      order by seq, place) as once)
  select stream_seq, count(*)::int as inserted, array_agg(stream_place) as places from fresh group by stream_seq`

/** The statement as Postgres sees it, for traces. */
export const INSERT_TEXT = new PgDialect().sqlToQuery(insertStatement(columnsOf([], ''))).sql

type Columns = ReturnType<typeof columnsOf>

/** What rows need of their parcel. */
type Row = Pick<Parcel, 'tenant' | 'traceparent' | 'receivedMs' | 'place' | 'bytes'> & {
  from: Pick<Parcel['from'], 'seq' | 'publishedMs'>
}

/** One element for each parcel. */
function columnsOf(parcels: Row[], batchId: string) {
  const list = (values: (string | number)[]) => `{${values.join(',')}}`
  return {
    batchId,
    texts: textArray(parcels.map(({ bytes }) => bytes)),
    traceIds: list(parcels.map(({ traceparent }) => traceIdOf(traceparent) ?? 'null')),
    receivedMs: list(parcels.map(({ receivedMs }) => receivedMs)),
    publishedMs: list(parcels.map(({ from }) => from.publishedMs)),
    seqs: list(parcels.map(({ from }) => from.seq)),
    places: list(parcels.map(({ place }) => place)),
    // Another producer's may be any text.
    tenants: list(parcels.map(({ tenant }) => `"${tenant.replace(/["\\]/g, '\\$&')}"`)),
  }
}

/**
 * A text[] in Postgres's binary format (array_recv in its source): the bytes go from NATS to Postgres as they are, without
 * becoming strings here. Bytes that are not UTF-8 are for Postgres to refuse.
 */
function textArray(texts: Buffer[]): Buffer {
  const head = Buffer.alloc(texts.length === 0 ? 12 : 20)
  head.writeInt32BE(texts.length === 0 ? 0 : 1, 0)
  head.writeInt32BE(TEXT_OID, 8)
  if (texts.length > 0) {
    head.writeInt32BE(texts.length, 12)
    head.writeInt32BE(1, 16)
  }
  const parts: Buffer[] = [head]
  for (const text of texts) {
    const length = Buffer.allocUnsafe(4)
    length.writeInt32BE(text.length)
    parts.push(length, text)
  }
  return Buffer.concat(parts)
}

/** @property broker  tells other processes which workflow runs the events started and woke */
export type InsertDeps = { db: Database; broker: Broker | null }

/** Inserts a batch. Never throws for what Postgres says: that is the outcome. */
export async function insertBatch(deps: InsertDeps, parcels: Parcel[]): Promise<BatchOutcome> {
  const batchId = uuidv7()
  const outcomes: ParcelOutcome[] = []
  const startedAt = performance.now()
  const failure = await insertHalving(deps, parcels, batchId, outcomes)
  const ended = { batchId, insertMs: performance.now() - startedAt, endedMs: nowMs() }
  return failure === undefined ? { kind: 'settled', ...ended, outcomes } : { kind: 'postponed', ...ended, ...failure }
}

/** Inserts all rows, or each half on its own when one of them is to blame; log2(n) more transactions per bad event. */
async function insertHalving(
  deps: InsertDeps,
  given: Parcel[],
  batchId: string,
  outcomes: ParcelOutcome[],
): Promise<Failure | undefined> {
  // No text is no event, and would be no row.
  const parcels = given.filter(({ bytes }) => bytes.length > 0)
  if (parcels.length < given.length)
    for (const parcel of given)
      if (parcel.bytes.length === 0)
        outcomes.push({ parcel, kind: 'poison', sqlstate: '', error: 'the event is empty' })
  if (parcels.length === 0) return
  const events = countEvents(parcels)
  try {
    outcomes.push(...(await insertParcels(deps, parcels, batchId)))
    return
  } catch (thrown) {
    const { sqlstate, error } = readError(thrown)
    if (!blamesData(sqlstate) || isMisrouted(thrown)) return { sqlstate, error }
    if (events === 1) {
      const parcel = parcels[0]!
      const reason = unreadable(parcel.bytes)
      outcomes.push({
        parcel,
        kind: 'poison',
        ...(reason === '' ? { sqlstate, error } : { sqlstate: '', error: reason }),
      })
      return
    }
  }
  const [first, second] = divide(parcels, events >> 1)
  return (await insertHalving(deps, first, batchId, outcomes)) ?? (await insertHalving(deps, second, batchId, outcomes))
}

async function insertParcels(deps: InsertDeps, parcels: Parcel[], batchId: string): Promise<ParcelOutcome[]> {
  const { outcomes, wakes } = await inTransaction(deps.db, async (tx) => {
    const { rows } = await tx.execute<Stored>(insertStatement(columnsOf(parcels, batchId)))
    const outcomes = outcomesOf(parcels, rows)
    return { outcomes, wakes: await matchEvents(tx, outcomes.flatMap(insertedOf)) }
  })
  publishWakes(deps.broker, wakes)
  return outcomes
}

type Stored = { stream_seq: string; inserted: number; places: number[] }

function outcomesOf(parcels: Parcel[], rows: Stored[]): (ParcelOutcome & { kind: 'stored' })[] {
  const inserted = rows.reduce((sum, row) => sum + row.inserted, 0)
  if (inserted === countEvents(parcels))
    return parcels.map((parcel) => ({ parcel, kind: 'stored', inserted: parcel.events, places: undefined }))
  const stored = new Map(rows.map((row) => [Number(row.stream_seq), new Set(row.places)]))
  return parcels.map((parcel) => {
    const all = stored.get(parcel.from.seq)
    const places = new Set<number>()
    // Taken out: a batch may have one message twice, and only the first of them was inserted.
    for (let place = parcel.place; place < parcel.place + parcel.events; place++)
      if (all?.delete(place)) places.add(place)
    const some = places.size > 0 && places.size < parcel.events
    return { parcel, kind: 'stored', inserted: places.size, places: some ? places : undefined }
  })
}

/** The inserted events of a parcel: as one range, or one by one where others between them were there before. */
function insertedOf({ parcel, inserted, places }: ParcelOutcome & { kind: 'stored' }): InsertedEvents[] {
  if (inserted === 0) return []
  const { traceparent } = parcel
  const { seq, publishedMs } = parcel.from
  const range = (place: number, events: number) => ({ seq, publishedMs, traceparent, place, events })
  return places === undefined ? [range(parcel.place, parcel.events)] : [...places].map((place) => range(place, 1))
}

/** Inserts events and takes them back, so that nothing changes; tells why Postgres refuses them, if it does. */
export async function rehearse(tx: Transaction, events: OutgoingEvent[]): Promise<Failure | undefined> {
  const publishedMs = Date.now()
  const rows = events.map(({ payload, tenant, traceparent, receivedMs }, seq) => {
    return { from: { seq, publishedMs }, tenant, traceparent, receivedMs, place: 0, bytes: Buffer.from(payload) }
  })
  try {
    await tx.transaction(async (savepoint) => {
      await savepoint.execute(insertStatement(columnsOf(rows, uuidv7())))
      await matchEvents(
        savepoint,
        rows.map(({ from, traceparent }) => ({ ...from, traceparent, place: 0, events: 1 })),
      )
      savepoint.rollback()
    })
  } catch (thrown) {
    if (thrown instanceof TransactionRollbackError) return
    const failure = readError(thrown)
    if (!blamesData(failure.sqlstate) || isMisrouted(thrown)) throw thrown
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
