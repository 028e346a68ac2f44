/**
 * The journal: everything a process writes about its runs, group-committed.
 *
 * 1. Runs hand in entries; nothing waits for a timer. While one commit is out, what arrives is the next.
 * 2. A commit is one round trip: one static statement per kind over all its rows (journal-sql.ts, session.ts).
 * 3. Each statement holds the worker's own row (`for key share`), so whoever ends the lease waits for the commit or
 *    prevents it; each row is checked against its run's epoch. Rows not written mean a lost run.
 * 4. A commit whose fate is unknown (connection lost) is written again: every statement may be repeated.
 */

import { setTimeout as pause } from 'node:timers/promises'
import type pg from 'pg'
import type { PgBoss } from 'pg-boss'
import { MillraceError } from '../errors.ts'
import { buryRuns, type DeadRun } from './dead-runs.ts'
import {
  type FinishRow,
  type MoveRow,
  type ParkRow,
  STATEMENTS,
  type StartRow,
  type StateRow,
  type StepRow,
  type TakenRow,
  type WaitRow,
} from './journal-sql.ts'
import { openSessions, runTogether } from './session.ts'

/**
 * What one run writes at once; all of it commits together.
 * @property settle  called once: written, not written because the run is no longer ours, or failed
 */
export type JournalEntry = {
  runId: string
  epoch: number
  starts?: StartRow[]
  steps?: StepRow[]
  waits?: WaitRow[]
  park?: ParkRow
  finish?: FinishRow
  state?: StateRow
  taken?: TakenRow
  move?: MoveRow
  forget?: string
  wake?: string
  letter?: DeadRun
  settle: (outcome: Outcome) => void
}

/** `replies`: what the statements returned for the entry's run. */
type Outcome = { kind: 'written'; replies: Reply[] } | { kind: 'lost' } | { kind: 'failed'; error: MillraceError }

export type Reply = Record<string, unknown> & { kind: keyof typeof STATEMENTS; run_id: string }

export type Journal = {
  /** The worker whose lease fences the writes; null in a process that only starts runs. */
  worker: string | null
  write: (entry: JournalEntry) => void
  /** Resolves when everything handed in so far has been settled. */
  drain: () => Promise<void>
  close: () => Promise<void>
}

/** Two keep both Postgres and the process busy; more only make smaller commits. */
const IN_FLIGHT_MAX = 2
/** Keeps a commit short, and its memory small. */
const ENTRIES_PER_COMMIT_MAX = 1_000
/**
 * So many entries at once go out as two commits: while Postgres has the one, this process works on the results of the
 * other. Else all runs would wait for one commit, and Postgres for them. A commit by itself
 * costs as much as some 30 entries.
 */
const ENTRIES_TO_SPLIT = 200
const RETRY_MS_MAX = 1_000

/**
 * Opens the journal of a process on connections of its own, so that no user's query delays it.
 * @param jobs  where failed runs become dead letters; null: nowhere
 */
export function openJournal(url: string, worker: string | null, jobs: PgBoss | null): Journal {
  const pool = openSessions(url, 'journal', IN_FLIGHT_MAX)
  const pending: JournalEntry[] = []
  let inFlight = 0
  let closing = false
  let idle: (() => void)[] = []

  const pump = () => {
    while (inFlight < IN_FLIGHT_MAX && pending.length > 0) {
      const share =
        inFlight === 0 && pending.length >= ENTRIES_TO_SPLIT ? Math.ceil(pending.length / 2) : pending.length
      const batch = pending.splice(0, Math.min(share, ENTRIES_PER_COMMIT_MAX))
      inFlight += 1
      void commit({ pool, worker, jobs }, batch, () => closing).then(() => {
        inFlight -= 1
        if (inFlight === 0 && pending.length === 0) {
          for (const wake of idle) wake()
          idle = []
        }
        pump()
      })
    }
  }
  let scheduled = false
  const drain = () =>
    inFlight === 0 && pending.length === 0 ? Promise.resolve() : new Promise<void>((resolve) => idle.push(resolve))
  return {
    worker,
    write(entry) {
      pending.push(entry)
      if (scheduled) return
      scheduled = true
      // Everything that the current turn of the event loop brings goes into the same commit.
      setImmediate(() => {
        scheduled = false
        pump()
      })
    },
    drain,
    async close() {
      closing = true
      await drain()
      await pool.end()
    },
  }
}

/** Commits, however often it takes; halves a batch that Postgres refuses until the refused entry stands alone. */
async function commit(deps: CommitDeps, batch: JournalEntry[], closing: () => boolean): Promise<void> {
  for (let attempt = 1; ; attempt += 1) {
    // What was tried before may have been written.
    const fresh = attempt === 1
    try {
      const replies = await commitOnce(deps, batch, fresh)
      return settle(batch, replies)
    } catch (error) {
      if (worthRetrying(error) && !(closing() && attempt > 3)) {
        await pause(Math.min(RETRY_MS_MAX, 10 * 2 ** attempt) * (0.5 + Math.random() / 2))
        continue
      }
      if (fresh) continue
      if (batch.length === 1 || worthRetrying(error)) {
        const failure = new MillraceError('unavailable', 'The journal could not be written', { cause: error })
        for (const entry of batch) entry.settle({ kind: 'failed', error: failure })
        return
      }
      const middle = batch.length >> 1
      await commit(deps, batch.slice(0, middle), closing)
      return commit(deps, batch.slice(middle), closing)
    }
  }
}

