/**
 * How many events a key may send: a bucket of tokens (Turner 1986), full at first, refilled steadily. Each API process
 * has its own, so an installation of three lets a key send three times its rate at most.
 */

import { MillraceError } from '../errors.ts'

/**
 * @param rate   events per second on average
 * @param burst  events at once
 * @param now    in ms
 * @returns what takes events off the bucket, all of them or none
 */
export function createBucket(
  { rate, burst }: { rate: number; burst: number },
  now: () => number = () => performance.now(),
): (events: number) => void {
  let tokens = burst
  let filledAt = now()
  return (events) => {
    const at = now()
    tokens = Math.min(burst, tokens + ((at - filledAt) / 1_000) * rate)
    filledAt = at
    if (events > burst)
      throw new MillraceError(
        'too_large',
        `This key may send ${burst} events at once: send smaller requests, or NDJSON`,
        {
          details: { limit: 'burst', max: burst },
        },
      )
    if (events > tokens) {
      const retryAfterS = Math.ceil((events - tokens) / rate)
      throw new MillraceError(
        'rate_limited',
        `This key may send ${rate} events per second: try again in ${retryAfterS} s`,
        { details: { retry_after_s: retryAfterS } },
      )
    }
    tokens -= events
  }
}
