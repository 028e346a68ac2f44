/**
 * A worker process for the fault tests: `node ledger.ts DATABASE_URL NATS_URL LEDGER`. Its steps write each of their
 * executions into a ledger outside of Millrace before they return, so that the ledger can judge the journal.
 */

import { randomUUID } from 'node:crypto'
import { appendFileSync } from 'node:fs'
import { setTimeout as pause } from 'node:timers/promises'
import { connectBroker } from '../../src/broker/connect.ts'
import { connectDatabase } from '../../src/db/connect.ts'
import { type Run, type StepTools, startEngine, workflow } from '../../src/index.ts'

/** @returns a token that names this one execution; the journal must hold the last one's */
async function act(ledger: string, run: Run, step: string, { signal }: StepTools): Promise<string> {
  const token = randomUUID()
  await pause(Math.random() * 20)
  // A worker that is alive and too slow to keep its lease is told before another does the same.
  signal.throwIfAborted()
  appendFileSync(ledger, `${run.runId} ${step} ${token}\n`)
  await pause(Math.random() * 20)
  return token
}

export const ledgered = (ledger: string) =>
  workflow('ledgered', async (run, n: number) => {
    await run.step('a', (tools) => act(ledger, run, 'a', tools))
    await Promise.all(['b', 'c'].map((name) => run.step(name, (tools) => act(ledger, run, name, tools))))
    await run.sleep(30)
    const winner = await Promise.race([
      run.step('d', (tools) => act(ledger, run, 'd', tools)).then(() => 'd'),
      run.step('e', (tools) => act(ledger, run, 'e', tools)).then(() => 'e'),
    ])
    await run.step(`after ${winner}`, (tools) => act(ledger, run, `after ${winner}`, tools))
    await run.step('f', (tools) => act(ledger, run, 'f', tools))
    return { n, winner }
  })

if (process.argv[1] === import.meta.filename) {
  const [databaseUrl, natsUrl, ledger] = process.argv.slice(2) as [string, string, string]
  const database = connectDatabase({ DATABASE_URL: databaseUrl, DATABASE_POOL_SIZE: 4 })
  const broker = natsUrl === 'none' ? null : await connectBroker({ NATS_URL: natsUrl }, 'ledger')
  await startEngine(
    { database, databaseUrl, broker, onError: () => {} },
    { workflows: [ledgered(ledger)], leaseMs: 3_000, sweepMs: 200, runsMax: 150 },
  )
  process.send?.('ready')
}
