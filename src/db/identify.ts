/**
 * Before `events` becomes a partition (migration 0010), in steps that stop no one: the identities of its rows into
 * `event_ids`, and a bound that they all keep to. New rows are identified by the trigger of 0009 meanwhile. Every step
 * may be repeated, so one that was cut off is.
 */

import type pg from 'pg'

/** 16 MB of rows: some 40,000, a fraction of a second. */
const PAGES_PER_STEP = 2_000

export async function identifyEvents(client: pg.ClientBase): Promise<void> {
  const { rows } = await client.query(`select pg_relation_size('events') / current_setting('block_size')::int as pages`)
  for (let page = 0; page < Number(rows[0].pages); page += PAGES_PER_STEP)
    await client.query(IDENTIFY, [`(${page},0)`, `(${page + PAGES_PER_STEP},0)`])
  await client.query('alter table events drop constraint if exists events_first_bound')
  await client.query(BOUND)
  // Reads every row, but stands in nobody's way.
  await client.query('alter table events validate constraint events_first_bound')
}

const IDENTIFY = `
  insert into event_ids (key, published_at, stream_seq, stream_place)
  select event_key('default', source, id) as key, published_at, stream_seq, stream_place from events
  where ctid >= $1::tid and ctid < $2::tid order by key
  on conflict do nothing`

/** At least a week away, so that no one reaches it before 0010 is through. */
const BOUND = `
  do $$ begin
    execute format('alter table events add constraint events_first_bound check (published_at < %L) not valid',
      date_trunc('week', greatest(now(), (select max(published_at) from events)), 'UTC') + interval '2 weeks');
  end $$`
