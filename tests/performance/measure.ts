/**
 * Reads one run back from the database:
 * 1. the ledger of requests goes into a temporary table
 * 2. events are joined to it by trace id, and to the batch that committed them: that is every event's queue latency
 * 3. sums, percentiles and a timeline come from there
 */

import { createReadStream } from 'node:fs'
import { createInterface } from 'node:readline'
import { setTimeout as pause } from 'node:timers/promises'
import type pg from 'pg'
import type { Bin, Check, Kind, Percentiles, Summary } from './summary.ts'

const LINES_PER_INSERT = 5_000
/** A run of a minute gives 60 points; longer runs no more than this. */
const BINS_MAX = 120
/** Batch lines are written a moment after the commit. */
const BATCH_LINES_MS_MAX = 10_000

const createRequest = `
  create temp table request (trace_id uuid primary key, kind text, started_at timestamptz, ms float8,
                             as_promised boolean, sent int, accepted int, rejected int, retried int, poison int)`

const insertRequests = `
  insert into request
  select trace_id, kind, to_timestamp(started_at), ms, as_promised, sent, accepted, rejected, retried, poison
  from jsonb_to_recordset($1::jsonb) as line(trace_id uuid, kind text, started_at float8, ms float8,
         as_promised boolean, sent int, accepted int, rejected int, retried int, poison int)`

const createCommitted = `
  create temp table committed as
  select kind, batch_id, published_at, committed_at, extract(epoch from committed_at - received_at)::float8 * 1000 as queue_ms
  from request join events using (trace_id) join batches on batches.id = batch_id`

const countUnfinished = `
  select count(*)::int as count
  from request join events using (trace_id) left join batches on batches.id = batch_id
  where batches.id is null`

const readSums = `
  select count(*)::int as requests, count(*) filter (where not as_promised)::int as failed,
         sum(sent - accepted - rejected)::int as unanswered,
         sum(sent)::int as sent, sum(accepted)::int as accepted, sum(rejected)::int as rejected,
         coalesce(sum(retried) filter (where as_promised), 0)::int as retried,
         coalesce(sum(poison) filter (where as_promised), 0)::int as poison,
         extract(epoch from min(started_at))::float8 as start_s,
         extract(epoch from max(started_at + ms * interval '1 ms') - min(started_at))::float8 as load_s,
         percentile_cont(array[0.5, 0.9, 0.99, 1]) within group (order by ms) as api_ms
  from request`

const readCommitted = `
  select count(*)::int as committed, extract(epoch from max(committed_at))::float8 as last_s,
         percentile_cont(array[0.5, 0.9, 0.99, 1]) within group (order by queue_ms) as queue_ms
  from committed`

const readBatches = `
  select count(*)::int as count, percentile_cont(0.5) within group (order by size)::float8 as p50, max(size) as max
  from batches where id in (select batch_id from committed)`

const readDeadLetters = `
  select count(distinct (source, event_id))::int as count
  from dead_letter_audit where action = 'recorded' and source like $1`

const readKinds = `
  select kind, count(*)::int as requests, sum(accepted)::int as events,
         percentile_cont(array[0.5, 0.9, 0.99, 1]) within group (order by ms) as api_ms,
         (select percentile_cont(array[0.5, 0.9, 0.99, 1]) within group (order by queue_ms)
          from committed where committed.kind = request.kind) as queue_ms
  from request group by kind order by requests desc`

const readRequestBins = `
  select floor((extract(epoch from started_at + ms * interval '1 ms')::float8 - $1) / $2)::int as bin, count(*)::int as requests,
         sum(accepted)::int as accepted, percentile_cont(array[0.5, 0.9, 0.99, 1]) within group (order by ms) as api_ms
  from request group by 1`

const readCommittedBins = `
  select floor((extract(epoch from committed_at)::float8 - $1) / $2)::int as bin, count(*)::int as committed,
         percentile_cont(array[0.5, 0.9, 0.99, 1]) within group (order by queue_ms) as queue_ms
  from committed group by 1`

const readBatchBins = `
  select floor((extract(epoch from committed_at)::float8 - $1) / $2)::int as bin, count(*)::int as count,
         percentile_cont(0.5) within group (order by size)::float8 as p50, max(size) as max
  from batches where id in (select batch_id from committed) group by 1`

/** Stored minus committed so far, at the end of each quarter of a second. */
const readUncommitted = `
  select at_s::float8, (sum(step) over (order by at_s))::int as events
  from (
    select (floor((extract(epoch from at)::float8 - $1) * 4) + 1) / 4 as at_s, sum(step) as step
    from (select published_at as at, 1 as step from committed union all select committed_at, -1 from committed) as steps
    group by 1
  ) as quarters
  order by 1`

const percentiles = (of: number[] | null): Percentiles | null =>
  of === null ? null : { p50: of[0]!, p90: of[1]!, p99: of[2]!, max: of[3]! }

