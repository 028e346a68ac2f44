/** Runs as their owner sees them: lists, one run, its history. Only reads. */

import type pg from 'pg'
import { MillraceError } from '../errors.ts'

export type RunSummary = {
  runId: string
  id: string | null
  name: string
  version: string
  queue: string
  priority: number
  concurrencyKey: string | null
  status: string
  attributes: Record<string, unknown> | null
  traceId: string | null
  parentId: string | null
  createdAt: Date
  dueAt: Date | null
  deadlineAt: Date | null
  cancelRequestedAt: Date | null
  finishedAt: Date | null
  error: RunError | null
}

type RunError = { name: string; message: string; code?: string; stack?: string; details?: Record<string, unknown> }

export type RunDetail = RunSummary & {
  input: unknown
  output: unknown
  /** What it chose to show (`run.setState`). */
  state: unknown
  generation: number
  /** Claims of it so far. */
  epoch: number
  /** Lines in its journal. */
  steps: number
}

/**
 * @property id          of the start; a run that an event started has `<workflow>:<key>`
 * @property attributes  all of these, with these values; text such as '2' or 'true' finds the number and the truth too
 * @property cursor      `next` of the page before
 */
export type RunFilter = {
  name?: string
  status?: string[]
  id?: string
  key?: string
  queue?: string
  from?: string
  to?: string
  attributes?: Record<string, unknown>
  cursor?: string
  limit?: number
}

/** Whose runs are looked at. */
type Reach = { pool: pg.Pool; tenant: string }

/** A filter that no index serves reads run after run; past this a narrower one is the better question. */
const READ_MS_MAX = 5_000
const QUERY_CANCELED = '57014'

const SUMMARY = `run_id as "runId", id, name, version, queue, priority, concurrency_key as "concurrencyKey", status,
  attributes, split_part(traceparent, '-', 2) as "traceId", parent_id as "parentId", created_at as "createdAt",
  due_at as "dueAt", deadline_at as "deadlineAt", cancel_requested_at as "cancelRequestedAt",
  finished_at as "finishedAt", error`

/** Run ids begin with their time, so the primary key is the order of creation. */
const LIST = `
  select ${SUMMARY} from workflow_runs
  where tenant = $12 and ($1::uuid is null or run_id < $1)
    and ($2::text is null or name = $2)
    and ($3::text[] is null or status = any($3))
    and ($4::text is null or id = $4)
    and ($5::text is null or concurrency_key = $5)
    and ($6::text is null or queue = $6)
    and ($7::timestamptz is null or created_at >= $7)
    and ($8::timestamptz is null or created_at < $8)
    and ($9::jsonb is null or attributes @> $9 or attributes @> $10)
  order by run_id desc limit $11`

/** The same for runs that need someone: few, and with an index of their own. */
const LIST_DEAD = LIST.replace('where', `where status in ('failed', 'stuck') and`)

const GET = `
  select ${SUMMARY}, input, output, state, generation, epoch,
    (select count(*)::int from workflow_steps s where s.run_id = r.run_id) as steps
  from workflow_runs r
  where run_id = coalesce(
    (select run_id from workflow_runs where id = $1::text and tenant = $2 order by generation desc limit 1),
    case when $1::text ~* '^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$' then ($1::text)::uuid end)
    and tenant = $2`

const HISTORY = `
  select pos, ord, kind, name, output, error, attempt, due_at as "dueAt", at, ms from workflow_steps
  where run_id = $1 and pos > $2 order by pos limit $3`

