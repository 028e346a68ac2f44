/**
 * What a worker does with the events of a batch that Postgres refuses, after the good ones are committed:
 * 1. count the attempt, from the open record of the earlier ones (failed-batches.ts)
 * 2. at the last attempt make a dead letter of it, unless the system is suspected (suspicion.ts)
 * 3. record the others as a failed batch; all of it in one transaction
 * 4. after COMMIT, terminate the dead ones and give the messages of the others back with a delay; what a message holds
 *    besides is stored by then, so a retry inserts only what was refused
 * While Postgres is away it holds them, as consume.ts holds a batch: nothing is given up and no attempt is counted.
 */

import { setTimeout as pause } from 'node:timers/promises'
import { sql } from 'drizzle-orm'
import type { Msg } from 'nats'
import type { PgBoss } from 'pg-boss'
import { nak, term, working } from '../broker/delivery.ts'
import type { Config } from '../config.ts'
import { type Database, inTransaction, sqlStateOf, type Transaction } from '../db/connect.ts'
import { describe } from '../errors.ts'
import { PROCESS_NAME } from '../telemetry/resource.ts'
import type { Telemetry } from '../telemetry/telemetry.ts'
import { type Tracing, traceDeadLetter } from '../telemetry/tracing.ts'
import { type DeadLetter, deadLetterId, deadLetterOf, recordDeadLetters } from './dead-letters.ts'
import { attemptOf, eventKey, findOpen, type Refusal, recordFailedBatch } from './failed-batches.ts'
import { blamesData } from './insert.ts'
import type { Log } from './log.ts'
import { messagesOf, type Parcel, type ReceivedEvent, settle as settleParcel } from './parcel.ts'
import { createRecent, deadLettersAllowed, type Recent, suspicious } from './suspicion.ts'

export type RefusalDeps = { db: Database; jobs: PgBoss; log: Log; telemetry: Telemetry }

/** Doubling ends here, so that what was held back in vain comes soon after the system recovers. */
const RETRY_DELAY_MS_MAX = 30_000
/** Between two batches of a worker that commits nothing while the system is suspected. */
const SUSPECT_MS = 1_000
/** An attempt late enough for the longest delay. */
const GIVEN_BACK = 30
/** Between two tries to record while Postgres is away. */
const RECORD_AGAIN_MS = 500

export type Refused = { event: ReceivedEvent; sqlstate: string; error: string }

export type RefusalDesk = {
  /**
   * Settles the refused events of a batch and closes the records of those that were delivered again and are stored now.
   * Returns when JetStream has an answer for each of the refused; `false` when we are stopping and Postgres is away, so
   * that nothing could be recorded and nothing was answered.
   * @param again  stored parcels of the batch that were delivered before; the caller settles them afterwards
   * @param onHold hears why, whenever the worker has to wait
   */
  settle: (batch: Batch, onHold: (reason: string) => void, signal: AbortSignal) => Promise<boolean>
  /** Counts events that were stored, against which refusals are judged. */
  committed: (events: number) => void
  close: () => void
}

type Batch = { refused: Refused[]; again: Parcel[]; size: number }

type Decision = { letters: Map<string, DeadLetter>; dead: Refusal[]; retried: Refusal[] }

