/**
 * The lease of a process over its runs: one row, renewed by one statement however many runs there are, on the
 * database's clock. Who finds an expired row deletes it; from then on none of that worker's writes go through
 * (journal-sql.ts), and its runs are queued again.
 */

import { performance } from 'node:perf_hooks'
import type pg from 'pg'
import { MillraceError } from '../errors.ts'
import type { Clock } from './clock.ts'
import { repeat } from './repeat.ts'
import { inSession } from './session.ts'

/** A worker that dies is noticed after this. Renewed three times as often. */
export const LEASE_MS = 6_000

const REGISTER = `
  insert into workflow_workers (id, name, expires_at) values ($1, $2, clock_timestamp() + $3 * interval '1 ms')`

const RENEW = `
  update workflow_workers set expires_at = clock_timestamp() + $2 * interval '1 ms' where id = $1
  returning extract(epoch from clock_timestamp())::float8 * 1000 as ms`

/** @property name  says to an operator which process it is */
type Lease = { pool: pg.Pool; clock: Clock; id: string; name: string; leaseMs: number }

/** @returns until when it surely holds, by performance.now() */
export async function takeLease({ pool, clock, id, name, leaseMs }: Lease): Promise<number> {
  const askedAt = performance.now()
  await pool.query({ name: 'millrace_register', text: REGISTER, values: [id, name, leaseMs] })
  return (await renew({ pool, clock, id, leaseMs })) ?? askedAt
}

/** @returns until when it surely holds; null once the row is gone: every run of this worker belongs to others */
async function renew({ pool, clock, id, leaseMs }: Omit<Lease, 'name'>): Promise<number | null> {
  const askedAt = performance.now()
  const { rows } = await pool.query({ name: 'millrace_renew', text: RENEW, values: [id, leaseMs] })
  if (rows[0] === undefined) return null
  clock.set(rows[0].ms, askedAt)
  return askedAt + leaseMs
}

/** Renewals come every third of a lease. Two have failed by now, and what must end before the lease does has a sixth. */
const DOUBT_AFTER = 5 / 6

/**
 * Renews a lease until stopped.
 * @param heldUntil  as takeLease returned it
 * @param onDoubt    it may be lost soon, and nobody would be told in time; called again and again until it is renewed
 * @param onLoss     it was lost; a new one is taken next
 * @returns how to stop
 */
export function keepLease(
  lease: Lease,
  heldUntil: number,
  { onDoubt, onLoss, onError }: { onDoubt: () => void; onLoss: () => void; onError: (error: unknown) => void },
): () => Promise<void> {
  const doubtMs = lease.leaseMs * (1 - DOUBT_AFTER)
  let timer: NodeJS.Timeout | undefined
  const doubt = () => {
    timer = setTimeout(doubt, doubtMs)
    onDoubt()
  }
  const holds = (until: number) => {
    clearTimeout(timer)
    timer = setTimeout(doubt, until - performance.now() - doubtMs)
  }
  holds(heldUntil)
  const stop = repeat(
    lease.leaseMs / 3,
    async () => {
      const until = await renew(lease)
      if (until !== null) return holds(until)
      onLoss()
      holds(await takeLease(lease))
      onError(new MillraceError('conflict', 'This worker was taken for dead: its runs go on elsewhere'))
    },
    onError,
  )
  return async () => {
    await stop()
    clearTimeout(timer)
  }
}

/** Gives the worker's runs back at once, in one transaction with the end of its lease. */
export const endLease = (pool: pg.Pool, id: string) => requeue(pool, END, [id])

/** Queues the runs of workers whose lease has run out. @returns how many runs */
export const endExpiredLeases = (pool: pg.Pool) => requeue(pool, EXPIRE, [])

const END = 'delete from workflow_workers where id = $1 returning id'

const EXPIRE = `
  delete from workflow_workers where id in (
    select id from workflow_workers where expires_at < clock_timestamp() for update skip locked)
  returning id`

/** A second statement, so that it sees what the ended worker committed while the first one waited for it. */
const REQUEUE = `
  update workflow_runs set status = 'queued', worker = null where status = 'running' and worker = any($1::uuid[])`

/** What a wait can look back to; an older event of its key does not count for one that opens now. */
const MAIL_DAYS = 7

/** Clears a part of the mailboxes that nobody has touched for long. Called at every beat: small, and soon done. */
export async function clearMailboxes(pool: pg.Pool): Promise<void> {
  await pool.query({
    name: 'millrace_clear_mailboxes',
    text: `
      delete from workflow_mailboxes m using (
        select type, key, path, tenant from workflow_mailboxes
        where touched_at < statement_timestamp() - $1 * interval '1 day'
        order by touched_at limit 1000 for update skip locked) old
      where m.type = old.type and m.key = old.key and m.path = old.path and m.tenant = old.tenant`,
    values: [MAIL_DAYS],
  })
}

async function requeue(pool: pg.Pool, ending: string, values: unknown[]): Promise<number> {
  return inSession(pool, async (client) => {
    const ended = await client.query(ending, values)
    if (ended.rowCount === 0) return 0
    const queued = await client.query(REQUEUE, [ended.rows.map((row) => row.id)])
    return queued.rowCount ?? 0
  })
}
