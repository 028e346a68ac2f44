/**
 * Events meet workflows here, in the transaction that inserts the events, in any ingest worker: it need not have loaded
 * any workflow, since triggers and waits are rows.
 *
 * 1. Is any listener registered? If not, that was all.
 * 2. Triggered runs are inserted (keyed ones once), and every event of an awaited type goes into the mailbox of its key.
 * 3. Open waits on those mailboxes get the event, and their runs are woken.
 * 4. After COMMIT the caller tells the others (publishWakes). A lost hint only costs the time until a sweep.
 *
 * Mailboxes make it race-free: a wait also writes its mailbox first (journal-sql.ts), so of an event and a wait that
 * come at the same time the second waits for the first and finds it.
 */

import { type SQL, sql } from 'drizzle-orm'
import type { Transaction } from '../db/connect.ts'
import type { Wakes } from './wakes.ts'

/** Events of one message that this transaction has inserted, and the W3C trace context they came with ('' for none). */
export type InsertedEvents = {
  seq: number
  publishedMs: number
  /** The first one's place in the message, and how many there are from there. */
  place: number
  events: number
  traceparent: string
}

const NOTHING: Wakes = { queues: [], runs: [] }

/**
 * Starts and wakes runs for newly inserted events, as part of the caller's transaction.
 * @returns what to publish after COMMIT
 */
export async function matchEvents(tx: Transaction, inserted: InsertedEvents[]): Promise<Wakes> {
  if (inserted.length === 0) return NOTHING
  // Holds the rows until the end of the transaction: who adds one waits for us (listen.ts).
  const { rows: listeners } = await tx.execute<{ type: string }>(sql`select type from workflow_listeners for key share`)
  if (listeners.length === 0) return NOTHING
  const matched = await tx.execute<Matched>(match(JSON.stringify(inserted)))
  const queues = new Set<string>()
  const posted: Matched[] = []
  for (const row of matched.rows)
    if (row.kind === 'started') queues.add(row.queue!)
    else posted.push(row)
  if (posted.length === 0) return { queues: [...queues], runs: [] }
  // A statement of its own: it must see the waits that committed while the one before stood at their mailbox.
  const { rows: woken } = await tx.execute<{ run_id: string; status: string; queue: string }>(
    wake(JSON.stringify(posted)),
  )
  for (const run of woken) if (run.status === 'queued') queues.add(run.queue)
  return { queues: [...queues], runs: woken.map((run) => run.run_id) }
}

type Matched = {
  kind: 'started' | 'posted'
  queue: string | null
  type: string | null
  path: string[] | null
  key: string | null
  tenant: string | null
  n: string | null
  source: string | null
  id: string | null
}

/** Unread events a mailbox keeps: who waits for a key takes them one by one, the newest are kept. */
const MAIL_MAX = sql.raw('100')

/**
 * Puts the events of `keyed` into their mailboxes, numbered on from those that came before. A new mailbox counts from
 * the time in ms, so that one which was cleared away and made again goes on above what its readers had taken.
 */
const POST = sql`
  insert into workflow_mailboxes as m (type, path, key, tenant, count, mail)
  select type, path, key, tenant, base + count(*),
    jsonb_agg(jsonb_build_object('n', base + n, 'source', source, 'id', id, 'ms', ms) order by n)
  from (
    select type, path, key, tenant, source, id, ms,
      row_number() over (partition by type, path, key, tenant order by published_at, stream_seq, stream_place) as n
    from keyed where workflow = '') numbered,
    (select (extract(epoch from statement_timestamp()) * 1000)::bigint as base) based
  group by type, path, key, tenant, base order by type, key, path, tenant
  on conflict (type, key, path, tenant) do update set
    touched_at = clock_timestamp(),
    count = m.count + jsonb_array_length(excluded.mail),
    mail = (
      select jsonb_agg(newest.one order by newest.n)
      from (
        select one, (one->>'n')::bigint as n
        from (
          select old.one from jsonb_array_elements(m.mail) old(one)
          union all
          select jsonb_set(new.one, '{n}',
            to_jsonb((new.one->>'n')::bigint - excluded.count + jsonb_array_length(excluded.mail) + m.count))
          from jsonb_array_elements(excluded.mail) new(one)) both_
        order by (one->>'n')::bigint desc limit ${MAIL_MAX}) newest)
  returning m.type, m.path, m.key, m.tenant, m.count, m.mail`

/** A UUIDv7 (RFC 9562) of now: Postgres has one of its own only since 18. */
const UUIDV7 = sql.raw(`encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid()) placing
  substring(int8send((extract(epoch from clock_timestamp()) * 1000)::bigint) from 3) from 1 for 6), 52, 1), 53, 1), 'hex')::uuid`)

