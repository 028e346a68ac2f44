/** How large what grows is, and how old. */

import { sql } from 'drizzle-orm'
import type { Database } from './connect.ts'

export type Growth = {
  partitions: number
  /** Of rows and indexes. */
  eventBytes: number
  identityBytes: number
  /** Seconds since the lower end of the oldest partition; null where that has none. */
  oldestSeconds: number | null
  /** Seconds until the end of the newest. */
  aheadSeconds: number
  /** Rows that no partition is made for, as far as the statistics know. */
  strays: number
}

export async function readGrowth(db: Database): Promise<Growth> {
  const { rows } = await db.execute<Record<keyof Growth, string | null>>(sql`
    with partition as (
      select c.oid, c.reltuples, bound = 'DEFAULT' as stray,
        (regexp_match(bound, 'FROM \\(''([^'']+)'))[1]::timestamptz as lower,
        (regexp_match(bound, 'TO \\(''([^'']+)'))[1]::timestamptz as upper
      from pg_inherits i join pg_class c on c.oid = i.inhrelid, pg_get_expr(c.relpartbound, c.oid) as bound
      where i.inhparent = 'events'::regclass)
    select count(*) filter (where not stray) as partitions, sum(pg_total_relation_size(oid)) as "eventBytes",
      pg_total_relation_size('event_ids') as "identityBytes",
      case when count(*) filter (where not stray and lower is null) = 0
        then extract(epoch from now() - min(lower)) end as "oldestSeconds",
      greatest(0, extract(epoch from max(upper) - now())) as "aheadSeconds",
      greatest(0, sum(reltuples) filter (where stray)) as strays
    from partition`)
  const [row] = rows
  const { oldestSeconds, ...counts } = Object.fromEntries(
    Object.entries(row!).map(([name, value]) => [name, value === null ? null : Number(value)]),
  ) as Growth
  return { ...counts, oldestSeconds }
}

/** A partition with its rows as the statistics know them, or what became of it. */
export type PartitionStatus = {
  from: string | null
  to: string | null
  state: 'here' | 'default' | 'archiving' | 'archived' | 'dropped'
  rows: number | null
  bytes: number | null
  file: string | null
}

/** Oldest first; the default partition last. */
export async function listGrowth(db: Database): Promise<PartitionStatus[]> {
  const { rows } = await db.execute<PartitionStatus & { rows: string | null; bytes: string | null }>(sql`
    select to_char(lower at time zone 'UTC', 'YYYY-MM-DD') as "from", to_char(upper at time zone 'UTC', 'YYYY-MM-DD') as "to",
      state, rows, bytes, file
    from (
      select lower, upper, rows, bytes, file,
        case when done_at is null then 'archiving' when file is null then 'dropped' else 'archived' end as state
      from event_archives
      union all
      select (regexp_match(bound, 'FROM \\(''([^'']+)'))[1]::timestamptz,
        (regexp_match(bound, 'TO \\(''([^'']+)'))[1]::timestamptz,
        nullif(c.reltuples, -1)::bigint, pg_total_relation_size(c.oid), null,
        case when bound = 'DEFAULT' then 'default' else 'here' end
      from pg_inherits i join pg_class c on c.oid = i.inhrelid, pg_get_expr(c.relpartbound, c.oid) as bound
      where i.inhparent = 'events'::regclass) both_
    order by upper nulls last, lower nulls first`)
  const number = (value: string | number | null) => (value === null ? null : Number(value))
  return rows.map((row) => ({ ...row, rows: number(row.rows), bytes: number(row.bytes) }))
}
