/** Assembles the batches of one process: workers take turns, and whoever has the turn closes the next batch. */

import { nowMs } from '../clock.ts'
import type { Config } from '../config.ts'
import type { Pool } from '../telemetry/pool.ts'
import { adapt, type Pace, startPace } from './pace.ts'
import { countEvents, type Parcel } from './parcel.ts'
import type { Pull } from './pull.ts'

export type Batch = {
  parcels: Parcel[]
  /** How many events they hold. */
  size: number
  /** From the first event that a free worker found to the moment the batch closed, in ms. */
  fillMs: number
  /** When it closed, in ms since 1970. */
  closedMs: number
}

export type Assembler = {
  /**
   * Closes a batch at its size, after its linger, or when the pull is closed.
   * @returns null when the pull is closed and its buffer is empty
   */
  next: () => Promise<Batch | null>
  /** Tells how a batch went, so that the next ones fit the load. */
  inserted: (size: number, insertMs: number) => void
  pace: () => Pace
}

export function createAssembler({ pull, pool }: { pull: Pull; pool: Pick<Pool, 'paced'> }, config: Config): Assembler {
  let pace = startPace(config)
  pool.paced(pace.size, pace.lingerMs)
  let turn: Promise<unknown> = Promise.resolve()
  let inserting = 0
  let closedAt = performance.now()
  let gapMs = 0
  let slot = Promise.withResolvers<void>()

  function next(): Promise<Batch | null> {
    const mine = turn.then(assemble)
    turn = mine.catch(() => {})
    return mine
  }

  async function assemble(): Promise<Batch | null> {
    while (pull.buffered() === 0) {
      if (pull.closed()) return null
      await pull.arrival()
    }
    const startedAt = performance.now()
    const size = config.WORKER_ADAPTIVE ? pace.size : config.WORKER_BATCH_SIZE
    const lingerMs = config.WORKER_ADAPTIVE ? pace.lingerMs : config.WORKER_BATCH_TIMEOUT * 1_000
    const until = startedAt + lingerMs
    while (pull.buffered() < size && !pull.closed()) {
      if (config.WORKER_ADAPTIVE && inserting === 0) break
      const left = until - performance.now()
      if (left <= 0) break
      await Promise.race([pull.arrival(left), ...(config.WORKER_ADAPTIVE ? [slot.promise] : [])])
    }
    const parcels = pull.take(size)
    const now = performance.now()
    gapMs = now - closedAt
    closedAt = now
    inserting++
    return { parcels, size: countEvents(parcels), fillMs: now - startedAt, closedMs: nowMs() }
  }

  function inserted(size: number, insertMs: number): void {
    inserting--
    slot.resolve()
    slot = Promise.withResolvers<void>()
    if (!config.WORKER_ADAPTIVE) return
    pace = adapt(pace, { size, insertMs, depth: pull.buffered() + pull.pending(), gapMs }, config.WORKER_BATCH_SIZE_MAX)
    pool.paced(pace.size, pace.lingerMs)
    pull.setCapacity(capacityFor(config, pace.size))
  }

  return { next, inserted, pace: () => pace }
}

/** Enough for every worker's next batch, within what one worker may leave unacknowledged. */
export function capacityFor(config: Config, batchSize: number): number {
  return Math.min(Math.max(config.NATS_PULL_BATCH_SIZE, batchSize), config.MAX_ACK_PENDING) * config.WORKER_POOL_SIZE
}