/** Loads the ledger and joins it; afterwards the temporary tables `request` and `committed` are there. */
export async function loadLedger(client: pg.Client, ledgerFile: string): Promise<void> {
  await client.query(createRequest)
  let lines: string[] = []
  const insert = async () => {
    await client.query(insertRequests, [`[${lines.join(',')}]`])
    lines = []
  }
  for await (const line of createInterface({ input: createReadStream(ledgerFile) })) {
    lines.push(line)
    if (lines.length >= LINES_PER_INSERT) await insert()
  }
  await insert()
  await client.query('analyze request')
  const deadline = Date.now() + BATCH_LINES_MS_MAX
  while (Date.now() < deadline) {
    const { rows } = await client.query(countUnfinished)
    if (rows[0].count === 0) break
    await pause(200)
  }
  await client.query(createCommitted)
  await client.query('analyze committed')
}

/** `startS`: when the first request was sent, s since 1970. */
type Measured = Omit<Summary, 'run'> & { startS: number }

/** Everything of the summary that the database and the ledger know, over the tables that `loadLedger` made. */
export async function measure(client: pg.Client, runId: string): Promise<Measured> {
  const one = async (text: string, values: unknown[] = []) => (await client.query(text, values)).rows[0]
  const sums = await one(readSums)
  if (sums.requests === 0) throw new Error('the ledger holds no request: see locust.log')
  const stored = await one(readCommitted)
  const deadLetters = await one(readDeadLetters, [`benchmark/${runId}/%`])
  if (stored.committed === 0)
    throw new Error('no event of this run is in the database: is DATABASE_URL the one of the service?')
  const endS = Math.max(sums.start_s + sums.load_s, stored.last_s)
  const binS = Math.max(1, Math.ceil((endS - sums.start_s) / BINS_MAX))
  const uncommitted = (await client.query(readUncommitted, [sums.start_s])).rows.map(({ at_s, events }) => ({
    atS: at_s,
    events,
  }))
  return {
    startS: sums.start_s,
    requests: { count: sums.requests, failed: sums.failed, perS: sums.requests / sums.load_s },
    events: {
      sent: sums.sent,
      accepted: sums.accepted,
      rejected: sums.rejected,
      retried: sums.retried,
      poison: sums.poison,
      committed: stored.committed,
      deadLettered: deadLetters.count,
      acceptedPerS: sums.accepted / sums.load_s,
      committedPerS: stored.committed / (stored.last_s - sums.start_s),
    },
    apiMs: percentiles(sums.api_ms)!,
    queueMs: percentiles(stored.queue_ms)!,
    uncommittedMax: Math.max(...uncommitted.map(({ events }) => events)),
    batch: await one(readBatches),
    kinds: await readAllKinds(client),
    timeline: { binS, bins: await readBins(client, sums.start_s, endS, binS), depth: [], uncommitted },
    checks: checksOf(sums, stored.committed, deadLetters.count),
  }
}

async function readAllKinds(client: pg.Client): Promise<Kind[]> {
  const { rows } = await client.query(readKinds)
  return rows.map(({ api_ms, queue_ms, ...kind }) => ({
    ...kind,
    apiMs: percentiles(api_ms)!,
    queueMs: percentiles(queue_ms),
  }))
}

async function readBins(client: pg.Client, startS: number, endS: number, binS: number): Promise<Bin[]> {
  const bins: Bin[] = Array.from({ length: Math.max(1, Math.floor((endS - startS) / binS)) }, (_, index) => ({
    atS: index * binS,
    requestsPerS: 0,
    acceptedPerS: 0,
    committedPerS: 0,
    apiMs: null,
    queueMs: null,
    batch: null,
  }))
  const each = async (text: string, put: (bin: Bin, row: pg.QueryResultRow) => void) => {
    const { rows } = await client.query(text, [startS, binS])
    for (const { bin, ...row } of rows) if (bins[bin] !== undefined) put(bins[bin], row)
  }
  await each(readRequestBins, (bin, { requests, accepted, api_ms }) => {
    bin.requestsPerS = requests / binS
    bin.acceptedPerS = accepted / binS
    bin.apiMs = percentiles(api_ms)
  })
  await each(readCommittedBins, (bin, { committed, queue_ms }) => {
    bin.committedPerS = committed / binS
    bin.queueMs = percentiles(queue_ms)
  })
  await each(readBatchBins, (bin, { p50, max, count }) => {
    bin.batch = { p50, max, count }
  })
  return bins
}

type Sums = Record<'sent' | 'accepted' | 'rejected' | 'retried' | 'poison' | 'unanswered' | 'failed', number>

/** What must agree between the clients' ledger and the database, whoever is right. */
function checksOf(sums: Sums, committed: number, deadLettered: number): Check[] {
  const check = (says: string, left: number, right: number): Check => ({ says, left, right, holds: left === right })
  return [
    check('requests not answered as promised = 0', sums.failed, 0),
    check('events without an answer = 0', sums.unanswered, 0),
    check(
      'accepted = committed + duplicates of retries + poison',
      sums.accepted,
      committed + sums.retried + sums.poison,
    ),
    check('poison = dead letters', sums.poison, deadLettered),
  ]
}
