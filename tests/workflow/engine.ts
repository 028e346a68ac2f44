/** The engines of a test file, over its own servers. */

import type { PgBoss } from 'pg-boss'
import { startJobs } from '../../src/db/jobs.ts'
import type { Engine, EngineDeps, EngineOptions, Workflow } from '../../src/index.ts'
import { startEngine } from '../../src/index.ts'
import type { Servers } from '../servers.ts'

export type Engines = {
  start: (workflows: Workflow[], options?: EngineOptions & { alone?: boolean }) => Promise<Engine>
  errors: string[]
  stop: () => Promise<void>
}

/** Leases are as long as in life: on a busy machine a short one is lost, and its steps run again. `alone`: without NATS. */
export function enginesOf(servers: Servers, telemetry?: EngineDeps['telemetry']): Engines {
  const engines: Engine[] = []
  let jobs: Promise<PgBoss> | undefined
  const errors: string[] = []
  return {
    errors,
    async start(workflows, { alone = false, ...options } = {}) {
      jobs ??= startJobs(servers.config.DATABASE_URL)
      const engine = await startEngine(
        {
          database: servers.database,
          databaseUrl: servers.config.DATABASE_URL,
          broker: alone ? null : servers.broker,
          jobs: await jobs,
          ...(telemetry === undefined ? {} : { telemetry }),
          onError: (error, doing) => errors.push(`${doing}: ${String(error)}`),
        },
        { workflows, sweepMs: 100, ...options },
      )
      engines.push(engine)
      return engine
    },
    async stop() {
      for (const engine of engines) await engine.stop()
      await (await jobs)?.stop({ graceful: false })
      jobs = undefined
    },
  }
}

/** Asks until it is so; the runner's time limit ends what never is. */
export async function until<T>(ask: () => T | Promise<T>): Promise<Exclude<T, false | null | undefined>> {
  for (;;) {
    const answer = await ask()
    if (answer) return answer as Exclude<T, false | null | undefined>
    await new Promise((resolve) => setTimeout(resolve, 10))
  }
}

/** The code of the error that a promise rejects with. */
export async function codeOf(promise: Promise<unknown>): Promise<string> {
  try {
    await promise
  } catch (error) {
    return (error as { code?: string }).code ?? String(error)
  }
  throw new Error('it did not reject')
}
