/** One fault under a steady load: the load runs before, through and after it; then the queue empties and the oracle judges. */

import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import pg from 'pg'
import { readLedger } from './ledger.ts'
import type { LoadOptions } from './load.ts'
import { judge, type Verdict } from './oracle.ts'
import { startChild } from './processes.ts'
import type { Rig } from './rig.ts'
import { waitFor } from './wait.ts'

const LOAD = fileURLToPath(new URL('load.ts', import.meta.url))

export type Fault = {
  name: string
  /**
   * Does the harm and mends it.
   * @returns when the last broken part works again, in ms since 1970: recovery counts from there
   */
  inject: (rig: Rig) => Promise<number>
  /** Where the fault needs another load than the runner's. */
  load?: FaultLoad
}

export type Outcome = Verdict & {
  name: string
  /** Events per second answered over the whole run, the fault included. */
  loadHeld: number
  /** From the end of the fault until an event sent after it was stored. */
  recoveryMs: number
  /** The longest time without an accepted answer. */
  silenceMs: number
  /** From SIGTERM of the load until everything was acknowledged. */
  drainMs: number
}

export const DEFAULT_LOAD = {
  requestsPerSecond: 40,
  eventsPerRequest: 5,
  poisonEvery: 97,
  concurrencyMax: 64,
  fillerBytes: 200,
  patienceMs: 30_000,
  retryMs: 100,
}

/** A run that comes to rest neither lost nor kept its events: it hangs. */
const REST_MS_MAX = 240_000
/** `steadyEvents` are stored before the fault, and again after it: the state before, and that recovery lasts. */
type FaultLoad = Partial<Omit<LoadOptions, 'run' | 'urls' | 'ledger'>> & { steadyEvents?: number }

let runs = 0

export async function runFault(rig: Rig, fault: Fault, common: FaultLoad = {}): Promise<Outcome> {
  const { steadyEvents = 100, ...load } = { ...common, ...fault.load }
  const run = `run${process.pid}-${runs++}`
  const ledger = join(rig.dir, `${run}.ledger`)
  const options: LoadOptions = { ...DEFAULT_LOAD, ...load, run, urls: rig.apis.map((api) => api.url), ledger }
  const startedAt = performance.now()
  const generator = startChild(LOAD, [JSON.stringify(options)], {})
  const stored = () => countStored(rig, run, 0)
  await waitFor('the load to flow', REST_MS_MAX, async () => (await stored()) >= steadyEvents)

  const mendedMs = await fault.inject(rig)

  await waitFor(`events to flow after: ${fault.name}`, REST_MS_MAX, async () => {
    const before = readLedger(ledger).sent.filter(({ ms }) => ms < mendedMs)
    const newest = Math.max(...before.map(({ first, count }) => first + count))
    return (await countStored(rig, run, newest)) >= steadyEvents
  })
  generator.signal('SIGTERM')
  const { code } = await generator.exited
  if (code !== 0) throw new Error(`the load generator failed: ${generator.log()}`)
  const seconds = (performance.now() - startedAt) / 1_000
  const stoppedAt = performance.now()
  await waitFor('everything to be acknowledged', REST_MS_MAX, async () => (await rig.depth()) === 0).catch((error) => {
    throw new Error(`${fault.name}: ${rig.workers.map((worker) => worker.child().log().slice(-2_000)).join('\n')}`, {
      cause: error,
    })
  })
  const drainMs = performance.now() - stoppedAt

  const verdict = await judge(rig.databaseUrl, run, ledger, options.poisonEvery)
  return {
    ...verdict,
    name: fault.name,
    loadHeld: verdict.answered / seconds,
    recoveryMs: recoveryOf(verdict, run, mendedMs),
    silenceMs: silenceOf(verdict.record.accepted.map(({ ms }) => ms)),
    drainMs,
  }
}

function silenceOf(answersMs: number[]): number {
  const sorted = answersMs.toSorted((a, b) => a - b)
  return sorted.reduce((longest, ms, i) => Math.max(longest, ms - (sorted[i - 1] ?? ms)), 0)
}

/** Events sent once before count from their first attempt, so an earlier request sent again tells nothing here. */
function recoveryOf({ record, storedMs }: Verdict, run: string, mendedMs: number): number {
  const newestBefore = record.sent.reduce(
    (newest, { ms, first }) => (ms < mendedMs ? Math.max(newest, first) : newest),
    -1,
  )
  let stored = Number.POSITIVE_INFINITY
  for (const { first, count } of record.sent) {
    if (first <= newestBefore) continue
    for (let i = 0; i < count; i++) stored = Math.min(stored, storedMs.get(`${run}-${first + i}`) ?? stored)
  }
  return stored - mendedMs
}

/** Events of the run numbered `from` and above that are stored; -1 while Postgres does not answer. */
async function countStored(rig: Rig, run: string, from: number): Promise<number> {
  const client = new pg.Client({
    connectionString: rig.databaseUrl,
    connectionTimeoutMillis: 2_000,
    query_timeout: 5_000,
  })
  client.on('error', () => {})
  try {
    await client.connect()
    const { rows } = await client.query<{ count: number }>(
      `select count(*)::int from oracle.inserts where source = $1 and substring(id from '[0-9]+$')::bigint >= $2`,
      [run, from],
    )
    return rows[0]!.count
  } catch {
    return -1
  } finally {
    await client.end().catch(() => {})
  }
}

/** What the promises allow: empty when nothing is lost, doubled or wrong. */
export function complaints({ name, lost, duplicated, wrong }: Outcome): string[] {
  const say = (what: string, ids: string[]) =>
    ids.length === 0 ? [] : [`${name}: ${ids.length} ${what}, such as ${ids.slice(0, 3).join('; ')}`]
  return [...say('lost', lost), ...say('duplicated', duplicated), ...say('wrong', wrong)]
}
