/** From the rounds to a table and bench/reports/workflows.json. */

import { mkdirSync, writeFileSync } from 'node:fs'
import { availableParallelism, cpus } from 'node:os'
import { fileURLToPath } from 'node:url'
import type { LoadResult } from './load.ts'
import type { Sleepers } from './sleepers.ts'

/** One contestant, one concurrency, one round. `cpuMs` is per workflow, by kind of process. */
export type Cell = LoadResult & {
  contestant: string
  concurrency: number
  round: number
  cpuMs: Record<string, number>
}
export type RowCount = { contestant: string; runs: number; steps: number }
export type LongRun = { contestant: string; steps: number; elapsedMs: number; perThousandMs: number[] }
export type Report = {
  at: string
  seconds: number
  rounds: number
  contestants: { name: string; says: string }[]
  cells: Cell[]
  rows: RowCount[]
  long: LongRun[]
  sleepers: Sleepers
}

/** @property range  lowest and highest round */
type Ratio = { contestant: string; concurrency: number; ratio: number; range: [number, number] }

type Line = {
  contestant: string
  concurrency: number
  perSecond: number
  /** Lowest and highest round. */
  range: [number, number]
  p50Ms: number
  p99Ms: number
  cpuMs: Record<string, number>
}

const isOurs = (contestant: string) => contestant.startsWith('Millrace')

const percentile = (sorted: number[], share: number) =>
  sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? Number.NaN
const median = (values: number[]) =>
  percentile(
    values.toSorted((a, b) => a - b),
    0.5,
  )
const rangeOf = (values: number[]): [number, number] => [Math.min(...values), Math.max(...values)]
const perSecond = (cell: Cell) => (cell.done * 1_000) / cell.elapsedMs

/** The median round for rates and CPU; percentiles over the latencies of all rounds. */
function linesOf(cells: Cell[]): Line[] {
  const groups = Map.groupBy(cells, ({ concurrency, contestant }) => `${concurrency} ${contestant}`)
  return [...groups.values()].map((group) => {
    const { contestant, concurrency, cpuMs } = group[0]!
    const latencies = group.flatMap(({ latenciesMs }) => latenciesMs).toSorted((a, b) => a - b)
    return {
      contestant,
      concurrency,
      perSecond: median(group.map(perSecond)),
      range: rangeOf(group.map(perSecond)),
      p50Ms: percentile(latencies, 0.5),
      p99Ms: percentile(latencies, 0.99),
      cpuMs: Object.fromEntries(
        Object.keys(cpuMs).map((kind) => [kind, median(group.map((cell) => cell.cpuMs[kind]!))]),
      ),
    }
  })
}

/** A way of running Millrace over the faster peer, round by round, then the median round. */
function ratiosToFasterPeer(cells: Cell[]): Ratio[] {
  const groups = Map.groupBy(
    cells.filter(({ contestant }) => isOurs(contestant)),
    ({ concurrency, contestant }) => `${concurrency} ${contestant}`,
  )
  return [...groups.values()].map((ours) => {
    const { contestant, concurrency } = ours[0]!
    const rounds = ours.map((cell) => {
      const peers = cells.filter(
        (other) => other.concurrency === concurrency && other.round === cell.round && !isOurs(other.contestant),
      )
      return perSecond(cell) / Math.max(...peers.map(perSecond))
    })
    return { contestant, concurrency, ratio: median(rounds), range: rangeOf(rounds) }
  })
}

function table(rows: string[][]): string {
  const widths = rows[0]!.map((_, column) => Math.max(...rows.map((row) => row[column]!.length)))
  return rows
    .map((row) => row.map((text, i) => (i === 0 ? text.padEnd(widths[i]!) : text.padStart(widths[i]!))).join('  '))
    .join('\n')
}

export function writeReport(report: Report): void {
  const lines = linesOf(report.cells)
  const kinds = [...new Set(lines.flatMap(({ cpuMs }) => Object.keys(cpuMs)))]
  const ratios = ratiosToFasterPeer(report.cells)
  const machine = `${availableParallelism()} cores of ${cpus()[0]?.model}, Node ${process.version}`

  console.log(`\nThree-step workflow, ${report.rounds} rounds of ${report.seconds} s each, ${machine}`)
  for (const { name, says } of report.contestants) console.log(`  ${name}: ${says}`)
  console.log(
    `\n${table([
      [
        'contestant',
        'concurrency',
        'workflows/s',
        'lowest-highest',
        'p50 ms',
        'p99 ms',
        ...kinds.map((kind) => `${kind} CPU us`),
      ],
      ...lines.map((line) => [
        line.contestant,
        String(line.concurrency),
        line.perSecond.toFixed(0),
        line.range.map((rate) => rate.toFixed(0)).join('-'),
        line.p50Ms.toFixed(1),
        line.p99Ms.toFixed(1),
        ...kinds.map((kind) => (kind in line.cpuMs ? (line.cpuMs[kind]! * 1_000).toFixed(0) : '-')),
      ]),
    ])}`,
  )
  for (const { contestant, concurrency, ratio, range } of ratios)
    console.log(
      `${contestant} at ${concurrency}: ${ratio.toFixed(1)} times the faster peer of the round (${range.map((each) => each.toFixed(1)).join(' to ')})`,
    )
  for (const [contestant, rows] of Map.groupBy(report.rows, (each) => each.contestant)) {
    const sum = (of: 'runs' | 'steps') => rows.reduce((total, each) => total + each[of], 0)
    console.log(
      `${contestant}: ${sum('runs')} workflows and ${sum('steps')} steps found in its tables, every result checked`,
    )
  }
  for (const { contestant, steps, elapsedMs, perThousandMs } of report.long)
    console.log(
      `${contestant}: one run of ${steps} steps in ${(elapsedMs / 1_000).toFixed(1)} s; each thousand took ${perThousandMs.join(', ')} ms`,
    )

  printSleepers(report.sleepers)

  const folder = fileURLToPath(new URL('../reports/', import.meta.url))
  mkdirSync(folder, { recursive: true })
  const cells = report.cells.map(({ latenciesMs, ...cell }) => ({ ...cell, samples: latenciesMs.length }))
  writeFileSync(`${folder}workflows.json`, `${JSON.stringify({ ...report, machine, lines, ratios, cells }, null, 2)}\n`)
  console.log(`\nWritten to bench/reports/workflows.json`)
}

function printSleepers({ count, startedMs, idleCpu, sleepingCpu, workerMiB, lateMs }: Sleepers): void {
  const cores = (cpu: Record<string, number>) =>
    Object.entries(cpu)
      .map(([kind, seconds]) => `${kind} ${(seconds * 100).toFixed(1)}%`)
      .join(', ')
  console.log(`${count} sleeping runs, started in ${(startedMs / 1_000).toFixed(1)} s:`)
  console.log(`  CPU of one core without them: ${cores(idleCpu)}; with them: ${cores(sleepingCpu)}`)
  console.log(
    `  worker's memory ${workerMiB.before.toFixed(0)} MiB before, ${workerMiB.sleeping.toFixed(0)} MiB while they sleep`,
  )
  console.log(
    `  woke late by ${lateMs.p50.toFixed(0)} ms p50, ${lateMs.p99.toFixed(0)} ms p99, ${lateMs.max.toFixed(0)} ms at most`,
  )
}