const match = (inserted: string): SQL => sql`
  with fresh as materialized (
    select e.*, f.traceparent
    from jsonb_to_recordset(${inserted}::jsonb)
        f(seq bigint, "publishedMs" float8, place int, events int, traceparent text), lateral (
      select source, id, type, subject, data, extensions, published_at, stream_seq, stream_place, tenant from events e
      where e.published_at = to_timestamp(f."publishedMs" / 1000) and e.stream_seq = f.seq
        and e.stream_place >= f.place and e.stream_place < f.place + f.events offset 0) e),
  keyed as materialized (
    select * from (
      select f.*, extract(epoch from clock_timestamp()) * 1000 as ms, l.path, l.workflow, l.version, l.queue, l.priority, l.reuse, l.timeout_ms,
        case when l.path = '{}' then '' else d.document #>> l.path end as key,
        case when l.concurrency_path is not null
          then left(nullif(d.document #>> l.concurrency_path, ''), 512) end as concurrency_key
      from fresh f join workflow_listeners l on l.type = f.type, lateral (
        select jsonb_build_object('source', f.source, 'id', f.id, 'type', f.type, 'subject', f.subject, 'data', f.data,
          'extensions', f.extensions) as document) d) k
    where key is not null and length(key) <= 512),
  posted as (${POST}),
  triggered as (
    select distinct on (tenant, workflow, path, case when path = '{}' then source || e'\\x1f' || id else key end) *,
      case when path <> '{}' then workflow || ':' || key end as run_key
    from keyed where workflow <> ''
    order by tenant, workflow, path, case when path = '{}' then source || e'\\x1f' || id else key end, published_at,
      stream_seq, stream_place),
  started as (
    insert into workflow_runs (run_id, id, generation, name, version, queue, priority, concurrency_key, status, input, traceparent,
      deadline_at, created_at, tenant)
    select ${UUIDV7}, t.run_key,
      case when t.reuse = 'never' or t.run_key is null then 1 else coalesce((
        select case when l.status in ('queued', 'running', 'waiting', 'stuck') then l.generation else l.generation + 1 end
        from workflow_runs l where l.id = t.run_key and l.tenant = t.tenant order by l.generation desc limit 1), 1) end,
      t.workflow, t.version, t.queue, t.priority, t.concurrency_key, 'queued', t.data, nullif(t.traceparent, ''),
      clock_timestamp() + t.timeout_ms * interval '1 ms',
      -- Before every event of this transaction, so that those of its own batch count as since its start.
      transaction_timestamp(), t.tenant
    from triggered t order by t.run_key
    on conflict do nothing
    returning queue)
  select distinct 'started' as kind, queue, null as type, null::text[] as path, null as key, null as tenant, null::bigint as n,
    null as source, null as id
  from started
  union all
  select 'posted', null, p.type, p.path, p.key, p.tenant, (mail.one->>'n')::bigint, k.source, k.id
  from posted p join keyed k on k.workflow = '' and k.type = p.type and k.path = p.path and k.key = p.key
      and k.tenant = p.tenant,
    jsonb_array_elements(p.mail) mail(one)
  where mail.one->>'source' = k.source and mail.one->>'id' = k.id`

/** Each open wait takes the first of the events just posted: earlier ones it has already looked through. */
const wake = (posted: string): SQL => sql`
  with posted as (
    select distinct on (type, path, key, tenant) *
    from jsonb_to_recordset(${posted}::jsonb)
      p(type text, path text[], key text, tenant text, n bigint, source text, id text)
    order by type, path, key, tenant, n),
  hit as (
    update workflow_waits w set mail_number = p.n, source = p.source, event_id = p.id
    from posted p
    where w.type = p.type and w.key = p.key and w.path = p.path and w.tenant = p.tenant and w.source is null
    returning w.run_id),
  locked as materialized (
    select r.run_id from workflow_runs r where r.run_id in (select run_id from hit) order by r.run_id for update)
  update workflow_runs r set wakes = r.wakes + 1,
    status = case r.status when 'waiting' then 'queued' else r.status end
  from locked where r.run_id = locked.run_id and r.status in ('queued', 'running', 'waiting')
  returning r.run_id, r.status, r.queue`

/** Events of a type that came before anyone awaited it, for one key path, into their mailboxes. */
export const backfill = (type: string, path: string[], sinceMs: number): SQL => sql`
  with keyed as materialized (
    select * from (
      select e.*, extract(epoch from published_at) * 1000 as ms, '' as workflow, p.path, case when p.path = '{}' then '' else jsonb_build_object('source', e.source,
        'id', e.id, 'type', e.type, 'subject', e.subject, 'data', e.data, 'extensions', e.extensions) #>> p.path end as key
      from (select source, id, type, subject, data, extensions, published_at, stream_seq, stream_place, tenant from events
          where published_at >= to_timestamp(${sinceMs}::float8 / 1000) and type = ${type}
          order by published_at limit 100000) e,
        (select array(select json_array_elements_text(${JSON.stringify(path)}::json)) as path) p) k
    where key is not null and length(key) <= 512)
  ${POST}`
