/** What is told of a batch once JetStream has its answers: metrics, its row in `batches`, and its trace. */

import { nowMs } from '../clock.ts'
import { type AttemptedEvent, isSampled, LINKS_MAX, traceBatch } from '../telemetry/batch-trace.ts'
import { PROCESS_NAME } from '../telemetry/resource.ts'
import type { Telemetry } from '../telemetry/telemetry.ts'
import type { Batch } from './batch.ts'
import type { BatchLog } from './batch-log.ts'
import { type BatchOutcome, INSERT_TEXT, type ParcelOutcome } from './insert.ts'
import { countEvents, namesOf, type Parcel } from './parcel.ts'

export type RecordDeps = { telemetry: Telemetry; batchLog: BatchLog }

/** Counts every event, sampled or not, and traces the sampled ones. */
export function recordBatch(deps: RecordDeps, index: number, batch: Batch, outcome: BatchOutcome): void {
  const { metrics, tracing, pool } = deps.telemetry
  const worker = `${PROCESS_NAME}#${index}`
  const redelivered = countEvents(batch.parcels.filter(({ from }) => from.deliveries > 1))
  if (redelivered > 0) metrics.redelivered(redelivered)
  if (outcome.kind === 'settled') pool.committed(index, recordCommit(deps, worker, batch, outcome))
  else {
    metrics.batchFailed(outcome.sqlstate)
    pool.gaveBack(index)
  }
  traceBatch(tracing, {
    batchId: outcome.batchId,
    worker,
    size: batch.size,
    sampled: tracing.tracer === undefined ? [] : sampledOf(batch, outcome),
    startedMs: batch.closedMs - batch.fillMs,
    closedMs: batch.closedMs,
    insertStartedMs: outcome.endedMs - outcome.insertMs,
    insertEndedMs: outcome.endedMs,
    answeredMs: nowMs(),
    statement: INSERT_TEXT,
    error: outcome.kind === 'settled' ? undefined : { code: outcome.sqlstate, message: outcome.error },
  })
}

/** @returns how many events are in Postgres now */
function recordCommit(
  { telemetry: { metrics }, batchLog }: RecordDeps,
  worker: string,
  batch: Batch,
  outcome: BatchOutcome & { kind: 'settled' },
): number {
  let inserted = 0
  let duplicates = 0
  for (const result of outcome.outcomes) {
    switch (result.kind) {
      case 'stored': {
        const { receivedMs, from } = result.parcel
        inserted += result.inserted
        // When a message comes again because of one event, the others are stored by its earlier delivery.
        if (!isRetried(result.parcel)) duplicates += result.parcel.events - result.inserted
        metrics.eventsCommitted(receivedMs, from.publishedMs, outcome.endedMs, result.inserted)
        break
      }
      case 'poison':
        break
    }
  }
  if (inserted + duplicates === 0) return 0
  const { fillMs } = batch
  const { insertMs, endedMs } = outcome
  metrics.batchCommitted({ inserted, duplicates, fillMs, insertMs })
  batchLog.record({
    id: outcome.batchId,
    worker,
    size: batch.size,
    inserted,
    fillMs,
    insertMs,
    committedMs: endedMs,
  })
  return inserted + duplicates
}

const isRetried = ({ from }: Parcel) => from.deliveries > 1 && from.events > 1

/** The events whose traces tell of this attempt; only they are parsed. */
function sampledOf(batch: Batch, outcome: BatchOutcome): AttemptedEvent[] {
  const results: ({ parcel: Parcel } & (ParcelOutcome | (BatchOutcome & { kind: 'postponed' })))[] =
    outcome.kind === 'settled' ? outcome.outcomes : batch.parcels.map((parcel) => ({ ...outcome, parcel }))
  const events: AttemptedEvent[] = []
  for (const result of results) {
    const { from, place, traceparent } = result.parcel
    if (!isSampled(traceparent) || (result.kind === 'stored' && result.inserted === 0 && isRetried(result.parcel)))
      continue
    for (const [n, name] of namesOf(result.parcel).entries()) {
      if (events.length === LINKS_MAX) return events
      const { seq, publishedMs, deliveries } = from
      const at = { seq, place: place + n, traceparent, publishedMs, deliveries }
      events.push({ ...name, ...at, outcome: outcomeAt(result, place + n) })
    }
  }
  return events
}

function outcomeAt(
  result: ParcelOutcome | (BatchOutcome & { kind: 'postponed' }),
  place: number,
): AttemptedEvent['outcome'] {
  if (result.kind !== 'stored') return result
  return { kind: (result.places?.has(place) ?? result.inserted > 0) ? 'inserted' : 'duplicate' }
}
