/**
 * The direct limit: the same rows by the same statement in the same transactions, without HTTP and NATS. Four writers
 * with batches of 1,000, as the workers have under a backlog. Prints its result as one line of JSON.
 */

import { loadConfig } from '../src/config.ts'
import { connectDatabase } from '../src/db/connect.ts'
import type { ReceivedEvent } from '../src/ingest/event.ts'
import { insertBatch } from '../src/ingest/insert.ts'
import { sampleEvent, sampleTraceparents } from './sample.ts'

const { run, seconds } = JSON.parse(process.argv[2]!) as { run: string; seconds: number }
const { db, close } = connectDatabase(loadConfig())
const traceparentOf = sampleTraceparents()
let next = 0

function batch(): ReceivedEvent[] {
  return Array.from({ length: 1_000 }, () => {
    const n = next++
    return {
      message: undefined as never,
      id: `${run}-${n}`,
      source: `/shop/${n % 7}`,
      payload: sampleEvent(run, n),
      receivedMs: Date.now(),
      publishedMs: Date.now(),
      seq: n + 1,
      deliveries: 1,
      traceparent: traceparentOf(n),
      commitReply: '',
      unreadable: '',
    }
  })
}

const startedAt = performance.now()
const until = startedAt + seconds * 1_000
let committed = 0
await Promise.all(
  Array.from({ length: 4 }, async () => {
    while (performance.now() < until) {
      const outcome = await insertBatch({ db, broker: null }, batch())
      if (outcome.kind !== 'settled') throw new Error(outcome.error)
      for (const { kind } of outcome.outcomes.values()) if (kind === 'inserted') committed++
    }
  }),
)
console.log(JSON.stringify({ committed, seconds: (performance.now() - startedAt) / 1_000 }))
await close()
