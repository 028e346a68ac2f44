/**
 * `make bench-workflows`: the same three-step workflow on Millrace, DBOS and Restate, in alternating short rounds, so
 * that whatever else the machine does falls on all alike.
 *
 * 1. start Postgres (fsync on) and every contestant
 * 2. for each concurrency and round, each contestant in turn: a closed loop for a few seconds, CPU read before and after
 * 3. count the rows of each
 * 4. one run of 10,000 steps on each; 100,000 sleeping runs on Millrace
 * 5. print the table and write bench/reports/workflows.json
 *
 * BENCH_SECONDS (default 4) is the length of one round of one contestant; 1 gives a quick look.
 */

import { chmodSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { startPostgres } from '../../src/embedded/postgres.ts'
import {
  type Contestant,
  type Servers,
  startDbos,
  startMillrace,
  startMillraceInOne,
  startRestateContestant,
} from './contestants/contestants.ts'
import type { LoadResult, LongResult } from './load.ts'
import { cpuSeconds } from './processes.ts'
import { type Cell, type LongRun, type Report, type RowCount, writeReport } from './report.ts'
import { measureSleepers } from './sleepers.ts'

const SECONDS = Number(process.env.BENCH_SECONDS ?? 4)
const ROUNDS = 3
const CONCURRENCIES = [1, 64, 256, 1_024]
const SLEEPERS = SECONDS < 2 ? 10_000 : 100_000
const LONG_STEPS = SECONDS < 2 ? 2_000 : 10_000

const cpuOf = ({ pids }: Contestant) => Object.entries(pids).map(([kind, pid]) => [kind, cpuSeconds(pid)] as const)

async function measure(contestant: Contestant, concurrency: number, round: number): Promise<Cell> {
  const before = new Map(cpuOf(contestant))
  const result = await contestant.starter.ask<LoadResult>({
    kind: 'load',
    round: `c${concurrency}-r${round}`,
    concurrency,
    ms: SECONDS * 1_000,
  })
  const cpuMs = Object.fromEntries(
    cpuOf(contestant).map(([kind, seconds]) => [kind, ((seconds - before.get(kind)!) * 1_000) / result.done]),
  )
  return { contestant: contestant.name, concurrency, round, cpuMs, ...result }
}

async function measureAll(contestants: Contestant[]): Promise<Cell[]> {
  const cells: Cell[] = []
  // Round -1 warms up: compiled code, connections, plans, file system.
  for (const contestant of contestants) cells.push(await measure(contestant, 64, -1))
  for (const concurrency of CONCURRENCIES)
    for (let round = 0; round < ROUNDS; round++)
      for (const contestant of contestants) {
        const cell = await measure(contestant, concurrency, round)
        process.stderr.write(
          `${cell.contestant} at ${concurrency}: ${Math.round((cell.done * 1_000) / cell.elapsedMs)}/s\n`,
        )
        cells.push(cell)
      }
  return cells
}

async function countAll(contestants: Contestant[], cells: Cell[]): Promise<RowCount[]> {
  return Promise.all(
    contestants.map(async ({ name, count }) => {
      const expected = cells.filter((cell) => cell.contestant === name).reduce((sum, cell) => sum + cell.done, 0)
      const { runs, steps } = await count()
      if (runs !== expected || steps !== expected * 3)
        throw new Error(`${name} answered ${expected} workflows but holds ${runs} with ${steps} steps`)
      return { contestant: name, runs, steps }
    }),
  )
}

async function measureLong(contestants: Contestant[]): Promise<LongRun[]> {
  const runs: LongRun[] = []
  for (const { name, starter } of contestants) {
    const { elapsedMs, marks } = await starter.ask<LongResult>({ kind: 'long', id: 'long-1', steps: LONG_STEPS })
    const perThousandMs = marks.slice(1).map((at, i) => at - marks[i]!)
    runs.push({ contestant: name, steps: LONG_STEPS, elapsedMs, perThousandMs })
    process.stderr.write(`${name}: ${LONG_STEPS} steps in ${Math.round(elapsedMs)} ms\n`)
  }
  return runs
}

const dir = mkdtempSync(join(tmpdir(), 'millrace-bench-workflows-'))
// Root runs Postgres as `nobody`, who must be able to reach the folder.
chmodSync(dir, 0o755)
const postgres = await startPostgres(join(dir, 'pg'))
const servers: Servers = { dir, postgres }
const contestants: Contestant[] = []
try {
  for (const start of [startMillrace, startMillraceInOne, startDbos, startRestateContestant])
    contestants.push(await start(servers))
  const cells = await measureAll(contestants)
  const report: Report = {
    at: new Date().toISOString(),
    seconds: SECONDS,
    rounds: ROUNDS,
    contestants: contestants.map(({ name, says }) => ({ name, says })),
    cells,
    rows: await countAll(contestants, cells),
    long: await measureLong(contestants),
    sleepers: await measureSleepers(contestants[0]!, postgres.url, SLEEPERS),
  }
  writeReport(report)
} finally {
  for (const { stop } of contestants) await stop()
  await postgres.stop()
  rmSync(dir, { recursive: true, force: true })
}
