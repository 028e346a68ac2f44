/**
 * The worker pool of a process. Each worker repeats one straight line:
 * 1. take the next batch (batch.ts)
 * 2. insert it in one transaction (insert.ts)
 * 3. acknowledge each message, after COMMIT of its last event; for those that Postgres refuses, see refusals.ts
 * 4. count, time and trace what happened (record.ts)
 * An outage of Postgres holds the batch: its messages are kept alive and tried again, no delivery is used up.
 */

import { setTimeout as pause } from 'node:timers/promises'
import type { PgBoss } from 'pg-boss'
import type { Broker } from '../broker/connect.ts'
import { nak, working } from '../broker/delivery.ts'
import type { Config } from '../config.ts'
import { describe } from '../errors.ts'
import type { Telemetry } from '../telemetry/telemetry.ts'
import { reportPool } from '../telemetry/workers.ts'
import { type Assembler, type Batch, capacityFor, createAssembler } from './batch.ts'
import { createBatchLog } from './batch-log.ts'
import { type BatchOutcome, type InsertDeps, insertBatch } from './insert.ts'
import type { Log } from './log.ts'
import { eventOf, messagesOf, type Parcel, settle } from './parcel.ts'
import { openPull } from './pull.ts'
import { type RecordDeps, recordBatch } from './record.ts'
import { createRefusalDesk, type RefusalDesk, type Refused } from './refusals.ts'
import { trimStream } from './trim.ts'

export type ConsumeDeps = InsertDeps & { broker: Broker; jobs: PgBoss; log: Log; telemetry: Telemetry }
type WorkDeps = ConsumeDeps & RecordDeps & { refusals: RefusalDesk }

/** An outage is probed this often at most; the first probe comes soon. */
const HOLD_MS_MIN = 100
const HOLD_MS_MAX = 2_000
/** A worker that dies at once each time must not keep the processor busy. */
const RESTART_MS = 1_000

/**
 * Runs the pool until the signal, then finishes and acknowledges what is in hand.
 * @returns when every worker has ended
 */
export async function consume(deps: ConsumeDeps, config: Config, signal: AbortSignal): Promise<void> {
  const pull = openPull(deps, {
    capacity: capacityFor(config, config.WORKER_BATCH_SIZE),
    requestMax: config.WORKER_ADAPTIVE ? Number.POSITIVE_INFINITY : config.NATS_PULL_BATCH_SIZE,
    ackWaitMs: config.ACK_WAIT_MS,
  })
  const { pool } = deps.telemetry
  const assembler = createAssembler({ pull, pool }, config)
  const batchLog = createBatchLog(deps)
  const reporting = reportPool(deps, pool)
  const refusals = createRefusalDesk(deps, config)
  const stop = () => {
    pool.drain()
    void pull.close()
  }
  signal.addEventListener('abort', stop, { once: true })
  if (signal.aborted) stop()
  await Promise.all([
    trimStream(deps, config, signal),
    ...Array.from({ length: config.WORKER_POOL_SIZE }, (_, index) =>
      keepWorking({ ...deps, batchLog, refusals }, config, assembler, index, signal),
    ),
  ])
  await pull.close()
  refusals.close()
  await batchLog.close()
  reporting.stop()
  // With NATS away the last acknowledgements are lost; their events are delivered again, and found to be duplicates.
  if (deps.broker.connected()) await deps.broker.nc.flush().catch(() => {})
}

/** Starts a worker again when it dies of a defect, which harms neither the others nor its own events. */
async function keepWorking(
  deps: WorkDeps,
  config: Config,
  assembler: Assembler,
  index: number,
  signal: AbortSignal,
): Promise<void> {
  const { pool } = deps.telemetry
  for (;;) {
    pool.started(index)
    try {
      await work(deps, config, assembler, index, signal)
      break
    } catch (error) {
      deps.log.error({ worker: index, error: describe(error) }, 'a worker died')
      pool.died(index, describe(error))
      if (signal.aborted) break
      await pause(RESTART_MS, undefined, { signal }).catch(() => {})
    }
  }
  pool.ended(index)
}

async function work(
  deps: WorkDeps,
  config: Config,
  assembler: Assembler,
  index: number,
  signal: AbortSignal,
): Promise<void> {
  for (let batch = await assembler.next(); batch !== null; batch = await assembler.next()) {
    let insertMs = 0
    deps.telemetry.pool.took(index, batch.size)
    try {
      const outcome = await insertOrHold(deps, config, batch, index, signal)
      insertMs = outcome.insertMs
      await answer(deps, batch, outcome, index, signal)
      recordBatch(deps, index, batch, outcome)
    } catch (error) {
      // Of those that were answered already, JetStream ignores this.
      for (const message of messagesOf(batch.parcels)) nak(message, config.RETRY_DELAY_MS)
      throw error
    } finally {
      assembler.inserted(batch.size, insertMs)
    }
  }
}

/** Inserts the batch; while Postgres is away, keeps its messages ours and tries again until it is back or we stop. */
async function insertOrHold(
  deps: ConsumeDeps,
  config: Config,
  batch: Batch,
  index: number,
  signal: AbortSignal,
): Promise<BatchOutcome> {
  const { metrics, pool } = deps.telemetry
  const stillOurs = setInterval(
    () => messagesOf(batch.parcels).forEach((message) => void working(message)),
    config.ACK_WAIT_MS / 3,
  )
  try {
    for (let holdMs = HOLD_MS_MIN; ; holdMs = Math.min(HOLD_MS_MAX, holdMs * 2)) {
      const outcome = await insertBatch(deps, batch.parcels)
      if (outcome.kind === 'settled' || signal.aborted) return outcome
      deps.log.warn({ sqlstate: outcome.sqlstate, error: outcome.error, size: batch.size }, 'holding a batch')
      metrics.batchFailed(outcome.sqlstate)
      pool.held(index, `${outcome.sqlstate} ${outcome.error}`)
      await pause(holdMs, undefined, { signal }).catch(() => {})
    }
  } finally {
    clearInterval(stillOurs)
  }
}

async function answer(
  deps: WorkDeps,
  batch: Batch,
  outcome: BatchOutcome,
  index: number,
  signal: AbortSignal,
): Promise<void> {
  if (outcome.kind === 'postponed') {
    // Only at shutdown: another process may have it at once.
    for (const message of messagesOf(batch.parcels)) nak(message, 0)
    return
  }
  const again: Parcel[] = []
  const refused: Refused[] = []
  const heard = new Set<string>()
  let committed = 0
  for (const result of outcome.outcomes) {
    const { parcel } = result
    switch (result.kind) {
      case 'stored':
        committed += parcel.events
        heard.add(parcel.commitReply)
        if (parcel.from.deliveries === 1) settle(parcel)
        else again.push(parcel)
        break
      case 'poison':
        refused.push({ event: eventOf(parcel), sqlstate: result.sqlstate, error: result.error })
        break
    }
  }
  notifyWaiters(deps.broker, heard)
  deps.refusals.committed(committed)
  const onHold = (reason: string) => deps.telemetry.pool.held(index, reason)
  const settled = await deps.refusals.settle({ refused, again, size: batch.size }, onHold, signal)
  if (settled) again.forEach(settle)
  // As above: only at shutdown.
  else for (const message of messagesOf([...refused.map(({ event }) => event.parcel), ...again])) nak(message, 0)
}

/** One message per waiting API process and batch; what was committed, that process reads from Postgres. */
function notifyWaiters({ nc }: Broker, replies: Set<string>): void {
  replies.delete('')
  for (const reply of replies) nc.publish(reply)
}
