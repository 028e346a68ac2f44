/** Whether a process can do its work now, dependency by dependency. */

import { sql } from 'drizzle-orm'
import type { Broker } from '../broker/connect.ts'
import { readQueue } from '../broker/queue.ts'
import type { Database } from '../db/connect.ts'
import { describe } from '../errors.ts'
import type { Telemetry } from '../telemetry/telemetry.ts'

export type ReadinessDeps = { db: Database; broker: Broker; telemetry: Telemetry }
type Check = 'jetstream' | 'postgres' | 'workers'
export type Readiness = { ready: boolean; checks: Record<Check, string> }

/** A probe that takes longer has failed; orchestrators wait a few seconds at most. */
const PROBE_MS_MAX = 2_000

/**
 * @param needed  what this process cannot do without. The API needs no Postgres to take events: they wait in JetStream,
 *   and an API that went unready with Postgres would turn one outage into two.
 */
export async function checkReadiness(deps: ReadinessDeps, needed: readonly Check[]): Promise<Readiness> {
  const [jetstream, postgres] = await Promise.all([
    probe(deps.broker.connected() ? readQueue(deps.broker) : Promise.reject(new Error('not connected'))),
    probe(deps.db.execute(sql`select 1`)),
  ])
  const checks = { jetstream, postgres, workers: checkWorkers(deps.telemetry) }
  return { ready: needed.every((name) => checks[name] === 'ok'), checks }
}

async function probe(answer: Promise<unknown>): Promise<string> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<string>((resolve) => {
    timer = setTimeout(resolve, PROBE_MS_MAX, `no answer within ${PROBE_MS_MAX} ms`)
  })
  const said = answer.then(() => 'ok', describe)
  try {
    return await Promise.race([said, late])
  } finally {
    clearTimeout(timer)
  }
}

function checkWorkers({ pool }: Telemetry): string {
  const troubles: string[] = []
  for (const { worker, state, stuck, busyMs, lastError } of pool.report().workers) {
    if (stuck) troubles.push(`worker ${worker} is stuck at a batch for ${Math.round(busyMs / 1_000)} s`)
    else if (state === 'holding') troubles.push(`worker ${worker} holds its batch: ${lastError}`)
    else if (state === 'dead') troubles.push(`worker ${worker} died: ${lastError}`)
  }
  return troubles.length === 0 ? 'ok' : troubles.join('; ')
}
