/** When a worker claims: at a hint, when a run is due, at every sweep, and as long as there is more than it has taken. */

import type pg from 'pg'
import { type Claimed, claimRuns, nextDueMs } from './claim.ts'
import type { Clock } from './clock.ts'
import type { Workflow } from './define.ts'
import type { LimitedQueues } from './limits.ts'

export type DispatchDeps = {
  pool: pg.Pool
  clock: Clock
  worker: string
  queues: string[]
  limits: LimitedQueues
  codes: Workflow[]
  /** How many more runs fit into memory. */
  room: () => number
  take: (claimed: Claimed[]) => void
  onError: (error: unknown, doing: string) => void
}

export type Dispatch = {
  /** Claims from every queue, now; calls that come meanwhile make one more claim, not more. */
  claim: () => Promise<void>
  /** A run is due at `at` (ms on the database's clock): claim then, if not before. */
  due: (at: number) => void
  /** There is room again. */
  freed: () => void
  stop: () => Promise<void>
}

/** Runs taken by one claim: enough to keep the database busy, few enough to share with other workers. */
const CLAIM_MAX = 500
/** Due runs are looked up again at least this often, so a timer need not reach further. */
const TIMER_MS_MAX = 60_000

export function startDispatch(deps: DispatchDeps, sweepMs: number): Dispatch {
  const { pool, clock, worker, queues, limits, codes, room, take, onError } = deps
  /** Room worth a claim. */
  const roomMin = Math.min(CLAIM_MAX, Math.ceil(room() / 4))
  let stopping = false
  let again = false
  let claiming: Promise<void> | null = null
  /** The last claim took all it could: more may be waiting. */
  let backlog = false
  let timer: NodeJS.Timeout | undefined
  let timerAt = Number.POSITIVE_INFINITY

  const due = (at: number) => {
    if (stopping || at >= timerAt) return
    timerAt = at
    clearTimeout(timer)
    const ring = () => {
      timerAt = Number.POSITIVE_INFINITY
      void claim()
    }
    timer = setTimeout(ring, Math.min(Math.max(0, at - clock.now()), TIMER_MS_MAX))
  }
  const claimOnce = async () => {
    backlog = false
    for (const queue of queues) {
      const wanted = Math.min(CLAIM_MAX, room())
      if (wanted <= 0 || stopping) {
        backlog = true
        return
      }
      const claimed = await claimRuns(pool, worker, queue, codes, wanted, limits.has(queue))
      take(claimed)
      if (claimed.length === wanted) backlog = true
    }
    if (backlog && room() >= roomMin) again = true
    const ms = await nextDueMs(pool, queues)
    if (ms !== null) due(clock.now() + ms)
  }
  const claim = (): Promise<void> => {
    again = true
    claiming ??= (async () => {
      while (again && !stopping) {
        again = false
        await claimOnce()
      }
    })()
      .catch((error) => onError(error, 'claiming runs'))
      .finally(() => {
        claiming = null
      })
    return claiming
  }
  const sweep = setInterval(() => {
    void limits
      .refresh()
      .catch((error) => onError(error, 'reading the limits of queues'))
      .then(claim)
  }, sweepMs)
  return {
    claim,
    due,
    freed() {
      if (backlog && !stopping && claiming === null && room() >= roomMin) void claim()
    },
    async stop() {
      stopping = true
      clearInterval(sweep)
      clearTimeout(timer)
      await claiming
    },
  }
}
