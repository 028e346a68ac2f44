/**
 * `make bench-scale`: how throughput grows with API and worker processes, predicted (scale-model.ts) and measured.
 * 1. What each process spends on an event, at requests of 1, 10 and 100; and the same with 2 and 4 processes of each kind.
 * 2. A scale model of a larger machine: API and worker processes at a tenth of their speed, by stopping them nine tenths of
 *    the time, so that few cores are as many slow ones, and 1 to 4 of each kind show the shape of the curve.
 * 3. What an event costs on a cluster of three nats-servers.
 * Each case is verified: what was answered is stored. BENCH_SECONDS per case (5).
 */

import { mkdirSync, rmSync, writeFileSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { join } from 'node:path'
import { type Costs, plan, predict } from './scale-model.ts'
import { type Measured, startRig } from './scale-rig.ts'

const seconds = Number(process.env.BENCH_SECONDS ?? 5)
const cores = availableParallelism()
const SIZES = [1, 10, 100]
/** Numbers of APIs and workers: what one more of either brings, alone and together. */
const SHAPES: [size: number, fleets: [apis: number, workers: number][]][] = [
  [
    10,
    [
      [1, 1],
      [2, 1],
      [3, 1],
      [4, 1],
      [2, 2],
      [3, 2],
      [4, 2],
      [4, 4],
      [1, 4],
    ],
  ],
  [
    100,
    [
      [1, 1],
      [2, 1],
      [3, 1],
      [3, 2],
      [4, 2],
      [4, 4],
    ],
  ],
]
const RATES = [10_000, 50_000, 200_000, 1_000_000]

const whole = (value: number) => Math.round(value)
const tenth = (value: number) => Number(value.toFixed(1))
const share = (value: number) => Number(value.toFixed(2))

/** @param costs  of a run of one process of each kind, from which this one is predicted */
function row(measured: Measured, costs: Costs) {
  const { fleet, size, accepted, rate, apiLoad, workerLoad, busy, others, walBytes, costs: own } = measured
  const expected = predict(costs, fleet, cores - others)
  return {
    'events/request': size,
    apis: fleet.apis,
    workers: fleet.workers,
    'accepted/s': whole(accepted),
    'committed/s': whole(rate),
    'predicted/s': whole(expected.rate),
    'of predicted': share(rate / expected.rate),
    'limited by': expected.limit,
    'api load': share(apiLoad),
    'worker load': share(workerLoad),
    'cores used': tenth(busy),
    'by others': tenth(others),
    'WAL bytes': whole(walBytes),
    ...Object.fromEntries(Object.entries(own).map(([name, us]) => [`${name} us`, tenth(us)])),
  }
}

const dir = join(process.cwd(), '.millrace/bench-scale')
const tables: Record<string, object[]> = {}
const costsOf = new Map<number, Costs>()
const add = (title: string, measured: Measured) => {
  if (!costsOf.has(measured.size)) costsOf.set(measured.size, measured.costs)
  tables[title] ??= []
  tables[title].push(row(measured, costsOf.get(measured.size)!))
}

async function withRig(replicas: 1 | 3, run: (rig: Awaited<ReturnType<typeof startRig>>) => Promise<void>) {
  rmSync(dir, { recursive: true, force: true })
  const rig = await startRig(dir, { replicas, seconds })
  await run(rig).finally(rig.stop)
}

await withRig(1, async ({ measure }) => {
  for (const each of [1, 2, 4])
    for (const size of SIZES) add('At full speed', await measure(size, { apis: each, workers: each, speed: 1 }))
  for (const [size, fleets] of SHAPES)
    for (const [apis, workers] of fleets)
      add('At a tenth of their speed', await measure(size, { apis, workers, speed: 0.1 }))
})
await withRig(3, async ({ measure }) => {
  for (const size of SIZES)
    add('On three nats-servers (nats us: all of them)', await measure(size, { apis: 1, workers: 1, speed: 1 }))
})

const plans = [...costsOf].flatMap(([size, costs]) =>
  RATES.map((rate) => {
    const { natsCores, postgresCores, ...counts } = plan(costs, rate)
    return {
      'events/request': size,
      'events/s': rate,
      ...counts,
      'nats cores': tenth(natsCores),
      'postgres cores': tenth(postgresCores),
    }
  }),
)
for (const [title, rows] of Object.entries(tables)) {
  console.log(`\n${title}; ${cores} cores for everything, the load too`)
  console.table(rows)
}
console.log('\nWhat a rate takes, by the costs at full speed (processes loaded to 70%)')
console.table(plans)
mkdirSync('bench/reports', { recursive: true })
const markdown = (rows: object[]) => {
  const names = Object.keys(rows[0]!)
  const lines = rows.map((row) => `| ${Object.values(row).join(' | ')} |`)
  return [`| ${names.join(' | ')} |`, `|${'---|'.repeat(names.length)}`, ...lines].join('\n')
}
writeFileSync(
  'bench/reports/scale.md',
  [...Object.entries(tables), ['What a rate takes', plans] as const]
    .map(([title, rows]) => `## ${title}\n\n${markdown(rows)}\n`)
    .join('\n'),
)
const report = { at: new Date().toISOString(), cores, seconds, tables, plans }
writeFileSync('bench/reports/scale.json', `${JSON.stringify(report, null, 2)}\n`)
