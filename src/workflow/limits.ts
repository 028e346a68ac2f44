/** What a queue may have in hand at once, and how fast it may begin: rows that every claim of the queue keeps to. */

import type pg from 'pg'
import { type Actor, recordActOn } from '../access/audit.ts'
import { type Duration, milliseconds } from '../durations.ts'
import { MillraceError } from '../errors.ts'
import { inSession } from './session.ts'

/**
 * @property concurrency  runs begun and not ended, asleep or at work, in the whole queue
 * @property perKey       the same, of one concurrency key; 1 makes runs of a key go one after the other
 * @property rate         so many runs begin in each `per` on average, and at once at most
 */
export type QueueLimits = { concurrency?: number; perKey?: number; rate?: { runs: number; per: Duration } }

const SET = `
  insert into workflow_queues (queue, concurrency, per_key, rate, rate_ms, tokens) values ($1, $2, $3, $4, $5, coalesce($4, 0))
  on conflict (queue) do update set concurrency = excluded.concurrency, per_key = excluded.per_key,
    rate = excluded.rate, rate_ms = excluded.rate_ms,
    tokens = least(workflow_queues.tokens, excluded.tokens)`

const LIST = `
  select q.queue, q.concurrency, q.per_key as "perKey", q.rate, q.rate_ms::float8 as "rateMs",
    (select count(*)::int from workflow_runs r where r.queue = q.queue and r.holds and r.finished_at is null) as holding,
    (select count(*)::int from (
      select from workflow_runs r where r.queue = q.queue and r.status = 'queued' limit 10001) w) as queued
  from workflow_queues q order by q.queue`

/** Limits a queue from the next claim on; runs that are already begun go on. */
export async function setLimits(
  pool: pg.Pool,
  queue: string,
  limits: QueueLimits,
  by: Actor | null = null,
): Promise<void> {
  const { concurrency, perKey, rate } = limits
  for (const [name, value] of Object.entries({ concurrency, perKey, 'rate.runs': rate?.runs }))
    if (value !== undefined && (!Number.isInteger(value) || value < 1 || value > 1_000_000))
      throw new MillraceError('invalid_request', `${name} must be a whole number from 1 to 1,000,000`)
  if (concurrency === undefined && perKey === undefined && rate === undefined)
    throw new MillraceError('invalid_request', 'Give concurrency, perKey or rate; removing the limits is another call')
  const rateMs = rate === undefined ? null : Math.max(1, milliseconds(rate.per))
  await inSession(pool, async (client) => {
    await client.query(SET, [queue, concurrency ?? null, perKey ?? null, rate?.runs ?? null, rateMs])
    await recordActOn(client, by, { action: 'queue.limit', target: queue, detail: limits })
  })
}

/** @throws MillraceError `not_found` for a queue without limits */
export async function removeLimits(pool: pg.Pool, queue: string, by: Actor | null = null): Promise<void> {
  await inSession(pool, async (client) => {
    const { rowCount } = await client.query('delete from workflow_queues where queue = $1', [queue])
    if (rowCount === 0) throw new MillraceError('not_found', `Queue ${queue} has no limits`)
    await recordActOn(client, by, { action: 'queue.unlimit', target: queue })
  })
}

/**
 * @property holding  runs that count against the limits now
 * @property queued   runs that wait for their turn; 10,001 stands for more
 */
export type LimitedQueue = { queue: string; limits: QueueLimits; holding: number; queued: number }

export async function listLimits(pool: pg.Pool): Promise<LimitedQueue[]> {
  const { rows } = await pool.query(LIST)
  return rows.map(({ queue, concurrency, perKey, rate, rateMs, holding, queued }) => ({
    queue,
    limits: {
      ...(concurrency === null ? {} : { concurrency }),
      ...(perKey === null ? {} : { perKey }),
      ...(rate === null ? {} : { rate: { runs: rate, per: rateMs } }),
    },
    holding,
    queued,
  }))
}

/** Which queues have limits, as a worker last read it. Claims check it again; only starts in place rely on it. */
export type LimitedQueues = { has: (queue: string) => boolean; refresh: () => Promise<void> }

export function readLimitedQueues(pool: pg.Pool): LimitedQueues {
  let limited = new Set<string>()
  return {
    has: (queue) => limited.has(queue),
    async refresh() {
      const { rows } = await pool.query({ name: 'millrace_limited', text: 'select queue from workflow_queues' })
      limited = new Set(rows.map((row) => row.queue))
    },
  }
}
