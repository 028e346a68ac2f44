/** What `millrace workflows` and `millrace schedules` share: an engine that runs nothing, arguments, and printing. */

import { readFileSync } from 'node:fs'
import { styleText } from 'node:util'
import { InvalidArgumentError } from 'commander'
import { type Broker, connectBroker } from '../broker/connect.ts'
import { connectDatabase } from '../db/connect.ts'
import { startJobs } from '../db/jobs.ts'
import { describe, MillraceError } from '../errors.ts'
import { actingFor, type Engine, startEngine } from '../workflow/engine.ts'
import { atTerminal, operatorConfig } from './operator-config.ts'

/** Runs one command over the database, and over NATS where it answers: without, workers only notice a little later. */
export async function withEngine(run: (engine: Engine) => Promise<void>): Promise<void> {
  const config = await operatorConfig()
  const database = connectDatabase(config)
  const say = (error: unknown, doing: string) => console.error(`millrace: ${doing}: ${describe(error)}`)
  const broker: Broker | null = await connectBroker(config, 'workflows').catch((error) => {
    say(error, 'going on without NATS')
    return null
  })
  const jobs = await startJobs(config.DATABASE_URL, { onError: (error) => say(error, 'pg-boss') })
  try {
    const engine = await startEngine({ database, databaseUrl: config.DATABASE_URL, broker, jobs, onError: say })
    await run(actingFor(engine, atTerminal(config.WORKFLOW_TENANT))).finally(engine.stop)
  } finally {
    await jobs.stop()
    await broker?.close()
    await database.close()
  }
}

/** JSON, or `@file` with JSON in it. */
export function json(text: string): unknown {
  try {
    return JSON.parse(text.startsWith('@') ? readFileSync(text.slice(1), 'utf8') : text)
  } catch (error) {
    throw new InvalidArgumentError(`Give JSON (text in double quotes), or @file: ${(error as Error).message}`)
  }
}

export function whole(text: string): number {
  const value = Number(text)
  if (!Number.isSafeInteger(value)) throw new InvalidArgumentError('Give a whole number.')
  return value
}

export function instant(text: string): string {
  const date = new Date(text)
  if (Number.isNaN(date.getTime())) throw new InvalidArgumentError('Give a time of ISO 8601.')
  return date.toISOString()
}

/** `name=value`, collected. */
export function pair(text: string, before: Record<string, string> = {}): Record<string, string> {
  const at = text.indexOf('=')
  if (at < 1) throw new InvalidArgumentError('Give name=value.')
  return { ...before, [text.slice(0, at)]: text.slice(at + 1) }
}

/** A step's name, or its position. */
export const step = (text: string): number | string => (/^\d+$/.test(text) ? Number(text) : text)

export const printJson = (value: unknown): void => console.log(JSON.stringify(value))

/** Columns as wide as their widest cell, the last one as long as it is; escape codes take no width. */
export function table(heads: string[], rows: string[][]): void {
  const bare = (text: string) => text.replaceAll(/\x1b\[\d+m/g, '').length
  const widths = heads.map((head, column) => Math.max(head.length, ...rows.map((row) => bare(row[column]!))))
  const line = (cells: string[]) =>
    cells.map((cell, i) => (i < cells.length - 1 ? cell + ' '.repeat(widths[i]! - bare(cell)) : cell)).join('  ')
  console.log(styleText('dim', line(heads)))
  for (const row of rows) console.log(line(row))
}

const COLOURS = {
  completed: 'green',
  running: 'cyan',
  queued: 'blue',
  waiting: 'blue',
  failed: 'red',
  stuck: 'red',
  cancelled: 'yellow',
  terminated: 'yellow',
} as const

export const coloured = (status: string): string =>
  styleText(COLOURS[status as keyof typeof COLOURS] ?? 'white', status)

/** As much of a value as fits in a line of a terminal. */
export function brief(value: unknown, width = 60): string {
  const text = value == null ? '' : typeof value === 'string' ? value : JSON.stringify(value)
  const line = text.replaceAll(/\s+/g, ' ')
  return line.length > width ? `${line.slice(0, width - 1)}…` : line
}

export const timeOf = (date: Date | null): string =>
  date === null ? '' : date.toISOString().slice(0, 19).replace('T', ' ')

/** `1.2 s`, `3 m 04 s`: how long it took, or has taken. */
export function spanOf(ms: number): string {
  if (ms < 1_000) return `${Math.round(ms)} ms`
  if (ms < 60_000) return `${(ms / 1_000).toFixed(1)} s`
  const minutes = Math.floor(ms / 60_000)
  if (minutes < 60) return `${minutes} m ${String(Math.floor((ms % 60_000) / 1_000)).padStart(2, '0')} s`
  const hours = Math.floor(minutes / 60)
  return hours < 48 ? `${hours} h ${String(minutes % 60).padStart(2, '0')} m` : `${Math.floor(hours / 24)} d`
}

/** A run's outcome, for whoever waited for it; a failure makes the process exit with 1. */
export async function printResult(engine: Engine, runId: string, waitMs: number | null): Promise<void> {
  const signal = waitMs === null ? undefined : AbortSignal.timeout(waitMs)
  try {
    console.log(JSON.stringify((await engine.results.wait(runId, signal)) ?? null, null, 2))
  } catch (error) {
    if (signal?.aborted) throw new MillraceError('timed_out', `Run ${runId} has not ended within ${waitMs} ms`)
    throw error
  }
}
