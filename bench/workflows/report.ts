/** From the rounds to a table and bench/reports/workflows.json. */

import { mkdirSync, writeFileSync } from 'node:fs'
import { availableParallelism, cpus } from 'node:os'
import { fileURLToPath } from 'node:url'
import type { LoadResult } from './load.ts'

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
}

type Line = {
  contestant: string
  concurrency: number
  perSecond: number
  p50Ms: number
  p99Ms: number
  cpuMs: Record<string, number>
}

const HERO = 'Millrace'

const percentile = (sorted: number[], share: number) =>
  sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? Number.NaN
const median = (values: number[]) =>
  percentile(
    values.toSorted((a, b) => a - b),
    0.5,
  )
const perSecond = (cell: Cell) => (cell.done * 1_000) / cell.elapsedMs

/** The median round for rates and CPU; percentiles over the latencies of all rounds. */
function linesOf(cells: Cell[]): Line[] {
  const groups = Map.groupBy(
    cells.filter(({ round }) => round >= 0),
    ({ concurrency, contestant }) => `${concurrency} ${contestant}`,
  )
  return [...groups.values()].map((group) => {
    const { contestant, concurrency, cpuMs } = group[0]!
    const latencies = group.flatMap(({ latenciesMs }) => latenciesMs).toSorted((a, b) => a - b)
    return {
      contestant,
      concurrency,
      perSecond: median(group.map(perSecond)),
      p50Ms: percentile(latencies, 0.5),
      p99Ms: percentile(latencies, 0.99),
      cpuMs: Object.fromEntries(
        Object.keys(cpuMs).map((kind) => [kind, median(group.map((cell) => cell.cpuMs[kind]!))]),
      ),
    }
  })
}

/** Millrace's rate over the faster peer's, each round by itself, then the median. */
function ratioToFasterPeer(cells: Cell[], concurrency: number): number {
  const rounds = Map.groupBy(
    cells.filter((cell) => cell.concurrency === concurrency && cell.round >= 0),
    ({ round }) => round,
  )
  return median(
    [...rounds.values()].map((round) => {
      const rate = (hero: boolean) =>
        Math.max(...round.filter(({ contestant }) => (contestant === HERO) === hero).map(perSecond))
      return rate(true) / rate(false)
    }),
  )
}

function table(rows: string[][]): string {
  const widths = rows[0]!.map((_, column) => Math.max(...rows.map((row) => row[column]!.length)))
  return rows
    .map((row) => row.map((text, i) => (i === 0 ? text.padEnd(widths[i]!) : text.padStart(widths[i]!))).join('  '))
    .join('\n')
}

export function writeReport(report: Report): void {
  const lines = linesOf(report.cells)
  const concurrencies = [...new Set(lines.map(({ concurrency }) => concurrency))]
  const kinds = [...new Set(lines.flatMap(({ cpuMs }) => Object.keys(cpuMs)))]
  const ratios = report.contestants.some(({ name }) => name === HERO)
    ? concurrencies.map((concurrency) => ({ concurrency, ratio: ratioToFasterPeer(report.cells, concurrency) }))
    : []
  const machine = `${availableParallelism()} cores of ${cpus()[0]?.model}, Node ${process.version}`

  console.log(`\nThree-step workflow, ${report.rounds} rounds of ${report.seconds} s each, ${machine}`)
  for (const { name, says } of report.contestants) console.log(`  ${name}: ${says}`)
  console.log(
    `\n${table([
      ['contestant', 'concurrency', 'workflows/s', 'p50 ms', 'p99 ms', ...kinds.map((kind) => `${kind} CPU ms`)],
      ...lines.map((line) => [
        line.contestant,
        String(line.concurrency),
        line.perSecond.toFixed(0),
        line.p50Ms.toFixed(1),
        line.p99Ms.toFixed(1),
        ...kinds.map((kind) => line.cpuMs[kind]?.toFixed(2) ?? '-'),
      ]),
    ])}`,
  )
  for (const { concurrency, ratio } of ratios)
    console.log(`${HERO} at ${concurrency}: ${ratio.toFixed(1)} times the faster peer`)
  for (const { contestant, runs, steps } of report.rows)
    console.log(`${contestant}: ${runs} workflows and ${steps} steps found in its tables, every result checked`)
  for (const { contestant, steps, elapsedMs, perThousandMs } of report.long)
    console.log(
      `${contestant}: one run of ${steps} steps in ${(elapsedMs / 1_000).toFixed(1)} s; each thousand took ${perThousandMs.join(', ')} ms`,
    )

  const folder = fileURLToPath(new URL('../reports/', import.meta.url))
  mkdirSync(folder, { recursive: true })
  const cells = report.cells.map(({ latenciesMs, ...cell }) => ({ ...cell, samples: latenciesMs.length }))
  writeFileSync(`${folder}workflows.json`, `${JSON.stringify({ ...report, machine, lines, ratios, cells }, null, 2)}\n`)
  console.log(`\nWritten to bench/reports/workflows.json`)
}
