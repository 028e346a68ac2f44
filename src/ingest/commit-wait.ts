/**
 * ?wait=committed. Workers send an empty message to this process's inbox after each COMMIT that holds one of its events;
 * what was committed is then read from Postgres, which is the truth: a row with our stream sequence and place is ours, any
 * other was there before. One query serves all waiters; a slow poll covers messages that were lost.
 */

import { sql } from 'drizzle-orm'
import { createInbox } from 'nats'
import type { Broker } from '../broker/connect.ts'
import type { Config } from '../config.ts'
import type { Database } from '../db/connect.ts'
import { describe } from '../errors.ts'
import type { Log } from './log.ts'
import type { AwaitedEvent } from './outcomes.ts'

export type CommitWait = {
  /** What events carry as `commitReply`. */
  reply: string
  /** How many commits were heard of; see `wait`. */
  heard: () => number
  /**
   * Writes `inserted`, `duplicate` or `dead_lettered` into the outcomes, for COMMIT_WAIT_MS at most; what is not known
   * by then stays `accepted`. Returns early when Postgres is away for that long, or at the signal.
   * @param heardBefore  `heard()` from before the events were published: commits since then may be theirs
   */
  wait: (events: AwaitedEvent[], heardBefore: number, signal: AbortSignal) => Promise<void>
  close: () => void
}

const POLL_MS = 500
const KEYS_PER_QUERY_MAX = 1_000

type Waiter = { open: AwaitedEvent[]; done: () => void }

export function createCommitWait(
  { db, broker, log }: { db: Database; broker: Broker; log: Log },
  { COMMIT_WAIT_MS }: Pick<Config, 'COMMIT_WAIT_MS'>,
): CommitWait {
  const waiters = new Set<Waiter>()
  const reply = createInbox()
  let heard = 0
  let looking = false
  let lookAgain = false
  let poll: NodeJS.Timeout | undefined

  const subscription = broker.nc.subscribe(reply, {
    callback: () => {
      heard++
      void look(false)
    },
  })

  /** @param everything  also what stands behind events that are not there yet: commits come in order, but for retries */
  async function look(everything: boolean): Promise<void> {
    if (waiters.size === 0) return
    if (looking) {
      lookAgain = true
      return
    }
    looking = true
    try {
      do {
        lookAgain = false
        await lookOnce(everything)
      } while (lookAgain && waiters.size > 0)
    } catch (error) {
      log.warn({ error: describe(error) }, 'cannot see what is committed; trying again')
    } finally {
      looking = false
    }
  }

  async function lookOnce(everything: boolean): Promise<void> {
    const open = [...waiters].flatMap((waiter) => waiter.open)
    for (let i = 0; i < open.length; i += KEYS_PER_QUERY_MAX) {
      const page = open.slice(i, i + KEYS_PER_QUERY_MAX)
      const found = await findFate(db, page, everything)
      if (found === 0 && !everything) break
    }
    for (const waiter of waiters) {
      waiter.open = waiter.open.filter(({ outcome }) => outcome.status === 'accepted')
      if (waiter.open.length === 0) waiter.done()
    }
  }

  async function wait(events: AwaitedEvent[], heardBefore: number, signal: AbortSignal): Promise<void> {
    if (signal.aborted) return
    const { promise, resolve } = Promise.withResolvers<void>()
    const waiter: Waiter = { open: events, done: resolve }
    const timer = setTimeout(resolve, COMMIT_WAIT_MS)
    signal.addEventListener('abort', () => resolve(), { once: true })
    waiters.add(waiter)
    poll ??= setInterval(() => void look(true), POLL_MS)
    if (heard !== heardBefore) void look(false)
    await promise
    clearTimeout(timer)
    waiters.delete(waiter)
    if (waiters.size > 0) return
    clearInterval(poll)
    poll = undefined
  }

  function close(): void {
    clearInterval(poll)
    poll = undefined
    subscription.unsubscribe()
    for (const waiter of waiters) waiter.done()
  }

  return { reply, heard: () => heard, wait, close }
}

/** Writes what Postgres knows of these events into their outcomes; returns of how many it knows. */
async function findFate(db: Database, events: AwaitedEvent[], alsoDead: boolean): Promise<number> {
  const keys = JSON.stringify(
    events.map(({ tenant, source, id, seq, place }, n) => ({ tenant, source, id, seq, place, n })),
  )
  const { rows } = await db.execute<{ n: number; ours: boolean | null }>(
    alsoDead ? rowsOrDeadLetters(keys) : rowsOf(keys),
  )
  for (const { n, ours } of rows)
    events[n]!.outcome.status = ours === null ? 'dead_lettered' : ours ? 'inserted' : 'duplicate'
  return rows.length
}

const rowsOf = (keys: string) => sql`
  select wanted.n, (stored.stream_seq, stored.stream_place) = (wanted.seq, wanted.place) as ours
  from jsonb_to_recordset(${keys}::jsonb) as wanted(tenant text, source text, id text, seq bigint, place int, n int)
  join event_ids as stored on stored.key = event_key(wanted.tenant, wanted.source, wanted.id)`

/** A dead letter's audit row names the delivery by its sequence and place: an earlier event of the same identity is not this one. */
const rowsOrDeadLetters = (keys: string) => sql`
  select wanted.n, (stored.stream_seq, stored.stream_place) = (wanted.seq, wanted.place) as ours
  from jsonb_to_recordset(${keys}::jsonb) as wanted(tenant text, source text, id text, seq bigint, place int, n int)
  left join event_ids as stored on stored.key = event_key(wanted.tenant, wanted.source, wanted.id)
  where stored.key is not null or exists (
    select from dead_letter_audit as audit
    where audit.tenant = wanted.tenant and audit.source = wanted.source and audit.event_id = wanted.id and audit.action = 'recorded'
      and audit.detail->'streamSeq' = to_jsonb(wanted.seq)
      and coalesce((audit.detail->>'streamPlace')::int, 0) = wanted.place)`
