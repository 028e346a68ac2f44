/** The tables of Millrace. `npm run migration` turns a change here into SQL under migrations/. */

import { sql } from 'drizzle-orm'
import {
  bigint,
  doublePrecision,
  index,
  integer,
  jsonb,
  pgTable,
  primaryKey,
  text,
  timestamp,
  uuid,
} from 'drizzle-orm/pg-core'

const instant = (name: string) => timestamp(name, { withTimezone: true, precision: 6 })

/** An event as stored, once for ever per (source, id). */
export const events = pgTable(
  'events',
  {
    source: text().notNull(),
    id: text().notNull(),
    type: text().notNull(),
    subject: text(),
    time: instant('time'),
    datacontenttype: text(),
    dataschema: text(),
    data: jsonb(),
    /** CloudEvents `data_base64`: data that is not JSON. */
    dataBase64: text('data_base64'),
    extensions: jsonb(),
    /** W3C trace id; Postgres reads and compares the 32 hexadecimal digits as a uuid of 16 bytes. */
    traceId: uuid('trace_id'),
    receivedAt: instant('received_at').notNull(),
    publishedAt: instant('published_at').notNull(),
    streamSeq: bigint('stream_seq', { mode: 'number' }).notNull(),
    batchId: uuid('batch_id').notNull(),
  },
  (table) => [
    primaryKey({ columns: [table.source, table.id] }),
    index('events_by_time').on(table.publishedAt, table.streamSeq),
    index('events_by_trace').on(table.traceId),
  ],
)

/** One committed transaction of a worker. Its commit time is known only after COMMIT, so it is written just after. */
export const batches = pgTable(
  'batches',
  {
    id: uuid().primaryKey(),
    worker: text().notNull(),
    size: integer().notNull(),
    inserted: integer().notNull(),
    fillMs: doublePrecision('fill_ms').notNull(),
    insertMs: doublePrecision('insert_ms').notNull(),
    committedAt: instant('committed_at').notNull(),
  },
  (table) => [index('batches_by_time').on(table.committedAt)],
)

/**
 * Who did what to which dead letter, and when. The dead letters themselves are pg-boss jobs; the `recorded` row holds
 * what they are searched by, so that no search reads payloads.
 */
export const deadLetterAudit = pgTable(
  'dead_letter_audit',
  {
    seq: bigint({ mode: 'number' }).primaryKey().generatedAlwaysAsIdentity(),
    deadLetterId: uuid('dead_letter_id').notNull(),
    source: text(),
    eventId: text('event_id'),
    type: text(),
    /** SQLSTATE, or `unreadable`. */
    code: text(),
    action: text({ enum: ['recorded', 'replayed', 'discarded'] }).notNull(),
    actor: text().notNull(),
    at: instant('at').notNull().default(sql`clock_timestamp()`),
    detail: jsonb(),
  },
  (table) => [
    // Hash, because what a stranger puts on the stream may carry an id longer than a B-tree takes.
    index('dead_letter_audit_by_event').using('hash', table.eventId),
    index('dead_letter_audit_by_type').on(table.type, table.seq),
    index('dead_letter_audit_by_code').on(table.code, table.seq),
    index('dead_letter_audit_by_time').on(table.at),
    index('dead_letter_audit_by_letter').on(table.deadLetterId),
  ],
)
