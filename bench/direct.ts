/**
 * The direct limit: the same rows by the same statement in the same transactions, without HTTP and NATS. Four writers
 * with batches of 1,000, as the workers have under a backlog. Prints its result as one line of JSON.
 */

import { loadConfig } from '../src/config.ts'
import { connectDatabase } from '../src/db/connect.ts'
import { insertBatch } from '../src/ingest/insert.ts'
import type { Parcel } from '../src/ingest/parcel.ts'
import { sampleEvent, sampleTraceparents } from './sample.ts'

const { run, seconds } = JSON.parse(process.argv[2]!) as { run: string; seconds: number }
const { db, close } = connectDatabase(loadConfig())
const traceparentOf = sampleTraceparents()
let next = 0
/** Of the 100 events of a request a fifth has one type. */
const PARCEL = 20

/** As workers take them from the stream at requests of 100. */
function batch(): Parcel[] {
  return Array.from({ length: 1_000 / PARCEL }, () => {
    const first = next
    next += PARCEL
    const texts = Array.from({ length: PARCEL }, (_, n) => sampleEvent(run, first + n))
    const seq = first / PARCEL + 1
    return {
      from: { message: undefined as never, publishedMs: Date.now(), seq, deliveries: 1, events: PARCEL, open: PARCEL },
      receivedMs: Date.now(),
      traceparent: traceparentOf(first),
      commitReply: '',
      tenant: 'default',
      place: 0,
      events: PARCEL,
      bytes: Buffer.from(texts.join('\x1e')),
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
      for (const result of outcome.outcomes) if (result.kind === 'stored') committed += result.inserted
    }
  }),
)
console.log(JSON.stringify({ committed, seconds: (performance.now() - startedAt) / 1_000 }))
await close()
