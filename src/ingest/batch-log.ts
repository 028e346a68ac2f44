/**
 * Writes down each committed batch just after its COMMIT, since only then its commit time is known; joined to events by
 * batch_id it gives every row's true queue latency. The lines of a moment go in one insert that waits for no fsync.
 */

import { sql } from 'drizzle-orm'
import { type Database, inTransaction } from '../db/connect.ts'
import { describe } from '../errors.ts'
import type { Log } from './log.ts'

type CommittedBatch = {
  id: string
  worker: string
  size: number
  inserted: number
  fillMs: number
  insertMs: number
  /** ms since 1970 */
  committedMs: number
}

const FLUSH_MS = 200
/** While Postgres is away lines wait here; beyond this the oldest are dropped, and said to be. */
const LINES_MAX = 10_000

const insertLines = (lines: string) => sql`
  insert into batches (id, worker, size, inserted, fill_ms, insert_ms, committed_at)
  select id, worker, size, inserted, "fillMs", "insertMs", to_timestamp("committedMs" / 1000)
  from jsonb_to_recordset(${lines}::jsonb) as line(id uuid, worker text, size integer, inserted integer,
                                                   "fillMs" float8, "insertMs" float8, "committedMs" float8)
  on conflict (id) do nothing`

export type BatchLog = { record: (batch: CommittedBatch) => void; close: () => Promise<void> }

export function createBatchLog({ db, log }: { db: Database; log: Log }): BatchLog {
  let lines: CommittedBatch[] = []
  let timer: NodeJS.Timeout | undefined
  let writing: Promise<void> = Promise.resolve()

  function record(batch: CommittedBatch): void {
    lines.push(batch)
    timer ??= setTimeout(flush, FLUSH_MS)
  }

  function flush(): void {
    clearTimeout(timer)
    timer = undefined
    const sent = lines
    lines = []
    if (sent.length > 0) writing = writing.then(() => write(sent))
  }

  async function write(sent: CommittedBatch[]): Promise<void> {
    try {
      await inTransaction(db, async (tx) => {
        await tx.execute(sql`set local synchronous_commit = off`)
        await tx.execute(insertLines(JSON.stringify(sent)))
      })
    } catch (error) {
      lines = [...sent, ...lines]
      if (lines.length > LINES_MAX) {
        log.warn({ dropped: lines.length - LINES_MAX, error: describe(error) }, 'batch lines dropped')
        lines = lines.slice(-LINES_MAX)
      }
      timer ??= setTimeout(flush, FLUSH_MS * 5)
    }
  }

  async function close(): Promise<void> {
    flush()
    await writing
    clearTimeout(timer)
  }

  return { record, close }
}