/** @throws MillraceError `overloaded` for a filter that would read too much */
export async function listRuns(
  { pool, tenant }: Reach,
  { limit = 100, ...filter }: RunFilter,
): Promise<{ runs: RunSummary[]; next: string | null }> {
  const dead = filter.status?.length && filter.status.every((status) => status === 'failed' || status === 'stuck')
  const values = [
    filter.cursor ?? null,
    filter.name ?? null,
    filter.status ?? null,
    filter.id ?? null,
    filter.key ?? null,
    filter.queue ?? null,
    filter.from ?? null,
    filter.to ?? null,
    filter.attributes === undefined ? null : JSON.stringify(filter.attributes),
    JSON.stringify(typed(filter.attributes ?? {})),
    // One more tells whether there is a next page.
    limit + 1,
    tenant,
  ]
  const rows = await readBounded<RunSummary>(pool, dead ? LIST_DEAD : LIST, values)
  const runs = rows.slice(0, limit)
  return { runs, next: rows.length > limit ? runs.at(-1)!.runId : null }
}

const typed = (attributes: Record<string, unknown>) =>
  Object.fromEntries(
    Object.entries(attributes).map(([name, value]) => [
      name,
      typeof value === 'string' && /^(true|false|-?(0|[1-9]\d{0,14})(\.\d+)?)$/.test(value) ? JSON.parse(value) : value,
    ]),
  )

async function readBounded<Row extends object>(pool: pg.Pool, text: string, values: unknown[]): Promise<Row[]> {
  const client = await pool.connect()
  let failure: Error | undefined
  try {
    await client.query(`begin read only; set local statement_timeout = ${READ_MS_MAX}`)
    const { rows } = await client.query<Row>(text, values)
    await client.query('commit')
    return rows
  } catch (error) {
    failure = error as Error
    if ((error as { code?: string }).code === QUERY_CANCELED)
      throw new MillraceError(
        'overloaded',
        `This filter reads for more than ${READ_MS_MAX} ms: narrow it by time or id`,
      )
    throw error
  } finally {
    client.release(failure)
  }
}

/**
 * One run, by its own id or by the id it was started under (then the last run of that id).
 * @throws MillraceError `not_found`
 */
export async function getRun({ pool, tenant }: Reach, id: string): Promise<RunDetail> {
  const { rows } = await pool.query<RunDetail>(GET, [id, tenant])
  if (rows[0] === undefined) throw new MillraceError('not_found', `There is no run ${id}`)
  return rows[0]
}

/** A line of a run's journal, as shown. `ord` is when its result reached the code; null while it is open. */
export type HistoryLine = {
  pos: number
  ord: number | null
  kind: string
  name: string
  output: unknown
  error: RunError | null
  attempt: number
  dueAt: Date | null
  at: Date
  ms: number | null
}

const LINES_PER_PAGE_MAX = 1_000

/** @param after  position of the last line of the page before; -2 for the first page */
export async function readHistory(
  pool: pg.Pool,
  runId: string,
  { after = -2, limit = LINES_PER_PAGE_MAX } = {},
): Promise<{ lines: HistoryLine[]; next: number | null }> {
  const { rows } = await pool.query<HistoryLine>(HISTORY, [runId, after, limit + 1])
  const lines = rows.slice(0, limit)
  return { lines, next: rows.length > limit ? lines.at(-1)!.pos : null }
}

/** What `millrace workflows history --export` writes and the test kit replays. */
export type ExportedHistory = Pick<RunDetail, 'runId' | 'id' | 'name' | 'version' | 'status' | 'input' | 'output'> & {
  millrace: 1
  createdAt: Date | string
  error: RunError | null
  lines: (Omit<HistoryLine, 'dueAt' | 'at'> & { dueAt: Date | string | null; at: Date | string })[]
}

/** A run whole, for `replayHistory` of millrace/testing. @throws MillraceError `not_found` */
export async function exportHistory(reach: Reach, id: string): Promise<ExportedHistory> {
  const { pool } = reach
  const run = await getRun(reach, id)
  const lines: HistoryLine[] = []
  for (let after: number | null = -2; after !== null; ) {
    const page = await readHistory(pool, run.runId, { after })
    lines.push(...page.lines)
    after = page.next
  }
  const { runId, name, version, status, input, output, error, createdAt } = run
  return { millrace: 1, runId, id: run.id, name, version, status, input, output, error, createdAt, lines }
}
