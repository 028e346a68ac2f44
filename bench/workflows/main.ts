/**
 * `make bench-workflows`: the same three-step workflow on Millrace, DBOS and Restate, one contestant up at a time, in
 * rounds, so that none of them has to share the machine with another and whatever else it does falls on all alike.
 *
 * 1. in each round, each contestant in turn: start it with servers of its own (fsync on) over an empty folder, warm it up,
 *    for each concurrency a closed loop for a few seconds with CPU read before and after, count its rows, stop it
 * 2. one run of 10,000 steps on each; 100,000 sleeping runs on Millrace
 * 3. print the table and write bench/reports/workflows.json
 *
 * BENCH_SECONDS (default 4) is the length of one loop; 1 gives a quick look. BENCH_CONCURRENCIES narrows it, as in 1,256.
 */

import { chmodSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import {
  type Contestant,
  type Start,
  startDbos,
  startMillrace,
  startMillraceInOne,
  startRestateContestant,
} from './contestants/contestants.ts'
import type { LoadResult, LongResult } from './load.ts'
import { cpuSeconds } from './processes.ts'
import { type Cell, type LongRun, type RowCount, writeReport } from './report.ts'
import { measureSleepers, type Sleepers } from './sleepers.ts'

const SECONDS = Number(process.env.BENCH_SECONDS ?? 4)
const ROUNDS = SECONDS < 2 ? 3 : 5
const CONCURRENCIES = (process.env.BENCH_CONCURRENCIES ?? '1,64,256,1024').split(',').map(Number)
const WARM_UP_SECONDS = 2
const SLEEPERS = SECONDS < 2 ? 10_000 : 100_000
const LONG_STEPS = SECONDS < 2 ? 2_000 : 10_000
const CONTESTANTS = [startMillrace, startMillraceInOne, startDbos, startRestateContestant]

/** Lets a contestant have the machine for as long as `use` takes. */
async function withContestant<T>(start: Start, use: (contestant: Contestant) => Promise<T>): Promise<T> {
  const dir = mkdtempSync(join(tmpdir(), 'millrace-bench-workflows-'))
  // Root runs Postgres as `nobody`, who must be able to reach the folder.
  chmodSync(dir, 0o755)
  try {
    const contestant = await start(dir)
    try {
      return await use(contestant)
    } finally {
      await contestant.stop()
    }
  } finally {
    rmSync(dir, { recursive: true, force: true })
  }
}

const cpuOf = ({ pids }: Contestant) => Object.entries(pids).map(([kind, pid]) => [kind, cpuSeconds(pid)] as const)

const load = ({ starter }: Contestant, concurrency: number, seconds: number, round: string) =>
  starter.ask<LoadResult>({ kind: 'load', round, concurrency, ms: seconds * 1_000 })

async function measure(contestant: Contestant, concurrency: number, round: number): Promise<Cell> {
  const before = new Map(cpuOf(contestant))
  const result = await load(contestant, concurrency, SECONDS, `c${concurrency}`)
  const cpuMs = Object.fromEntries(
    cpuOf(contestant).map(([kind, seconds]) => [kind, ((seconds - before.get(kind)!) * 1_000) / result.done]),
  )
  process.stderr.write(
    `${contestant.name} at ${concurrency}: ${Math.round((result.done * 1_000) / result.elapsedMs)}/s\n`,
  )
  return { contestant: contestant.name, concurrency, round, cpuMs, ...result }
}

/** One contestant's turn in a round: every concurrency, and whether its tables hold what it answered. */
async function takeTurn(contestant: Contestant, round: number): Promise<{ cells: Cell[]; rows: RowCount }> {
  // Compiled code, connections, plans, file system.
  let expected = (await load(contestant, 64, WARM_UP_SECONDS, 'warm')).done
  const cells: Cell[] = []
  for (const concurrency of CONCURRENCIES) cells.push(await measure(contestant, concurrency, round))
  for (const { done } of cells) expected += done
  const { runs, steps } = await contestant.count()
  if (runs !== expected || steps !== expected * 3)
    throw new Error(`${contestant.name} answered ${expected} workflows but holds ${runs} with ${steps} steps`)
  return { cells, rows: { contestant: contestant.name, runs, steps } }
}

async function measureLong({ name, starter }: Contestant): Promise<LongRun> {
  const { elapsedMs, marks } = await starter.ask<LongResult>({ kind: 'long', id: 'long-1', steps: LONG_STEPS })
  process.stderr.write(`${name}: ${LONG_STEPS} steps in ${Math.round(elapsedMs)} ms\n`)
  return {
    contestant: name,
    steps: LONG_STEPS,
    elapsedMs,
    perThousandMs: marks.slice(1).map((at, i) => at - marks[i]!),
  }
}

const contestants = new Map<string, string>()
const cells: Cell[] = []
const rows: RowCount[] = []
for (let round = 0; round < ROUNDS; round++)
  for (const start of CONTESTANTS)
    await withContestant(start, async (contestant) => {
      contestants.set(contestant.name, contestant.says)
      const turn = await takeTurn(contestant, round)
      cells.push(...turn.cells)
      rows.push(turn.rows)
    })
const long: LongRun[] = []
let sleepers: Sleepers | undefined
for (const start of CONTESTANTS)
  await withContestant(start, async (contestant) => {
    long.push(await measureLong(contestant))
    if (start === startMillrace) sleepers = await measureSleepers(contestant, contestant.databaseUrl!, SLEEPERS)
  })
writeReport({
  at: new Date().toISOString(),
  seconds: SECONDS,
  rounds: ROUNDS,
  contestants: [...contestants].map(([name, says]) => ({ name, says })),
  cells,
  rows,
  long,
  sleepers: sleepers!,
})
