/**
 * The partitions of `events`, by range of `published_at`: made ahead of time, each when nothing waits for it. What falls
 * into none goes into `events_default`, so that ingestion never stops for a missing one, and is moved to its own here.
 */

import type pg from 'pg'
import { sqlStateOf } from './connect.ts'

/** Weeks, as long as nobody asks for something else: few enough to keep for ever, short enough to drop. */
export const PARTITION_DAYS = 7

const DAY_MS = 24 * 3600 * 1_000
/** A Monday. */
const ORIGIN_MS = 4 * DAY_MS
/** So far ahead partitions are made: for so long nobody may be there to make the next. */
const AHEAD_MS = 14 * DAY_MS
/** Only who holds it makes partitions. */
const PARTITION_LOCK = 7_461_204
/** Attaching locks events_default; who waits long for a reader of it makes others wait as long. */
const LOCK_WAIT_MS = 2_000
const LOCK_NOT_AVAILABLE = '55P03'

/** @property from, to  in ms since 1970, `to` not included; -Infinity for the first */
export type Partition = { name: string; from: number; to: number }

/** All but events_default, oldest first. */
export async function listPartitions(client: pg.ClientBase): Promise<Partition[]> {
  const { rows } = await client.query<{ name: string; from: number; to: number }>(`
    select c.relname as name,
      extract(epoch from coalesce((regexp_match(bound, 'FROM \\(''([^'']+)'))[1], '-infinity')::timestamptz)::float8 * 1000 as "from",
      extract(epoch from (regexp_match(bound, 'TO \\(''([^'']+)'))[1]::timestamptz)::float8 * 1000 as "to"
    from pg_inherits i join pg_class c on c.oid = i.inhrelid, pg_get_expr(c.relpartbound, c.oid) as bound
    where i.inhparent = 'events'::regclass and bound <> 'DEFAULT'
    order by 2`)
  return rows
}

/**
 * Makes the partitions that are missing for the next two weeks and for what events_default holds, of `partitionDays`
 * each, or as much as their neighbours leave. Stops no insert; waits briefly for readers.
 * @returns the names of those left for the next time, because someone reads events_default for long
 */
export async function ensurePartitions(
  client: pg.ClientBase,
  partitionDays: number,
  nowMs = Date.now(),
): Promise<string[]> {
  const known = await listPartitions(client)
  const missing: Partition[] = []
  const cover = (ms: number): Partition => {
    const there = [...known, ...missing].find(({ from, to }) => from <= ms && ms < to)
    if (there !== undefined) return there
    const gap = gapAround(known, ms, partitionDays * DAY_MS)
    missing.push(gap)
    return gap
  }
  for (let ms = nowMs; ms <= nowMs + AHEAD_MS; ms = cover(ms).to);
  const { rows: strays } = await client.query<{ ms: number }>(
    `select distinct floor(extract(epoch from published_at) / 86400)::float8 * 86400000 as ms from events_default`,
  )
  for (const { ms } of strays) cover(ms)
  const left: string[] = []
  for (const partition of missing) if (!(await makePartition(client, partition))) left.push(partition.name)
  return left
}

function gapAround(known: Partition[], ms: number, stepMs: number): Partition {
  const start = ORIGIN_MS + Math.floor((ms - ORIGIN_MS) / stepMs) * stepMs
  const from = Math.max(start, ...known.filter((one) => one.to <= ms).map((one) => one.to))
  const to = Math.min(start + stepMs, ...known.filter((one) => one.from > ms).map((one) => one.from))
  return { name: `events_${new Date(from).toISOString().slice(0, 10).replaceAll('-', '')}`, from, to }
}

async function makePartition(client: pg.ClientBase, { name, from, to }: Partition): Promise<boolean> {
  const [lower, upper] = [new Date(from).toISOString(), new Date(to).toISOString()]
  await client.query('begin')
  try {
    await client.query(`set local lock_timeout = ${LOCK_WAIT_MS}`)
    await client.query('select pg_advisory_xact_lock($1)', [PARTITION_LOCK])
    const { rows } = await client.query('select to_regclass($1) is null as missing', [name])
    if (rows[0].missing) {
      await client.query('lock table events_default in access exclusive mode')
      await client.query(`create table ${name} (like events including defaults including constraints)`)
      await client.query(
        `with moved as (delete from events_default where published_at >= $1 and published_at < $2 returning *)
         insert into ${name} select * from moved`,
        [lower, upper],
      )
      await client.query(`alter table events attach partition ${name} for values from ('${lower}') to ('${upper}')`)
    }
    await client.query('commit')
    return true
  } catch (error) {
    await client.query('rollback')
    if (sqlStateOf(error) !== LOCK_NOT_AVAILABLE) throw error
    return false
  }
}
