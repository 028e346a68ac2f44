/** What a process has read from the database, kept as the database has it. */

import { describe } from '../errors.ts'
import type { Broker } from './connect.ts'

export type Followed = {
  /** Reads now; joins a reading under way, which then reads once more. @throws what the reading does */
  read: () => Promise<void>
  close: () => void
}

/**
 * Reads again as soon as NATS tells of a change on `subject`, and every `everyMs` for when that was not heard. What fails
 * then is logged as `complaint`, and what was read before stays. The first reading is the caller's.
 * @param heard  is given what the change says, before the reading
 */
export function follow(
  { broker, log }: { broker: Broker; log: { warn: (facts: object, message: string) => void } },
  { subject, everyMs, complaint }: { subject: string; everyMs: number; complaint: string },
  readAll: () => Promise<void>,
  heard: (change: string) => void = () => {},
): Followed {
  let reading: Promise<void> | undefined
  let stale = false

  function read(): Promise<void> {
    stale = true
    reading ??= (async () => {
      try {
        while (stale) {
          stale = false
          await readAll()
        }
      } finally {
        reading = undefined
      }
    })()
    return reading
  }
  const readLater = () => void read().catch((error) => log.warn({ error: describe(error) }, complaint))

  const subscription = broker.nc.subscribe(subject, {
    callback: (error, message) => {
      if (error) return
      heard(message.string())
      readLater()
    },
  })
  const timer = setInterval(readLater, everyMs)
  return {
    read,
    close: () => {
      clearInterval(timer)
      subscription.unsubscribe()
    },
  }
}
