/**
 * Workers of earlier versions, as far as others notice them: the statement each generation inserts with, frozen, and what
 * it does with the answer. Nothing here follows later changes of src/.
 */

import type { JsMsg } from '@nats-io/jetstream'
import { headers } from 'nats'
import type pg from 'pg'
import type { Broker } from '../../src/broker/connect.ts'

export type OldEvent = { source: string; id: string; payload: string; seq: number; publishedMs: number }

/** Until migration 0007: a message for each event, identity in its headers. */
const WITH_KEYS = `
  insert into events (source, id, type, subject, time, datacontenttype, dataschema, data, data_base64, extensions,
                      trace_id, received_at, published_at, stream_seq, batch_id)
  select source, id, event->>'type', event->>'subject', (event->>'time')::timestamptz, event->>'datacontenttype',
         event->>'dataschema', event->'data', event->>'data_base64',
         nullif(event - '{specversion,id,source,type,subject,time,datacontenttype,dataschema,data,data_base64}'::text[], '{}'),
         trace_id, to_timestamp(received_ms / 1000), to_timestamp(published_ms / 1000), seq, $8::uuid
  from (
    select source, id, payload::jsonb as event, trace_id, received_ms, published_ms, seq
    from unnest(string_to_array($1, e'\\x1e'), string_to_array($2, e'\\x1e'),
                string_to_array($3, e'\\x1e'), $4::uuid[], $5::float8[], $6::float8[], $7::bigint[])
         as sent(source, id, payload, trace_id, received_ms, published_ms, seq)
    offset 0
  ) as row
  on conflict (source, id) do nothing
  returning stream_seq`

/** At migration 0008: parcels, identity in the payload. */
const WITH_PARCELS = `
  with stored as (
    insert into events (source, id, type, subject, time, datacontenttype, dataschema, data, data_base64, extensions,
                        trace_id, received_at, published_at, stream_seq, stream_place, batch_id)
    select nullif(event->>'source', '') collate "C", nullif(event->>'id', '') collate "C", event->>'type', event->>'subject',
           (event->>'time')::timestamptz, event->>'datacontenttype', event->>'dataschema', event->'data',
           event->>'data_base64',
           nullif(event - '{specversion,id,source,type,subject,time,datacontenttype,dataschema,data,data_base64}'::text[], '{}'),
           trace_id, to_timestamp(received_ms / 1000), to_timestamp(published_ms / 1000), seq, place, $7::uuid
    from (
      select text::jsonb as event, trace_id, received_ms, published_ms, seq, place + n - 1 as place
      from unnest($1::text[], $2::uuid[], $3::float8[], $4::float8[], $5::bigint[], $6::int[])
             as parcel(texts, trace_id, received_ms, published_ms, seq, place),
           unnest(string_to_array(texts, e'\\x1e')) with ordinality as each(text, n)
      offset 0
    ) as sent
    order by 1, 2
    on conflict (source, id) do nothing
    returning stream_seq, stream_place)
  select stream_seq from stored`

/** From migration 0010 on: identities in a table of their own, without tenants. */
const WITH_IDENTITIES = `
  with sent as materialized (
    select distinct on (key) *
    from (
      select *, event_key('default', nullif(event->>'source', ''), nullif(event->>'id', '')) as key
      from (
        select text::jsonb as event, trace_id, to_timestamp(received_ms / 1000) as received_at,
               to_timestamp(published_ms / 1000) as published_at, seq, (place + n - 1)::int as place
        from unnest($1::text[], $2::uuid[], $3::float8[], $4::float8[], $5::bigint[], $6::int[])
               as parcel(texts, trace_id, received_ms, published_ms, seq, place),
             unnest(string_to_array(texts, e'\\x1e')) with ordinality as each(text, n)
        offset 0) as cast_once) as keyed
    order by key, seq, place),
  fresh as (
    insert into event_ids (key, published_at, stream_seq, stream_place)
    select key, published_at, seq, place from sent order by key
    on conflict do nothing
    returning key, stream_seq, stream_place),
  stored as (
    insert into events (source, id, type, subject, time, datacontenttype, dataschema, data, data_base64, extensions,
                        trace_id, received_at, published_at, stream_seq, stream_place, batch_id)
    select event->>'source', event->>'id', event->>'type', event->>'subject', (event->>'time')::timestamptz,
           event->>'datacontenttype', event->>'dataschema', event->'data', event->>'data_base64',
           nullif(event - '{specversion,id,source,type,subject,time,datacontenttype,dataschema,data,data_base64}'::text[], '{}'),
           trace_id, received_at, published_at, seq, place, $7::uuid
    from sent join fresh using (key) order by seq, place)
  select stream_seq from fresh`

