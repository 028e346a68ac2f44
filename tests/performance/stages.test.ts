import { execFile } from 'node:child_process'
import { readdirSync, readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { temporaryFolder } from '../servers.ts'
import { type Comparison, gainsOf, type Measured } from './gains.ts'

const reports = temporaryFolder('stages')
test.after(() => rmSync(reports, { recursive: true, force: true }))

test('every stage drains the backlog, and its round trips follow its settings', async () => {
  const { stdout } = await promisify(execFile)(
    process.execPath,
    [fileURLToPath(new URL('stages.ts', import.meta.url))],
    {
      env: {
        ...process.env,
        BENCHMARK_REPORTS: reports,
        BENCHMARK_ROUNDS: '1',
        BENCHMARK_BACKLOG: '3000',
        BENCHMARK_LIGHT_SECONDS: '1',
        BENCHMARK_DRAIN_SECONDS: '1',
      },
    },
  )
  const folder = join(reports, readdirSync(reports)[0]!)
  const comparison: Comparison = JSON.parse(readFileSync(join(folder, 'summary.json'), 'utf8'))
  const [one, pool, batch, pull, adaptive] = comparison.measured.map((rounds) => rounds[0]!) as [
    Measured,
    Measured,
    Measured,
    Measured,
    Measured,
  ]
  assert.is(one.insertsPer1000, 1_000)
  assert.is(pool.insertsPer1000, 1_000)
  assert.ok(batch.batchSize > 25 && batch.batchSize <= 50)
  assert.ok(pull.batchSize > 25 && pull.batchSize <= 50)
  assert.ok(batch.pullsPer1000 >= 1_000, 'each pull asks for one')
  // Four workers may hold two requests each that nothing answers.
  assert.ok(pull.pullsPer1000 < 100, 'each pull asks for a hundred')
  assert.ok(adaptive.pullsPer1000 < batch.pullsPer1000)
  for (const measured of [one, pool, batch, pull, adaptive]) {
    assert.ok(measured.commitsPer1000 >= measured.insertsPer1000, 'Postgres counts at least the inserts')
    assert.ok(measured.messagesPer1000 >= 999, 'every event is acknowledged')
    assert.ok(measured.lightMs.p50 > 0 && measured.lightMs.p50 <= measured.lightMs.p99)
    assert.is(measured.curve.at(-1)![1], measured.committed)
  }

  const page = readFileSync(join(folder, 'report.html'), 'utf8')
  assert.not.match(page, /(src|href)="?https?:/, 'the page needs nothing from elsewhere')
  assert.not.match(page, /NaN|undefined|Infinity/)
  for (const { says } of gainsOf(comparison)) assert.ok(stdout.includes(says), `the terminal tells ${says}`)
})

test('a gain is the median of its rounds, judged against what was expected', () => {
  const stage = (eventsPerS: number): Measured => ({
    committed: 1_000,
    eventsPerS,
    batchSize: 1,
    insertsPer1000: 1_000,
    commitsPer1000: 1_000,
    pullsPer1000: 1_000,
    messagesPer1000: 2_000,
    lightMs: { p50: 1, p99: 2 },
    curve: [],
  })
  const judged = (...pool: number[]) => {
    const rounds = (speeds: number[]) => speeds.map(stage)
    const one = rounds(pool.map(() => 100))
    const measured = [one, rounds(pool), one, one, one]
    const common = { startedAt: '', rounds: pool.length, backlog: 0, lightEventsPerS: 0, cores: 2, loadBefore: 0 }
    return gainsOf({ ...common, measured })[0]!
  }
  assert.is(judged(900, 200, 400).factor, 4)
  assert.is(judged(900, 200, 400).verdict, 'as expected')
  assert.is(judged(900, 200, 400).agreed, false)
  assert.is(judged(300, 400).agreed, true)
  assert.is(judged(200).verdict, 'less than expected')
  assert.is(judged(290).verdict, 'as expected', 'within five per cent')
  assert.is(judged(700).verdict, 'more than expected')
})

test.run()
