/** How long to wait before a step is tried again. */

import { type Duration, milliseconds } from '../durations.ts'

/**
 * @property attempts  runs of the step in all, the first included (default 3)
 * @property first     wait before the second attempt (default 200 ms)
 * @property factor    growth of the wait with each attempt (default 2)
 * @property max       longest wait (default 1 minute)
 * @property jitter    share of the wait that is random, 0 to 1 (default 0.5), so that many failed runs spread out
 * @property unless    an error for which it returns true is not tried again
 */
export type Retry = {
  attempts?: number
  first?: Duration
  factor?: number
  max?: Duration
  jitter?: number
  unless?: (error: unknown) => boolean
}

/**
 * Exponential backoff with proportional jitter.
 * @param attempt  the one that failed, from 1
 * @returns ms to wait, or null when it was the last
 */
export function backoffMs(retry: Retry, attempt: number, random: () => number = Math.random): number | null {
  if (attempt >= (retry.attempts ?? 3)) return null
  const wait = milliseconds(retry.first ?? 200) * (retry.factor ?? 2) ** (attempt - 1)
  const capped = Math.min(wait, milliseconds(retry.max ?? '1m'))
  return Math.ceil(capped * (1 - (retry.jitter ?? 0.5) * random()))
}
