import { connectDatabase } from '../db/connect.ts'
import { showTrace } from '../telemetry/show-trace.ts'
import { operatorConfig } from './operator-config.ts'

/** `millrace trace`: draws one trace as wide as the terminal. */
export async function traceCommand(traceId: string): Promise<void> {
  const config = await operatorConfig()
  const database = connectDatabase(config)
  try {
    console.log(await showTrace(database, config, traceId, process.stdout.columns ?? 120))
  } finally {
    await database.close()
  }
}