/** Connections, overload, shutdown, deadlock and serialisation pass; everything else is about the rows. */
function worthRetrying(error: unknown): boolean {
  const code = (error as { code?: unknown }).code
  if (typeof code !== 'string') return true
  return code.length !== 5 || /^(08|53|57|55P03|25P03|40001|40P01)/.test(code) || /^[A-Z]+$/.test(code)
}

async function commitOnce({ pool, worker, jobs }: CommitDeps, batch: JournalEntry[], fresh: boolean): Promise<Replies> {
  const dead = jobs === null ? [] : batch.flatMap((entry) => entry.letter ?? [])
  const work = STATEMENTS_IN_ORDER.map((kind) => ({ kind, rows: rowsOf(kind, batch, fresh) })).filter(
    ({ rows }) => rows.length > 0,
  )
  const client = await pool.connect()
  let failure: Error | undefined
  try {
    // A letter is written only for a run that is still ours, so those commits take a second round trip.
    if (dead.length > 0) await client.query('begin')
    const own = await runTogether(
      client,
      work.map(({ kind, rows }) => {
        const { name, text, values } = STATEMENTS[kind]
        return { name, text, values: values(worker, rows as never) }
      }),
    )
    const short = work.some(({ kind, rows }, n) => STATEMENTS[kind].counted && own[n]!.rowCount !== rows.length)
    const rows = work.flatMap(({ kind }, n) => own[n]!.rows.map((row) => ({ ...row, kind }) as Reply))
    const lost = short ? await lostRuns(client, worker, batch) : EMPTY
    if (dead.length > 0) {
      const ours = dead.filter(({ runId }) => !lost.has(runId))
      if (ours.length > 0) await buryRuns(jobs!, client, ours)
      await client.query('commit')
    }
    return { rows, lost }
  } catch (error) {
    failure = error as Error
    throw error
  } finally {
    // It may still be inside a failed transaction.
    client.release(failure)
  }
}

type CommitDeps = { pool: pg.Pool; worker: string | null; jobs: PgBoss | null }
type Replies = { rows: Reply[]; lost: ReadonlySet<string> }
const EMPTY: ReadonlySet<string> = new Set()
const NO_REPLIES: Reply[] = []
const STATEMENTS_IN_ORDER = Object.keys(STATEMENTS) as (keyof typeof STATEMENTS)[]

function rowsOf(kind: keyof typeof STATEMENTS, batch: JournalEntry[], fresh: boolean): unknown[] {
  const rows: unknown[] = []
  for (const entry of batch) {
    if (kind === 'starts' && entry.starts) rows.push(...entry.starts)
    else if (kind === 'steps' && entry.steps) rows.push(...entry.steps.filter((row) => fresh && isFirst(row)))
    else if (kind === 'lines' && entry.steps) rows.push(...entry.steps.filter((row) => !(fresh && isFirst(row))))
    else if (kind === 'waits' && entry.waits) rows.push(...entry.waits)
    else if (kind === 'parks' && entry.park) rows.push(entry.park)
    else if (kind === 'finishes' && entry.finish) rows.push(entry.finish)
    else if (kind === 'states' && entry.state) rows.push(entry.state)
    else if (kind === 'taken' && entry.taken) rows.push(entry.taken)
    else if (kind === 'moves' && entry.move) rows.push(entry.move)
    else if (kind === 'forgets' && entry.forget) rows.push(entry.forget)
    else if (kind === 'wakes' && entry.wake) rows.push(entry.wake)
  }
  return rows
}

/** A step that succeeds or fails for good at its first attempt has no line yet; every other call may have an open one. */
const isFirst = ({ kind, attempt, ord }: StepRow) => kind === 'step' && attempt === 1 && ord !== null

/** Fewer rows were written than handed in: which runs are not this worker's under the epoch they were written with? */
async function lostRuns(client: pg.ClientBase, worker: string | null, batch: JournalEntry[]): Promise<Set<string>> {
  const { rows } = await client.query({
    name: 'millrace_lost',
    text: `select h.run_id from unnest($2::uuid[], $3::int[]) h(run_id, epoch)
      where not exists (
        select from workflow_runs r
        where r.run_id = h.run_id and (r.status in ('queued', 'waiting') or (r.worker = $1 and r.epoch = h.epoch)))`,
    values: [worker, batch.map((entry) => entry.runId), batch.map((entry) => entry.epoch)],
  })
  return new Set(rows.map((row) => row.run_id))
}

function settle(batch: JournalEntry[], { rows, lost }: Replies): void {
  const byRun = new Map<string, Reply[]>()
  for (const row of rows) {
    const known = byRun.get(row.run_id)
    if (known) known.push(row)
    else byRun.set(row.run_id, [row])
  }
  for (const entry of batch)
    entry.settle(
      lost.has(entry.runId) ? { kind: 'lost' } : { kind: 'written', replies: byRun.get(entry.runId) ?? NO_REPLIES },
    )
}
