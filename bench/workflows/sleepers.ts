/**
 * 100,000 sleeping runs on Millrace: what they cost while they sleep, and how late they wake.
 * They are due evenly over a minute, so that waking them is no burst that no engine could run at once.
 */

import { setTimeout as pause } from 'node:timers/promises'
import pg from 'pg'
import type { Contestant } from './contestants/contestants.ts'
import type { SleepersResult } from './load.ts'
import { cpuSeconds, residentMiB } from './processes.ts'

export type Sleepers = {
  count: number
  startedMs: number
  /** CPU seconds per second by kind of process, without and with the sleeping runs. */
  idleCpu: Record<string, number>
  sleepingCpu: Record<string, number>
  workerMiB: { before: number; sleeping: number }
  lateMs: { p50: number; p99: number; max: number }
}

const WINDOW_MS = 10_000
/** Runs that can be started in a second, at the very least: how far ahead the first one is due. */
const STARTS_PER_SECOND_MIN = 2_000
const DUE_PER_SECOND = 1_667

async function cpuPerSecond({ pids }: Contestant): Promise<Record<string, number>> {
  const before = Object.entries(pids).map(([kind, pid]) => [kind, pid, cpuSeconds(pid)] as const)
  await pause(WINDOW_MS)
  return Object.fromEntries(
    before.map(([kind, pid, seconds]) => [kind, (cpuSeconds(pid) - seconds) / (WINDOW_MS / 1_000)]),
  )
}

export async function measureSleepers(contestant: Contestant, databaseUrl: string, count: number): Promise<Sleepers> {
  const worker = contestant.pids.worker!
  const idleCpu = await cpuPerSecond(contestant)
  const before = residentMiB(worker)
  const spreadMs = (count / DUE_PER_SECOND) * 1_000
  const firstDueAt = Date.now() + (count / STARTS_PER_SECOND_MIN) * 1_000 + 5_000 + WINDOW_MS
  const { startedMs } = await contestant.starter.ask<SleepersResult>({
    kind: 'sleepers',
    round: 'sleeper',
    count,
    firstDueAt,
    spreadMs,
  })
  if (Date.now() + WINDOW_MS > firstDueAt)
    throw new Error(`the machine is too busy: ${count} starts took ${startedMs} ms`)
  // What the starts left behind (checkpoints, vacuum) is not the sleepers' cost.
  await pause(Math.max(0, firstDueAt - Date.now() - WINDOW_MS - 1_000))
  const sleepingCpu = await cpuPerSecond(contestant)
  const sleeping = residentMiB(worker)

  const client = new pg.Client({ connectionString: databaseUrl })
  await client.connect()
  const deadline = firstDueAt + spreadMs + 60_000
  for (;;) {
    await pause(1_000)
    const { rows } = await client.query<{ n: number; p: number[]; max: number }>(
      `select count(*)::int as n, percentile_disc(array[0.5, 0.99]) within group (order by late) as p, max(late) as max
       from (select output::text::float8 as late from workflow_runs where name = 'sleeper' and status = 'completed') t`,
    )
    const { n, p, max } = rows[0]!
    if (n === count) {
      await client.end()
      const lateMs = { p50: p[0]!, p99: p[1]!, max }
      return { count, startedMs, idleCpu, sleepingCpu, workerMiB: { before, sleeping }, lateMs }
    }
    if (Date.now() > deadline) throw new Error(`only ${n} of ${count} sleepers woke in time`)
  }
}
