/** The tables of Millrace. `npm run migration` turns a change here into SQL under migrations/. */

import { sql } from 'drizzle-orm'
import {
  bigint,
  boolean,
  doublePrecision,
  index,
  integer,
  json,
  jsonb,
  pgTable,
  primaryKey,
  smallint,
  text,
  timestamp,
  uniqueIndex,
  uuid,
} from 'drizzle-orm/pg-core'

/** Whose row it is (docs/security.md). */
const tenant = () => text().notNull().default('default')

const instant = (name: string) => timestamp(name, { withTimezone: true, precision: 6 })

/**
 * Every identity ever stored, once for ever per (tenant, source, id), also when the event's partition is archived and
 * gone. The key is the first 16 bytes of a SHA-256 over the three (SQL function `event_key`): a row has 68 bytes and an
 * index entry 42, however long the ids are. Of 10^12 identities two share a key with a probability of 10^-15.
 */
export const eventIds = pgTable('event_ids', {
  key: uuid().primaryKey(),
  /** Where its row is: the partition, and in it the index. */
  publishedAt: instant('published_at').notNull(),
  streamSeq: bigint('stream_seq', { mode: 'number' }).notNull(),
  streamPlace: integer('stream_place').notNull().default(0),
})

/** An event as stored. Partitioned by `published_at` (partitions.ts), which Drizzle cannot say. */
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
    /** Which event of the message it was, counted from 0. */
    streamPlace: integer('stream_place').notNull().default(0),
    batchId: uuid('batch_id').notNull(),
    tenant: text().notNull().default('default'),
  },
  (table) => [
    index('events_by_time').on(table.publishedAt, table.streamSeq, table.streamPlace),
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
    tenant: tenant(),
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

/**
 * One execution of a workflow. Each status but the final ones has one small partial index, so a run that starts in
 * its worker and ends there costs two index entries at its start and one at its end.
 */
export const workflowRuns = pgTable(
  'workflow_runs',
  {
    /** UUIDv7: sorts by creation. */
    runId: uuid('run_id').primaryKey(),
    /** The caller's own id, if given; a new run under the same id is the next generation. */
    id: text(),
    generation: integer().notNull().default(1),
    name: text().notNull(),
    /** The code that may run it: a worker takes only runs of the (name, version) pairs it has loaded. */
    version: text().notNull().default(''),
    queue: text().notNull().default('default'),
    /** Lower is sooner. */
    priority: smallint().notNull().default(0),
    /** Runs with the same key share the limit of their queue (workflow_queues). */
    concurrencyKey: text('concurrency_key'),
    status: text({
      enum: ['queued', 'running', 'waiting', 'completed', 'failed', 'cancelled', 'terminated', 'continued', 'stuck'],
    }).notNull(),
    input: json(),
    output: json(),
    error: json(),
    /** What the run chose to show (`run.setState`). */
    state: json(),
    /** For filters; never read by the engine. */
    attributes: jsonb(),
    traceparent: text(),
    /** Whose lease covers it; the lease itself is the worker's row. */
    worker: uuid(),
    /** One more at every claim; a write of an older epoch changes nothing. */
    epoch: integer().notNull().default(0),
    /** One more whenever something came in: a signal, an event, a child's end, a cancellation. */
    wakes: integer().notNull().default(0),
    /** While waiting: when to wake it at the latest. While queued: its turn came then. */
    dueAt: instant('due_at'),
    deadlineAt: instant('deadline_at'),
    parentId: uuid('parent_id'),
    /** The first run of a chain of continue-as-new; null in that first run. */
    chainId: uuid('chain_id'),
    cancelRequestedAt: instant('cancel_requested_at'),
    /** It was begun in a queue that has limits, and counts against them until it ends. */
    holds: boolean().notNull().default(false),
    createdAt: instant('created_at').notNull().default(sql`clock_timestamp()`),
    finishedAt: instant('finished_at'),
    tenant: tenant(),
  },
  (table) => [
    uniqueIndex('workflow_runs_by_name')
      .on(table.id, table.tenant, table.generation)
      .where(sql`${table.id} is not null`),
    index('workflow_runs_queued').on(table.queue, table.priority, table.runId).where(sql`${table.status} = 'queued'`),
    index('workflow_runs_running').on(table.worker).where(sql`${table.status} = 'running'`),
    index('workflow_runs_chain').on(table.chainId).where(sql`${table.chainId} is not null`),
    index('workflow_runs_holding')
      .on(table.queue, table.concurrencyKey)
      .where(sql`${table.holds} and ${table.finishedAt} is null`),
    index('workflow_runs_dead').on(table.runId).where(sql`${table.status} in ('failed', 'stuck')`),
    index('workflow_runs_by_attributes')
      .using('gin', table.attributes.op('jsonb_path_ops'))
      .where(sql`${table.attributes} is not null`),
    index('workflow_runs_due').on(table.dueAt).where(sql`${table.status} = 'waiting'`),
  ],
)

/** The journal: what each call of a run came to. */
export const workflowSteps = pgTable(
  'workflow_steps',
  {
    runId: uuid('run_id').notNull(),
    /** Which call of the run, counted as the code makes them. -1 is the cancellation. */
    pos: integer().notNull(),
    /** In which order results reached the code; null while the call is open (asleep, waiting, to be retried). */
    ord: integer(),
    kind: text({ enum: ['step', 'sleep', 'event', 'signal', 'child', 'patch', 'cancel'] }).notNull(),
    name: text().notNull(),
    output: json(),
    error: json(),
    attempt: smallint().notNull().default(1),
    dueAt: instant('due_at'),
    at: instant('at').notNull(),
    /** How long the last attempt took. */
    ms: doublePrecision(),
  },
  (table) => [primaryKey({ columns: [table.runId, table.pos] })],
)

/** A process that runs workflows, and until when the database believes in it. Its row is the lease of all its runs. */
export const workflowWorkers = pgTable('workflow_workers', {
  id: uuid().primaryKey(),
  name: text().notNull(),
  expiresAt: instant('expires_at').notNull(),
})

/** Which events concern workflows: one row per trigger (with its workflow), one per awaited type (without). */
export const workflowListeners = pgTable(
  'workflow_listeners',
  {
    type: text().notNull(),
    /** Where an event carries its key, from its root: {subject} or {data,orderId}. Empty: no key. */
    path: text().array().notNull(),
    /** '' for an awaited type. */
    workflow: text().notNull().default(''),
    version: text().notNull().default(''),
    queue: text().notNull().default('default'),
    priority: smallint().notNull().default(0),
    /** Whether a key may start another run once the last one has ended. */
    reuse: text({ enum: ['never', 'finished'] })
      .notNull()
      .default('never'),
    timeoutMs: bigint('timeout_ms', { mode: 'number' }),
    /** Where an event carries the key of the queue's limits; null: its runs have none. */
    concurrencyPath: text('concurrency_path').array(),
  },
  (table) => [primaryKey({ columns: [table.type, table.workflow, table.path] })],
)

/**
 * Where events and waiting runs of one key meet. Both sides write the row first, so the second waits for the first
 * and sees what it left.
 */
export const workflowMailboxes = pgTable(
  'workflow_mailboxes',
  {
    type: text().notNull(),
    path: text().array().notNull(),
    key: text().notNull(),
    /** The number of the newest event. */
    count: bigint({ mode: 'number' }).notNull().default(0),
    /** The last events, oldest first: number, source, id, time. */
    mail: jsonb().notNull().default([]),
    touchedAt: instant('touched_at').notNull().default(sql`clock_timestamp()`),
    tenant: tenant(),
  },
  (table) => [
    primaryKey({ name: 'workflow_mailboxes_pk', columns: [table.type, table.key, table.path, table.tenant] }),
    index('workflow_mailboxes_by_time').on(table.touchedAt),
  ],
)

/** A run's open `waitFor`, until it has its event. */
export const workflowWaits = pgTable(
  'workflow_waits',
  {
    runId: uuid('run_id').notNull(),
    pos: integer().notNull(),
    type: text().notNull(),
    path: text().array().notNull(),
    key: text().notNull(),
    /** Set once an event has come. */
    mailNumber: bigint('mail_number', { mode: 'number' }),
    source: text(),
    eventId: text('event_id'),
    /** The run's own, so that an event need not look at it. */
    tenant: tenant(),
  },
  (table) => [
    primaryKey({ columns: [table.runId, table.pos] }),
    index('workflow_waits_by_key').on(table.type, table.key, table.path).where(sql`${table.source} is null`),
  ],
)

export const workflowSignals = pgTable(
  'workflow_signals',
  {
    runId: uuid('run_id').notNull(),
    seq: bigint({ mode: 'number' }).notNull().generatedAlwaysAsIdentity(),
    name: text().notNull(),
    payload: json(),
    at: instant('at').notNull().default(sql`clock_timestamp()`),
  },
  (table) => [primaryKey({ columns: [table.runId, table.seq] })],
)

/** The JSON Schema of a type's data, by version; an event without a version of its own is held to the highest. */
export const eventSchemas = pgTable(
  'event_schemas',
  {
    type: text().notNull(),
    version: integer().notNull(),
    schema: jsonb().notNull(),
    updatedAt: instant('updated_at').notNull().default(sql`clock_timestamp()`),
    tenant: tenant(),
  },
  (table) => [primaryKey({ name: 'event_schemas_pk', columns: [table.type, table.version, table.tenant] })],
)

/** What happens to an event that its schema refuses; `strict` where a type has no row. */
export const eventSchemaModes = pgTable(
  'event_schema_modes',
  {
    type: text().notNull(),
    mode: text({ enum: ['strict', 'warn', 'off'] }).notNull(),
    tenant: tenant(),
  },
  (table) => [primaryKey({ name: 'event_schema_modes_pk', columns: [table.type, table.tenant] })],
)

/** The code that workers have loaded: what a start by name needs to know. */
export const workflowDefinitions = pgTable(
  'workflow_definitions',
  {
    name: text().notNull(),
    version: text().notNull(),
    queue: text().notNull(),
    priority: smallint().notNull(),
    timeoutMs: bigint('timeout_ms', { mode: 'number' }),
    /** The version seen first last is the newest: an old worker that starts again makes nothing old new. */
    firstSeenAt: instant('first_seen_at').notNull().default(sql`clock_timestamp()`),
  },
  (table) => [primaryKey({ columns: [table.name, table.version] })],
)

/** The limits of a queue; a queue without a row has none. */
export const workflowQueues = pgTable('workflow_queues', {
  queue: text().primaryKey(),
  /** Runs begun and not ended, in the whole queue and of one concurrency key. */
  concurrency: integer(),
  perKey: integer('per_key'),
  /** At most so many runs begin at once, and so many in each `rate_ms` on average: a bucket of tokens. */
  rate: integer(),
  rateMs: bigint('rate_ms', { mode: 'number' }),
  tokens: doublePrecision().notNull().default(0),
  refilledAt: instant('refilled_at').notNull().default(sql`clock_timestamp()`),
})

/** What starts runs at set times. A pg-boss job per schedule rings at `next_at` (workflow/schedules.ts). */
export const workflowSchedules = pgTable(
  'workflow_schedules',
  {
    name: text().notNull(),
    workflow: text().notNull(),
    /** null: the newest at the time of the start */
    version: text(),
    input: json(),
    /** queue, priority, concurrencyKey, timeout and attributes of its runs */
    options: jsonb().notNull().default({}),
    cron: text(),
    everyMs: bigint('every_ms', { mode: 'number' }),
    timezone: text().notNull().default('UTC'),
    overlap: text({ enum: ['skip', 'buffer', 'allow', 'cancel', 'terminate'] }).notNull(),
    /** A time missed by more (all workers were down) is passed over. */
    catchUpMs: bigint('catch_up_ms', { mode: 'number' }).notNull(),
    paused: boolean().notNull().default(false),
    /** One more at every change; a ring of an older revision does nothing. */
    revision: integer().notNull().default(1),
    nextAt: instant('next_at').notNull(),
    /** Its runs that may still be open. */
    running: uuid().array().notNull().default([]),
    /** A time that waits for the open run to end. */
    bufferedAt: instant('buffered_at'),
    lastAt: instant('last_at'),
    lastRunId: uuid('last_run_id'),
    started: bigint({ mode: 'number' }).notNull().default(0),
    skipped: bigint({ mode: 'number' }).notNull().default(0),
    createdAt: instant('created_at').notNull().default(sql`clock_timestamp()`),
    tenant: tenant(),
  },
  (table) => [primaryKey({ name: 'workflow_schedules_pk', columns: [table.name, table.tenant] })],
)

/**
 * Who may do what. Of a key's secret there is only the hash; a key that ended stays, so that audit rows go on naming it.
 */
export const apiKeys = pgTable(
  'api_keys',
  {
    id: uuid().primaryKey(),
    /** The part of the key that may be seen, and by which it is found. */
    prefix: text().notNull().unique(),
    /** SHA-256 of the secret part, in hexadecimal. */
    secretHash: text('secret_hash').notNull(),
    tenant: text().notNull(),
    name: text().notNull(),
    scopes: text({ enum: ['ingest', 'read', 'operate', 'admin'] })
      .array()
      .notNull(),
    /** Of which sources it may send events: as they are, or with `*` at the end; null: of all. */
    sources: text().array(),
    /** Events per second on average, and at once; null: no limit. */
    rate: integer(),
    burst: integer(),
    createdAt: instant('created_at').notNull().default(sql`clock_timestamp()`),
    expiresAt: instant('expires_at'),
    revokedAt: instant('revoked_at'),
    /** The key that this one takes the place of. */
    rotatedFrom: uuid('rotated_from'),
    /** Processes read what changed since they last looked. */
    changedAt: instant('changed_at').notNull().default(sql`clock_timestamp()`),
  },
  (table) => [index('api_keys_by_change').on(table.changedAt), index('api_keys_by_tenant').on(table.tenant)],
)

/** Every act of an operator, over HTTP or from a terminal. Rows are only added: a trigger refuses everything else. */
export const audit = pgTable(
  'audit',
  {
    seq: bigint({ mode: 'number' }).primaryKey().generatedAlwaysAsIdentity(),
    at: instant('at').notNull().default(sql`clock_timestamp()`),
    tenant: text().notNull(),
    /** `key <name> <prefix>`, or `cli <user>` */
    actor: text().notNull(),
    keyId: uuid('key_id'),
    action: text().notNull(),
    target: text(),
    detail: jsonb(),
  },
  (table) => [index('audit_by_tenant').on(table.tenant, table.seq)],
)

/** Partitions of `events` that retention took away. Until `done_at` the rows are in the table `archiving_<n>`. */
export const eventArchives = pgTable('event_archives', {
  n: integer().primaryKey().generatedAlwaysAsIdentity(),
  /** Of `published_at`, `upper` not included; null: from the beginning. */
  lower: instant('lower'),
  upper: instant('upper').notNull(),
  detachedAt: instant('detached_at').notNull().default(sql`clock_timestamp()`),
  rows: bigint({ mode: 'number' }),
  /** In ARCHIVE_DIR; null: dropped without an archive, as ARCHIVE_DIR=none says. */
  file: text(),
  bytes: bigint({ mode: 'number' }),
  sha256: text(),
  doneAt: instant('done_at'),
})

/** Migrations after which older processes cannot work: a process refuses to start where it does not know one of them. */
export const schemaBreaks = pgTable('schema_breaks', { migration: text().primaryKey() })
