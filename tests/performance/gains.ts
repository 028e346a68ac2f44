/** The stages, what each is expected to gain over the one before, and what was measured. */

import { median } from './chart.ts'

export type Stage = { key: string; name: string; env: Record<string, string>; says: string }

const fixed = (pool: number, batch: number, pull: number) => ({
  WORKER_ADAPTIVE: 'false',
  WORKER_POOL_SIZE: String(pool),
  WORKER_BATCH_SIZE: String(batch),
  NATS_PULL_BATCH_SIZE: String(pull),
})

export const STAGES: Stage[] = [
  { key: 'one', name: 'one worker, batch 1', env: fixed(1, 1, 1), says: 'one event per transaction and per pull' },
  { key: 'pool', name: 'pool of 4', env: fixed(4, 1, 1), says: 'the same by four workers at once' },
  {
    key: 'batch',
    name: '+ batch 50',
    env: fixed(4, 50, 1),
    says: 'fifty events per transaction, lingering up to 0.5 s',
  },
  { key: 'pull', name: '+ pull batch 100', env: fixed(4, 50, 100), says: 'a hundred messages per pull request' },
  { key: 'adaptive', name: 'adaptive', env: {}, says: 'the default: batch, linger and pull follow the load' },
]

/** One stage in one round. */
export type Measured = {
  committed: number
  /** While draining the backlog. */
  eventsPerS: number
  batchSize: number
  /** Transactions that insert events, per 1,000 events. */
  insertsPer1000: number
  /** All transactions by Postgres's own count, the worker's start and bookkeeping included. */
  commitsPer1000: number
  pullsPer1000: number
  /** Every message from the worker to nats-server, acknowledgements included. */
  messagesPer1000: number
  /** Queue latency under the light load. */
  lightMs: { p50: number; p99: number }
  /** Events committed by the time in s since the first batch. */
  curve: [atS: number, events: number][]
}

export type Comparison = {
  startedAt: string
  rounds: number
  backlog: number
  lightEventsPerS: number
  cores: number
  /** Load average before the run. */
  loadBefore: number
  /** By stage, then by round. */
  measured: Measured[][]
}

export type Gain = {
  says: string
  /** Low and high of what was expected; null where no figure was promised. */
  expected: [number, number] | null
  /** The median of the rounds' ratios, and their extremes. */
  factor: number
  low: number
  high: number
  /** Whether every round alone gives the same verdict; on a busy machine they may not. */
  agreed: boolean
  /** Of the median. */
  verdict: 'more than expected' | 'as expected' | 'less than expected' | 'no figure was promised'
  why: string
}

/** A measured 49.6 is fifty. */
const TOLERANCE = 0.05

/** Sets each stage beside the one before it. */
export function gainsOf({ measured }: Comparison): Gain[] {
  const [one, pool, batch, pull, adaptive] = measured as [Measured[], Measured[], Measured[], Measured[], Measured[]]
  const gain = (
    says: string,
    expected: [number, number] | null,
    ratio: (round: number) => number,
    why: string,
  ): Gain => {
    const factors = one.map((_, round) => ratio(round))
    const factor = median(factors)
    return {
      says,
      expected,
      factor,
      low: Math.min(...factors),
      high: Math.max(...factors),
      verdict: judge(expected, factor),
      agreed: factors.every((one) => judge(expected, one) === judge(expected, factor)),
      why,
    }
  }
  const faster = (over: Measured[], than: Measured[]) => (round: number) =>
    over[round]!.eventsPerS / than[round]!.eventsPerS
  return [
    gain(
      'pool of 4: throughput',
      [3, 5],
      faster(pool, one),
      'four transactions wait for the disk at once; the gain ends where fsyncs or cores are the limit',
    ),
    gain(
      'batch 50: fewer insert transactions',
      [50, 50],
      (r) => pool[r]!.insertsPer1000 / batch[r]!.insertsPer1000,
      'each is three round trips: BEGIN, INSERT, COMMIT',
    ),
    gain(
      'the same, all transactions counted',
      null,
      (r) => pool[r]!.commitsPer1000 / batch[r]!.commitsPer1000,
      'by pg_stat_database: the worker’s start, its log of batches and Postgres’s own vacuuming do not shrink with the batch',
    ),
    gain(
      'pull batch 100: fewer pull requests',
      [100, 100],
      (r) => batch[r]!.pullsPer1000 / pull[r]!.pullsPer1000,
      'one request brings a hundred messages',
    ),
    gain(
      'the same, all messages to NATS counted',
      null,
      (r) => batch[r]!.messagesPer1000 / pull[r]!.messagesPer1000,
      'every event is still acknowledged by a message of its own, for which nobody waits',
    ),
    gain('batch 50: throughput', null, faster(batch, pool), 'fifty rows share one transaction'),
    gain('pull batch 100: throughput', null, faster(pull, batch), 'fewer requests to send and to answer'),
    gain('adaptive over all fixed: throughput', null, faster(adaptive, pull), 'batches grow to what the backlog fills'),
    gain('adaptive over one worker: throughput', null, faster(adaptive, one), 'all stages together'),
    gain(
      'adaptive over all fixed: light-load latency',
      null,
      (r) => pull[r]!.lightMs.p50 / adaptive[r]!.lightMs.p50,
      'an event on an idle system leaves at once instead of lingering for fifty',
    ),
  ]
}

function judge(expected: [number, number] | null, factor: number): Gain['verdict'] {
  if (expected === null) return 'no figure was promised'
  if (factor < expected[0] * (1 - TOLERANCE)) return 'less than expected'
  if (factor > expected[1] * (1 + TOLERANCE)) return 'more than expected'
  return 'as expected'
}
