/** Metrics and traces of one process, started and stopped together. */

import type { Config } from '../config.ts'
import { describe } from '../errors.ts'
import { type Metrics, startMetrics } from './metrics.ts'
import { createPool, type Pool } from './pool.ts'
import { startTracing, type Tracing } from './tracing.ts'

export type Telemetry = {
  metrics: Metrics
  tracing: Tracing
  /** How the pull workers of this process fare; none has started in a process that runs no workers. */
  pool: Pool
  stop: () => Promise<void>
}

/**
 * @param service  `millrace-api`, `millrace-worker` or `millrace-dev`
 * `stop` sends what is waiting, and does not mind a collector that is away.
 */
export async function startTelemetry(
  deps: Parameters<typeof startTracing>[0],
  config: Config,
  service: string,
): Promise<Telemetry> {
  const [metrics, tracing] = await Promise.all([startMetrics(config, service), startTracing(deps, config, service)])
  const stop = async () => {
    const ended = await Promise.allSettled([metrics.stop(), tracing.stop()])
    for (const end of ended)
      if (end.status === 'rejected') deps.log.warn({ error: describe(end.reason) }, 'telemetry lost')
  }
  const pool = createPool(config.WORKER_POOL_SIZE, 2 * config.ACK_WAIT_MS)
  metrics.observePool(pool.report)
  return { metrics, tracing, pool, stop }
}
