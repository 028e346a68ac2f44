/**
 * Soak: a steady load for SOAK_MINUTES, with everything sampled that could creep: memory and file descriptors of every
 * process, request latency, bytes of tables and indexes per event, bytes of the stream. The last third is compared with
 * the middle one: the first warms up.
 * Usage: SOAK_MINUTES=30 node tests/faults/soak.ts
 */

import { join } from 'node:path'
import { setTimeout as pause } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import pg from 'pg'
import type { LoadOptions } from './load.ts'
import { judge, type Verdict } from './oracle.ts'
import { childrenOf, footprint, startChild } from './processes.ts'
import { type Rig, startRig } from './rig.ts'
import { DEFAULT_LOAD } from './run-fault.ts'
import { percentile } from './statistics.ts'
import { waitFor } from './wait.ts'

const LOAD = fileURLToPath(new URL('load.ts', import.meta.url))
const minutes = Number(process.env.SOAK_MINUTES ?? 30)
const SAMPLES = 60
const sampleMs = Math.max(1_000, (minutes * 60_000) / SAMPLES)

const POISON_EVERY = 997
/** A garbage collector breathes; a leak of one event in a hundred at this load is larger. */
const MEMORY_GROWTH_MAX = 1.2
const FILES_GROWTH_MAX = 5
const P99_GROWTH_MAX = 3
/** B-tree pages split as they fill. */
const BYTES_PER_EVENT_GROWTH_MAX = 1.25

type Sample = {
  ms: number
  /** By process: API, worker, nats-server, and Postgres with its backends. */
  memoryMb: number[]
  files: number[]
  events: number
  tableBytes: number
  indexBytes: number
  streamDepth: number
}

const PROCESSES = ['API', 'worker', 'nats-server', 'Postgres']

const rig = await startRig({ natsNodes: 1, apis: 1, workers: 1 })
const ledger = join(rig.dir, 'soak.ledger')
const options: LoadOptions = {
  ...DEFAULT_LOAD,
  poisonEvery: POISON_EVERY,
  requestsPerSecond: 50,
  eventsPerRequest: 10,
  run: 'soak',
  urls: rig.apis.map((api) => api.url),
  ledger,
}
const database = new pg.Client({ connectionString: rig.databaseUrl })
await database.connect()
const load = startChild(LOAD, [JSON.stringify(options)], {})
const endsAt = Date.now() + minutes * 60_000
const samples: Sample[] = []
while (Date.now() < endsAt) {
  await pause(sampleMs)
  samples.push(await sample(rig))
}
load.signal('SIGTERM')
await load.exited
await waitFor('everything to be acknowledged', 120_000, async () => (await rig.depth()) === 0)
await database.end()
const verdict = await judge(rig.databaseUrl, 'soak', ledger, POISON_EVERY)
await rig.stop()

const failures = report(verdict)
for (const failure of failures) console.log(`FAIL soak: ${failure}`)
console.log(`\n${failures.length === 0 ? 1 : 0} passed, ${failures.length} failed`)
process.exit(failures.length === 0 ? 0 : 1)

async function sample({ apis, workers, nats, postgres, depth }: Rig): Promise<Sample> {
  const groups = [
    [apis[0]!.child().pid],
    [workers[0]!.child().pid],
    [nats[0]!.pid()],
    [postgres.pid(), ...childrenOf(postgres.pid())],
  ]
  const prints = groups.map((pids) => pids.flatMap(livingFootprint))
  const { rows } = await database.query<{ events: number; table_bytes: number; index_bytes: number }>(
    `select (select count(*)::int from oracle.inserts) as events, sum(pg_table_size(relid))::float8 as table_bytes,
            sum(pg_indexes_size(relid))::float8 as index_bytes
     from (select relid from pg_partition_tree('events') union all select 'event_ids'::regclass) tables`,
  )
  const sum = (values: number[]) => values.reduce((total, value) => total + value, 0)
  return {
    ms: Date.now(),
    memoryMb: prints.map((group) => sum(group.map(({ memoryMb }) => memoryMb))),
    files: prints.map((group) => sum(group.map(({ files }) => files))),
    events: rows[0]!.events,
    tableBytes: rows[0]!.table_bytes,
    indexBytes: rows[0]!.index_bytes,
    streamDepth: await depth(),
  }
}

