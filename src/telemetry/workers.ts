/** The workers of all processes, as each reports them over NATS. */

import type { Broker } from '../broker/connect.ts'
import type { Pool, PoolReport } from './pool.ts'

const SUBJECT = 'millrace.workers'
const REPORT_MS = 1_000
/** After this many missed reports a process counts as silent: stuck, paused, cut off, or killed. */
const SILENT_MS = 5 * REPORT_MS
/** A process that is gone for good is forgotten, so that the list stays a list of workers. */
const FORGOTTEN_MS = 10 * 60_000

/** Reports the pool every second, and a last time when it is stopped. */
export function reportPool({ broker }: { broker: Broker }, pool: Pool): { stop: () => void } {
  const report = () => {
    // Reports of a moment ago help nobody, so none waits for a lost connection.
    if (broker.connected()) broker.nc.publish(SUBJECT, JSON.stringify(pool.report()))
  }
  const timer = setInterval(report, REPORT_MS)
  report()
  return {
    stop: () => {
      clearInterval(timer)
      report()
    },
  }
}

export type HeardPool = PoolReport & { silent: boolean; silentMs: number }

/**
 * Listens to the reports of all processes for as long as the connection lives.
 * @returns what tells of them all; a process that stopped in good order is forgotten at once
 */
export function watchWorkers(
  { broker }: { broker: Broker },
  now: () => number = () => performance.now(),
): () => HeardPool[] {
  const heard = new Map<string, { report: PoolReport; at: number }>()
  broker.nc.subscribe(SUBJECT, {
    callback: (error, message) => {
      if (error) return
      const report = message.json<PoolReport>()
      if (report.workers.every((worker) => worker.state === 'ended')) heard.delete(report.process)
      else heard.set(report.process, { report, at: now() })
    },
  })
  return () => {
    const pools: HeardPool[] = []
    for (const [process, { report, at }] of heard) {
      const silentMs = Math.round(now() - at)
      if (silentMs > FORGOTTEN_MS) heard.delete(process)
      else pools.push({ ...report, silent: silentMs > SILENT_MS, silentMs })
    }
    return pools.sort((a, b) => (a.process < b.process ? -1 : 1))
  }
}
