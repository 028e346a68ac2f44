/** What is told of a batch once JetStream has its answers: metrics, its row in `batches`, and its trace. */

import { nowMs } from '../clock.ts'
import { traceBatch } from '../telemetry/batch-trace.ts'
import { PROCESS_NAME } from '../telemetry/resource.ts'
import type { Telemetry } from '../telemetry/telemetry.ts'
import type { Batch } from './batch.ts'
import type { BatchLog } from './batch-log.ts'
import { type BatchOutcome, INSERT_TEXT } from './insert.ts'

export type RecordDeps = { telemetry: Telemetry; batchLog: BatchLog }

/** Counts every event, sampled or not, and traces the sampled ones. */
export function recordBatch(deps: RecordDeps, index: number, batch: Batch, outcome: BatchOutcome): void {
  const { metrics, tracing, pool } = deps.telemetry
  const worker = `${PROCESS_NAME}#${index}`
  const redelivered = batch.events.reduce((count, event) => count + (event.deliveries > 1 ? 1 : 0), 0)
  if (redelivered > 0) metrics.redelivered(redelivered)
  if (outcome.kind === 'settled') pool.committed(index, recordCommit(deps, worker, batch, outcome))
  else {
    metrics.batchFailed(outcome.sqlstate)
    pool.gaveBack(index)
  }
  traceBatch(tracing, {
    batchId: outcome.batchId,
    worker,
    events: batch.events,
    outcomeOf: (seq) => (outcome.kind === 'settled' ? outcome.outcomes.get(seq)! : outcome),
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
  for (const event of batch.events) {
    switch (outcome.outcomes.get(event.seq)!.kind) {
      case 'inserted':
        inserted++
        metrics.eventCommitted(event.receivedMs, event.publishedMs, outcome.endedMs)
        break
      case 'duplicate':
        duplicates++
        break
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
    size: batch.events.length,
    inserted,
    fillMs,
    insertMs,
    committedMs: endedMs,
  })
  return inserted + duplicates
}