/** A backend of Postgres may end between the listing and the look. */
function livingFootprint(pid: number) {
  try {
    return [footprint(pid)]
  } catch {
    return []
  }
}

function report({ answered, committed, deadLettered, lost, duplicated, wrong, record }: Verdict): string[] {
  const third = Math.floor(samples.length / 3)
  const thirds = [samples.slice(third, 2 * third), samples.slice(2 * third)] as const
  const [middle, last] = thirds.map((part) => describePart(part, record)) as [Part, Part]
  const table: [name: string, middle: number, last: number, growthMax: number][] = [
    ...PROCESSES.map((name, i): [string, number, number, number] => [
      `${name} memory MB`,
      middle.memoryMb[i]!,
      last.memoryMb[i]!,
      // What Postgres shares counts once per backend, and grows until every backend has touched all of it.
      name === 'Postgres' ? Number.POSITIVE_INFINITY : MEMORY_GROWTH_MAX,
    ]),
    ...PROCESSES.map((name, i): [string, number, number, number] => [
      `${name} file descriptors`,
      middle.files[i]!,
      last.files[i]!,
      name === 'Postgres' ? Number.POSITIVE_INFINITY : (middle.files[i]! + FILES_GROWTH_MAX) / middle.files[i]!,
    ]),
    ['request p50 ms', middle.p50Ms, last.p50Ms, P99_GROWTH_MAX],
    ['request p99 ms', middle.p99Ms, last.p99Ms, P99_GROWTH_MAX],
    ['table bytes per event', middle.tableBytes, last.tableBytes, BYTES_PER_EVENT_GROWTH_MAX],
    ['index bytes per event', middle.indexBytes, last.indexBytes, BYTES_PER_EVENT_GROWTH_MAX],
    ['events not acknowledged', middle.depth, last.depth, Number.POSITIVE_INFINITY],
  ]
  console.log(`\nSoak of ${minutes} minutes: median of the middle third, of the last third`)
  for (const [name, before, after] of table)
    console.log(`  ${name.padEnd(30)}${before.toFixed(1).padStart(10)}${after.toFixed(1).padStart(10)}`)
  console.log(
    `  answered ${answered}, committed ${committed}, dead-lettered ${deadLettered}, lost ${lost.length}, doubled ${duplicated.length}`,
  )
  const grown = table.filter(([, before, after, growthMax]) => after > before * growthMax)
  return [
    ...grown.map(([name, before, after]) => `${name} went from ${before.toFixed(1)} to ${after.toFixed(1)}`),
    ...(lost.length + duplicated.length + wrong.length > 0
      ? [`${lost.length} lost, ${duplicated.length} doubled, wrong: ${wrong.slice(0, 3).join('; ')}`]
      : []),
  ]
}

type Part = ReturnType<typeof describePart>

function describePart(part: Sample[], record: Verdict['record']) {
  const [first, last] = [part[0]!, part.at(-1)!]
  const median = (values: number[]) => percentile(values, 0.5)
  const latencies = record.accepted
    .filter(({ ms }) => ms >= first.ms && ms <= last.ms)
    .map(({ latencyMs }) => latencyMs)
  const events = last.events - first.events
  return {
    memoryMb: PROCESSES.map((_, i) => median(part.map(({ memoryMb }) => memoryMb[i]!))),
    files: PROCESSES.map((_, i) => median(part.map(({ files }) => files[i]!))),
    p50Ms: percentile(latencies, 0.5),
    p99Ms: percentile(latencies, 0.99),
    tableBytes: (last.tableBytes - first.tableBytes) / events,
    indexBytes: (last.indexBytes - first.indexBytes) / events,
    depth: median(part.map(({ streamDepth }) => streamDepth)),
  }
}
