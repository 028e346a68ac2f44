/**
 * Tells a bad event from a bad system. When more than half of what was settled lately would become dead letters, the
 * events are hardly to blame: a constraint was added, a migration is half done, a codec changed. Then they are held back.
 *
 * The judgement is over a window and not over a batch, because refused events come back together as batches that are
 * bad through and through, and an idle system may see one single bad event.
 */

/** What happened to events within the window. */
export type Settled = {
  /** Their rows are in the table. */
  committed: number
  /** Refused at their last attempt: dead letters, granted or not. */
  refused: number
  /** Became dead letters. */
  dead: number
}

const WINDOW_SECONDS = 60
/** So few dead letters within the window are no sign of anything; one batch of the starting size. */
export const ALLOWANCE = 50

/**
 * How many of `asked` refused events may become dead letters: those within the window stay below the allowance, or
 * below the number of events that were committed.
 */
export function deadLettersAllowed(recent: Settled, asked: number): number {
  return Math.min(asked, Math.max(0, Math.max(ALLOWANCE, recent.committed) - recent.dead))
}

/** More was refused than committed, and not just a little. */
export const suspicious = (recent: Settled): boolean => recent.refused > Math.max(ALLOWANCE, recent.committed)

/** The last minute of one process, in buckets of a second. */
export type Recent = { add: (part: Partial<Settled>) => void; sum: () => Settled }

/** @param now  a monotonic clock in ms */
export function createRecent(now: () => number = () => performance.now()): Recent {
  const buckets = new Map<number, Settled>()
  const second = () => Math.floor(now() / 1_000)

  function add({ committed = 0, refused = 0, dead = 0 }: Partial<Settled>): void {
    const at = second()
    const bucket = buckets.get(at) ?? { committed: 0, refused: 0, dead: 0 }
    if (!buckets.has(at)) {
      buckets.set(at, bucket)
      for (const old of buckets.keys()) if (old <= at - WINDOW_SECONDS) buckets.delete(old)
    }
    bucket.committed += committed
    bucket.refused += refused
    bucket.dead += dead
  }

  function sum(): Settled {
    const since = second() - WINDOW_SECONDS
    const total = { committed: 0, refused: 0, dead: 0 }
    for (const [at, bucket] of buckets) {
      if (at <= since) continue
      total.committed += bucket.committed
      total.refused += bucket.refused
      total.dead += bucket.dead
    }
    return total
  }

  return { add, sum }
}
