/**
 * Millrace's starter or worker, by MILLRACE_MODE:
 * - `worker` runs workflows; `starter` only starts them and waits for results: two processes
 * - `both` starts and runs them in one process, as DBOS does
 */

import { connectBroker } from '../../../src/broker/connect.ts'
import { loadConfig } from '../../../src/config.ts'
import { connectDatabase } from '../../../src/db/connect.ts'
import { startEngine, startRun } from '../../../src/index.ts'
import { takeCommands } from '../load.ts'
import { fulfil, long, sleeper } from './millrace-workflows.ts'

const mode = process.env.MILLRACE_MODE!
const config = loadConfig()
const database = connectDatabase(config)
const broker = await connectBroker(config, mode)
const engine = await startEngine(
  {
    database,
    databaseUrl: config.DATABASE_URL,
    broker,
    onError: (error, doing) => console.error(doing, error),
  },
  { workflows: mode === 'starter' ? [] : [fulfil, long, sleeper] },
)

takeCommands({
  order: async (order) => (await startRun(engine, fulfil, order, { id: order.id })).result(),
  long: async (id, steps) => (await startRun(engine, long, steps, { id })).result(),
  sleeper: async (id, dueAt) => void (await startRun(engine, sleeper, dueAt, { id })),
  stop: async () => {
    await engine.stop()
    await broker.close()
    await database.close()
  },
})
