/**
 * How each worker of a process fares. The pool writes down what its workers do; every second the process reports it over
 * NATS, so that each API process can tell of all workers, and of those that fell silent (workers.ts).
 */

import { PROCESS_NAME } from './resource.ts'

/** pulling: at work or waiting for it; holding: Postgres is away; draining: finishing what is in hand; dead: being restarted. */
type WorkerState = 'pulling' | 'holding' | 'draining' | 'dead' | 'ended'

type WorkerReport = {
  worker: number
  state: WorkerState
  /** Events of the batch in hand. */
  inFlight: number
  /** How long it has been at this batch; 0 without one. */
  busyMs: number
  /** Longer at one batch than any batch takes, and not because Postgres is known to be away. */
  stuck: boolean
  /** Events committed since the process started, duplicates included. */
  committed: number
  /** Over the last seconds. */
  eventsPerSecond: number
  /** Batches held, and deaths. */
  errors: number
  restarts: number
  lastCommit: string | null
  lastError: string | null
}

export type PoolReport = {
  process: string
  startedAt: string
  batchSize: number
  lingerMs: number
  workers: WorkerReport[]
}

export type Pool = {
  started: (worker: number) => void
  took: (worker: number, events: number) => void
  held: (worker: number, error: string) => void
  committed: (worker: number, events: number) => void
  /** Postgres did not take it and we are stopping. */
  gaveBack: (worker: number) => void
  died: (worker: number, error: string) => void
  ended: (worker: number) => void
  drain: () => void
  /** The adaptive target, which the assembler knows. */
  paced: (batchSize: number, lingerMs: number) => void
  report: () => PoolReport
}

type Worker = {
  state: WorkerState
  inFlight: number
  busySince: number
  committed: number
  errors: number
  restarts: number
  lastCommitMs: number
  lastError: string | null
  /** Committed at the last tick of the rate, and the rate since. */
  counted: number
  rate: number
}

/** Weight of the newest second in the rate. */
const WEIGHT = 0.3

/**
 * A pool whose workers have not started yet.
 * @param stuckMs  a worker at one batch for longer is stuck: the batch is kept alive at JetStream, so no one else takes it
 * @param now  a monotonic clock in ms
 */
export function createPool(size: number, stuckMs: number, now: () => number = () => performance.now()): Pool {
  const startedAt = new Date().toISOString()
  const workers: Worker[] = Array.from({ length: size }, () => ({
    state: 'ended',
    inFlight: 0,
    busySince: 0,
    committed: 0,
    errors: 0,
    restarts: 0,
    lastCommitMs: 0,
    lastError: null,
    counted: 0,
    rate: 0,
  }))
  let draining = false
  let pace = { batchSize: 0, lingerMs: 0 }
  let ratedAt = now()

  const free = (worker: Worker, state: WorkerState = draining ? 'draining' : 'pulling') =>
    Object.assign(worker, { state, inFlight: 0, busySince: 0 })

  function updateRates(): void {
    const seconds = (now() - ratedAt) / 1_000
    if (seconds < 0.5) return
    ratedAt = now()
    for (const worker of workers) {
      worker.rate += Math.min(1, WEIGHT * seconds) * ((worker.committed - worker.counted) / seconds - worker.rate)
      worker.counted = worker.committed
    }
  }

  function describeWorker(worker: Worker, index: number): WorkerReport {
    const busyMs = worker.inFlight === 0 ? 0 : Math.round(now() - worker.busySince)
    return {
      worker: index,
      state: worker.state,
      inFlight: worker.inFlight,
      busyMs,
      stuck: worker.state !== 'holding' && busyMs > stuckMs,
      committed: worker.committed,
      eventsPerSecond: Math.round(worker.rate),
      errors: worker.errors,
      restarts: worker.restarts,
      lastCommit: worker.lastCommitMs === 0 ? null : new Date(worker.lastCommitMs).toISOString(),
      lastError: worker.lastError,
    }
  }

  return {
    started: (index) => void free(workers[index]!),
    took: (index, events) => {
      const worker = free(workers[index]!)
      worker.inFlight = events
      worker.busySince = now()
    },
    held: (index, error) => {
      const worker = workers[index]!
      worker.state = 'holding'
      worker.errors++
      worker.lastError = error
    },
    committed: (index, events) => {
      const worker = free(workers[index]!)
      worker.committed += events
      if (events > 0) worker.lastCommitMs = Date.now()
    },
    gaveBack: (index) => void free(workers[index]!),
    died: (index, error) => {
      const worker = free(workers[index]!, 'dead')
      worker.errors++
      worker.restarts++
      worker.lastError = error
    },
    ended: (index) => void free(workers[index]!, 'ended'),
    drain: () => {
      draining = true
      for (const worker of workers) if (worker.state === 'pulling') worker.state = 'draining'
    },
    paced: (batchSize, lingerMs) => {
      pace = { batchSize, lingerMs }
    },
    report: () => {
      updateRates()
      return { process: PROCESS_NAME, startedAt, ...pace, workers: workers.map(describeWorker) }
    },
  }
}
