/**
 * Takes partitions of `events` that are wholly older than EVENTS_RETENTION_DAYS away, oldest first, each in steps that may
 * be cut off anywhere and are taken up again:
 * 1. detach it and write that down, in one transaction: from now on it has no new rows, and late ones find another place
 * 2. archive its rows (archive.ts)
 * 3. drop it and write that down, in one transaction
 * Its identities stay in `event_ids`: an event sent again is still a duplicate.
 */

import { setTimeout as pause } from 'node:timers/promises'
import type pg from 'pg'
import { sqlStateOf } from '../db/connect.ts'
import { ensurePartitions, listPartitions, type Partition } from '../db/partitions.ts'
import { MillraceError } from '../errors.ts'
import { type Archive, archiveTable } from './archive.ts'

/** Detaching waits for who reads `events`, and others wait behind it: a little, and again. */
const LOCK_WAIT_MS = 1_000
const LOCK_TRIES_MAX = 10
const LOCK_NOT_AVAILABLE = '55P03'

const DAY_MS = 24 * 3600 * 1_000

/** @property archive  null: dropped without one */
export type Retired = { from: Date | null; to: Date; archive: Archive | null }

type Detached = { n: number; lower: Date | null; upper: Date }

/**
 * @param dir  null: drop without an archive
 * @throws MillraceError `overloaded` where someone reads `events` for so long that nothing can be detached
 */
export async function retireEvents(
  client: pg.ClientBase,
  { days, dir, partitionDays }: { days: number; dir: string | null; partitionDays: number },
  signal: AbortSignal,
  nowMs = Date.now(),
): Promise<Retired[]> {
  const retired: Retired[] = []
  const { rows: open } = await client.query<Detached>(
    'select n, lower, upper from event_archives where done_at is null order by n',
  )
  for (const detached of open) retired.push(await finish(client, detached, dir, signal))
  // Rows outside all partitions get theirs, however old.
  await ensurePartitions(client, partitionDays, nowMs)
  for (const partition of await listPartitions(client)) {
    if (partition.to > nowMs - days * DAY_MS) break
    signal.throwIfAborted()
    retired.push(await finish(client, await detach(client, partition), dir, signal))
  }
  return retired
}

async function detach(client: pg.ClientBase, { name, from, to }: Partition): Promise<Detached> {
  const lower = Number.isFinite(from) ? new Date(from) : null
  for (let tries = 1; ; tries++) {
    await client.query('begin')
    try {
      await client.query(`set local lock_timeout = ${LOCK_WAIT_MS}`)
      await client.query(`alter table events detach partition ${name}`)
      const { rows } = await client.query<Detached>(
        'insert into event_archives (lower, upper) values ($1, $2) returning n, lower, upper',
        [lower, new Date(to)],
      )
      await client.query(`alter table ${name} rename to archiving_${rows[0]!.n}`)
      await client.query('commit')
      return rows[0]!
    } catch (error) {
      await client.query('rollback')
      if (sqlStateOf(error) !== LOCK_NOT_AVAILABLE) throw error
      if (tries === LOCK_TRIES_MAX)
        throw new MillraceError('overloaded', `Someone reads events for long: ${name} stays until the next time`, {
          cause: error,
        })
    }
    await pause(LOCK_WAIT_MS)
  }
}

async function finish(
  client: pg.ClientBase,
  { n, lower, upper }: Detached,
  dir: string | null,
  signal: AbortSignal,
): Promise<Retired> {
  const table = `archiving_${n}`
  const { rows } = await client.query(`select exists (select from ${table}) as filled`)
  const archive =
    dir === null || !rows[0].filled
      ? null
      : await archiveTable(client, { table, dir, name: nameOf({ n, lower, upper }), about: { lower, upper } }, signal)
  await client.query('begin')
  try {
    await client.query(`drop table ${table}`)
    await client.query(
      `update event_archives set rows = $2, file = $3, bytes = $4, sha256 = $5, done_at = clock_timestamp() where n = $1`,
      [n, archive?.rows, archive?.file, archive?.bytes, archive?.sha256],
    )
    await client.query('commit')
  } catch (error) {
    await client.query('rollback')
    throw error
  }
  return { from: lower, to: upper, archive }
}

/** `n` because events that come late, when their partition is archived, go into another of the same days. */
const nameOf = ({ n, lower, upper }: Detached): string =>
  `events-${lower === null ? 'first' : dayOf(lower)}-${dayOf(upper)}-${n}`

const dayOf = (date: Date): string => date.toISOString().slice(0, 10).replaceAll('-', '')