const list = (values: unknown[]) => `{${values.join(',')}}`

/** Inserts a batch in one statement, sorted by its keys; throws what Postgres says. */
export async function insertOld(client: pg.ClientBase, migration: number, events: OldEvent[]): Promise<void> {
  const sorted = [...events].sort((a, b) => (`${a.source}\x1e${a.id}` < `${b.source}\x1e${b.id}` ? -1 : 1))
  const batchId = '019566d1-0000-7000-8000-000000000000'
  const times = list(sorted.map((event) => event.publishedMs))
  const seqs = list(sorted.map((event) => event.seq))
  const traces = list(sorted.map(() => 'null'))
  const joined = (name: 'source' | 'id' | 'payload') => sorted.map((event) => event[name]).join('\x1e')
  if (migration < 8)
    await client.query(WITH_KEYS, [
      joined('source'),
      joined('id'),
      joined('payload'),
      traces,
      times,
      times,
      seqs,
      batchId,
    ])
  else
    await client.query(migration < 10 ? WITH_PARCELS : WITH_IDENTITIES, [
      sorted.map((event) => event.payload),
      traces,
      times,
      times,
      seqs,
      list(sorted.map(() => 0)),
      batchId,
    ])
}

/** What an API of before migration 0008 put on the stream for an event. Resolves when it is stored: it was answered. */
export async function publishOld({ js }: Broker, { source, id, payload }: Pick<OldEvent, 'source' | 'id' | 'payload'>) {
  const given = headers()
  given.set('traceparent', '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00')
  given.set('Millrace-Id', id)
  given.set('Millrace-Source', source)
  given.set('Millrace-Received', String(Date.now()))
  await js.publish('events.upgraded', Buffer.from(payload), { headers: given })
}

/**
 * Pulls and inserts until stopped. A statement that Postgres does not take for its table's sake is held and tried again,
 * its messages kept alive; at the end they are given back.
 */
export async function startOldWorker({ js }: Broker, client: pg.ClientBase, migration: number) {
  const consumer = await js.consumers.get('EVENTS', 'ingest_workers')
  const seen = { committed: 0, heldFor: [] as string[] }
  let stopped = false

  async function hold(messages: JsMsg[]): Promise<void> {
    const events = messages.map((message) => ({
      source: message.headers!.get('Millrace-Source'),
      id: message.headers!.get('Millrace-Id'),
      payload: message.string(),
      seq: message.seq,
      publishedMs: message.time.getTime(),
    }))
    for (;;) {
      try {
        await insertOld(client, migration, events)
        for (const message of messages) message.ack()
        seen.committed += events.length
        return
      } catch (error) {
        seen.heldFor.push((error as pg.DatabaseError).code ?? String(error))
        for (const message of messages) message.working()
        if (stopped) {
          for (const message of messages) message.nak()
          return
        }
        await new Promise((resolve) => setTimeout(resolve, 50))
      }
    }
  }

  const working = (async () => {
    while (!stopped) {
      const messages: JsMsg[] = []
      for await (const message of await consumer.fetch({ max_messages: 20, expires: 1_000 })) messages.push(message)
      if (messages.length > 0) await hold(messages)
    }
  })()
  return {
    seen,
    stop: async () => {
      stopped = true
      await working
    },
  }
}