/** One for all workers of a process. */
export function createRefusalDesk(
  deps: RefusalDeps,
  config: Pick<Config, 'MAX_DELIVER' | 'RETRY_DELAY_MS' | 'ACK_WAIT_MS'>,
  recent: Recent = createRecent(),
): RefusalDesk {
  let watch: NodeJS.Timeout | undefined

  /** Says aloud when the suspicion begins and when it ends. */
  function judge(): void {
    const sum = recent.sum()
    if (suspicious(sum) === (watch !== undefined)) return
    deps.telemetry.metrics.suspected(watch === undefined)
    if (watch === undefined) {
      deps.log.error(sum, 'most events are refused: suspecting the system, holding back dead letters')
      watch = setInterval(judge, SUSPECT_MS)
    } else {
      deps.log.info(sum, 'no longer suspecting the system')
      close()
    }
  }

  function close(): void {
    clearInterval(watch)
    watch = undefined
  }

  async function settle(batch: Batch, onHold: (reason: string) => void, signal: AbortSignal): Promise<boolean> {
    const parcels = [...batch.refused.map(({ event }) => event.parcel), ...batch.again]
    if (parcels.length === 0) return true
    const messages = messagesOf(parcels)
    const stillOurs = setInterval(() => messages.forEach((message) => void working(message)), config.ACK_WAIT_MS / 3)
    try {
      const decision = await decideOrHold(batch, onHold, signal)
      if (decision === undefined) return false
      for (const { event, code } of decision.dead) {
        const { message, events } = event.parcel.from
        if (events === 1) term(message, `dead letter ${code}`)
        else settleParcel(event.parcel)
      }
      for (const [message, delayMs] of retryDelays(decision.retried)) nak(message, delayMs)
    } finally {
      clearInterval(stillOurs)
    }
    judge()
    if (watch !== undefined && batch.refused.length === batch.size) {
      onHold('most events are refused: suspecting the system')
      await pause(SUSPECT_MS, undefined, { signal }).catch(() => {})
    }
    return true
  }

  /** A message comes again as a whole, when the last of its refused events may. */
  function retryDelays(retried: Refusal[]): Map<Msg, number> {
    const delays = new Map<Msg, number>()
    for (const { event, attempt } of retried) {
      const { message } = event.parcel.from
      delays.set(message, Math.max(delays.get(message) ?? 0, retryDelayMs(config, attempt)))
    }
    return delays
  }

  async function decideOrHold(
    batch: Batch,
    onHold: (reason: string) => void,
    signal: AbortSignal,
  ): Promise<Decision | undefined> {
    const traced = traceOnce(deps.telemetry.tracing)
    for (;;) {
      const counted = { refused: 0, dead: 0 }
      try {
        const decision = await inTransaction(deps.db, (tx) => decide(tx, batch, counted, traced))
        for (const letter of decision.letters.values()) deps.telemetry.metrics.deadLettered(letter.code)
        return decision
      } catch (error) {
        recent.add({ refused: -counted.refused, dead: -counted.dead })
        deps.log.error(
          { error: describe(error), refused: batch.refused.length },
          'holding refused events: cannot record them',
        )
        // No outage but a defect of ours: given back, they stop neither this worker nor its other events.
        if (blamesData(sqlStateOf(error)))
          return { letters: new Map(), dead: [], retried: batch.refused.map(givenBack) }
        onHold(describe(error))
        if (signal.aborted) return undefined
        await pause(RECORD_AGAIN_MS, undefined, { signal }).catch(() => {})
      }
    }
  }

  async function decide(
    tx: Transaction,
    { refused, again, size }: Batch,
    counted: { refused: number; dead: number },
    traced: (refusal: Refusal) => string,
  ): Promise<Decision> {
    const redelivered = refused.map(({ event }) => event).filter((event) => event.deliveries > 1)
    const met = [...redelivered.map(eventKey), ...again.flatMap(eventKeys)]
    const records = await findOpen(tx, met)
    const known = await findDead(tx, redelivered.map(deadLetterId))
    const decision: Decision = { letters: new Map(), dead: [], retried: [] }
    const last: Refusal[] = []
    for (const { event, sqlstate, error } of refused) {
      const code = sqlstate === '' ? 'unreadable' : sqlstate
      const refusal = { event, code, error, attempt: attemptOf(event, records) }
      // Its letter was committed, and then its termination did not reach JetStream.
      if (known.has(deadLetterId(event))) decision.dead.push(refusal)
      else if (refusal.attempt >= config.MAX_DELIVER) last.push(refusal)
      else decision.retried.push(refusal)
    }
    // Counted before COMMIT, so that the workers of a process together keep to the allowance.
    const allowed = deadLettersAllowed(recent.sum(), last.length)
    Object.assign(counted, { refused: last.length, dead: allowed })
    recent.add(counted)
    decision.retried.push(...last.slice(allowed))
    for (const refusal of last.slice(0, allowed)) {
      decision.dead.push(refusal)
      decision.letters.set(deadLetterId(refusal.event), deadLetterOf(refusal, traced(refusal)))
    }
    await recordDeadLetters({ jobs: deps.jobs, actor: PROCESS_NAME }, tx, decision.letters)
    await recordFailedBatch(deps, tx, { refusals: decision.retried, size, settled: new Set(met), records })
    return decision
  }

  return {
    settle,
    committed: (events) => recent.add({ committed: events }),
    close,
  }
}

const eventKeys = ({ from: { seq, publishedMs }, place, events }: Parcel): string[] =>
  Array.from({ length: events }, (_, n) => eventKey({ seq, place: place + n, publishedMs }))

const givenBack = ({ event, sqlstate, error }: Refused): Refusal => ({
  event,
  code: sqlstate,
  error,
  attempt: GIVEN_BACK,
})

/** A transaction that is tried again must not tell of the same death twice. */
function traceOnce(tracing: Tracing): (refusal: Refusal) => string {
  const traces = new Map<string, string>()
  return ({ event, code, error }) => {
    const traceparent =
      traces.get(deadLetterId(event)) ??
      traceDeadLetter(tracing, {
        traceparent: event.traceparent,
        id: event.id,
        source: event.source,
        deadLetterId: deadLetterId(event),
        cause: code,
        message: error,
      })
    traces.set(deadLetterId(event), traceparent)
    return traceparent
  }
}

const retryDelayMs = ({ RETRY_DELAY_MS }: Pick<Config, 'RETRY_DELAY_MS'>, attempt: number) =>
  Math.min(RETRY_DELAY_MS * 2 ** Math.min(attempt - 1, 20), Math.max(RETRY_DELAY_MS, RETRY_DELAY_MS_MAX))

async function findDead(tx: Transaction, ids: string[]): Promise<Set<string>> {
  if (ids.length === 0) return new Set()
  const { rows } = await tx.execute<{ id: string }>(sql`
    select id from pgboss.job where name = 'dead-letters' and id = any(${sql.param(ids)}::uuid[])`)
  return new Set(rows.map(({ id }) => id))
}
