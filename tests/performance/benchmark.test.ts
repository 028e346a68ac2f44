import { execFile } from 'node:child_process'
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { sql } from 'drizzle-orm'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { startServers } from '../servers.ts'
import { startService } from '../service.ts'
import type { Summary } from './summary.ts'

const servers = await startServers()
const service = await startService(servers)
test.after(async () => {
  await service.stop()
  await servers.stop()
})

const reports = join(servers.dir, 'reports')

/** Runs the benchmark as make does; one that exits other than 0 throws. */
async function runBenchmark(): Promise<{ output: string; folder: string; summary: Summary }> {
  const { stdout } = await promisify(execFile)(
    process.execPath,
    [fileURLToPath(new URL('benchmark.ts', import.meta.url))],
    {
      env: {
        ...process.env,
        BENCHMARK_URL: service.url,
        DATABASE_URL: servers.postgres.url,
        NATS_URL: servers.nats.url,
        BENCHMARK_USERS: '4',
        BENCHMARK_SECONDS: '3',
        BENCHMARK_REPORTS: reports,
      },
    },
  ).catch((error) => {
    throw new Error(`${error.message}\n${error.stdout}`)
  })
  const folder = join(reports, readdirSync(reports).sort().at(-1)!)
  return { output: stdout, folder, summary: JSON.parse(readFileSync(join(folder, 'summary.json'), 'utf8')) }
}

const count = async (query: ReturnType<typeof sql>) =>
  Number((await servers.db.execute<{ count: string }>(query)).rows[0]!.count)

test('a run leaves a report whose sums are those of the database', async () => {
  const { output, folder, summary } = await runBenchmark()
  const { events, requests, timeline } = summary

  assert.is(requests.failed, 0)
  const ledger = readFileSync(join(folder, 'ledger.jsonl'), 'utf8').trimEnd().split('\n')
  const rejected = ledger.reduce((sum, line) => sum + JSON.parse(line).rejected, 0)
  assert.is(requests.count, ledger.length)
  assert.is(events.rejected, rejected)
  assert.ok(events.committed > 0)
  assert.is(events.committed, await count(sql`select count(*) from events where source like 'benchmark/%'`))
  assert.is(events.accepted, events.committed + events.retried)
  assert.is(summary.batch.count, await count(sql`select count(distinct batch_id) from events`))

  const [row] = (
    await servers.db.execute<{ p50: number; max: number }>(sql`
      select percentile_cont(0.5) within group (order by ms) as p50, max(ms) as max
      from (select extract(epoch from committed_at - received_at)::float8 * 1000 as ms
            from events join batches on batches.id = batch_id) as latencies`)
  ).rows
  assert.is(summary.queueMs.p50, row!.p50)
  assert.is(summary.queueMs.max, row!.max)
  assert.is(timeline.uncommitted.at(-1)!.events, 0, 'all that was stored was committed')
  assert.ok(timeline.depth.length > 0)

  const files = readdirSync(folder)
  for (const file of ['locust.html', 'locust_stats.csv', 'locust_stats_history.csv', 'ledger.jsonl', 'report.html'])
    assert.ok(files.includes(file), `${file} is written`)
  const page = readFileSync(join(folder, 'report.html'), 'utf8')
  assert.not.match(page, /(src|href)="?https?:/, 'the page needs nothing from elsewhere')
  assert.not.match(page, /NaN|undefined|Infinity/)
  assert.match(output, /accepted = committed \+ duplicates of retries \+ poison/)
})

test('poison that the table refuses is counted as dead letters, and the run is set beside the one before', async () => {
  await servers.db.execute(sql`alter table events add constraint no_poison check (type <> 'benchmark.poison')`)
  process.env.BENCHMARK_POISON = 'true'
  process.env.BENCHMARK_POISON_WEIGHT = '400'
  const { output, summary } = await runBenchmark()
  assert.ok(summary.events.poison > 0)
  assert.is(summary.events.deadLettered, summary.events.poison)
  assert.is(
    summary.events.deadLettered,
    await count(sql`select count(*) from dead_letter_audit where action = 'recorded'`),
  )
  assert.match(output, /Against the run of/)
})

test.run()
