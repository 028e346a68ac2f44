/**
 * How large a batch may grow and how long it may linger, learned from what is measured: queue depth, arrival rate and
 * insert time. Pure, so that a test states its behaviour without a clock.
 *
 * The rule is that of group commit. On an idle system an event leaves at once. While another batch is being inserted,
 * waiting costs nothing, so the next one gathers until that insert ends, the batch is full, or the linger is over. A
 * backlog fills batches, and full batches grow to the largest allowed, however long their insert takes: most of a
 * transaction's time does not depend on its rows, so on a slow or busy database smaller batches would commit fewer events
 * and deepen the backlog that slows them. When the backlog is gone, batches are again what arrives during an insert.
 */

import type { Config } from '../config.ts'

export type Pace = {
  /** Most events of the next batch. */
  readonly size: number
  /** Longest time a batch gathers while others are being inserted, in ms. */
  readonly lingerMs: number
  /** Events per second, smoothed. */
  readonly arrivalRate: number
  /** Time from BEGIN to COMMIT, smoothed, in ms. */
  readonly insertMs: number
}

/** The longest linger that a smoothed insert time may cause. */
const LINGER_MS_MAX = 50
/** Weight of the newest measurement: about the last ten count. */
const WEIGHT = 0.2

export const startPace = (config: Pick<Config, 'WORKER_BATCH_SIZE' | 'WORKER_BATCH_SIZE_MAX'>): Pace => ({
  size: Math.min(config.WORKER_BATCH_SIZE, config.WORKER_BATCH_SIZE_MAX),
  lingerMs: 0,
  arrivalRate: 0,
  insertMs: 0,
})

/**
 * @param done    the batch that was just inserted
 * @param depth   events known to be waiting behind it
 * @param gapMs   time since the batch before it was closed
 * @param sizeMax WORKER_BATCH_SIZE_MAX
 */
export function adapt(
  pace: Pace,
  { size, insertMs, depth, gapMs }: { size: number; insertMs: number; depth: number; gapMs: number },
  sizeMax: number,
): Pace {
  const smooth = (old: number, now: number) => (old === 0 ? now : old + WEIGHT * (now - old))
  const arrivalRate = smooth(pace.arrivalRate, (size * 1_000) / Math.max(gapMs, 0.1))
  const insert = smooth(pace.insertMs, insertMs)
  const full = size >= pace.size && depth > 0
  // Fewer than one arrival is expected during an insert: gathering would only delay.
  const gathers = (arrivalRate * insert) / 1_000 >= 1
  const target = full ? Math.min(sizeMax, pace.size * 2) : pace.size
  return { size: target, lingerMs: gathers ? Math.min(LINGER_MS_MAX, 2 * insert) : 0, arrivalRate, insertMs: insert }
}
