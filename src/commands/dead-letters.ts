/** `millrace dead-letters ...`: the operator's way to what src/ingest/replay.ts and dead-letter-search.ts do. */

import { readFileSync } from 'node:fs'
import { SingleBar } from 'cli-progress'
import { Command, Option } from 'commander'
import { connectBroker } from '../broker/connect.ts'
import { connectDatabase, type Database } from '../db/connect.ts'
import { startJobs } from '../db/jobs.ts'
import { describe, MillraceError } from '../errors.ts'
import {
  countCauses,
  countOpen,
  type LetterFilter,
  type LetterState,
  listLetters,
  showLetter,
} from '../ingest/dead-letter-search.ts'
import { createPublisher } from '../ingest/publish.ts'
import { discardLetters, type LetterOutcome, type ReplayDeps, readPatch, replayLetters } from '../ingest/replay.ts'
import { openSchemas } from '../ingest/schemas.ts'
import { createLog } from '../telemetry/log.ts'
import { startTelemetry } from '../telemetry/telemetry.ts'
import { atTerminal, operatorConfig } from './operator-config.ts'

type FilterOptions = Omit<LetterFilter, 'ids'> & { json?: boolean }
type HandleOptions = FilterOptions & { all?: boolean; dryRun?: boolean; by?: string; limit?: number }

/** A screen of lines says enough; `--json` prints every one. */
const LINES_MAX = 20

export function deadLettersCommand(): Command {
  const command = new Command('dead-letters')

  filtered(command.command('list [id...]'), 'list dead letters, newest first')
    .addOption(state().default('open'))
    .option('--limit <n>', 'so many at most', count, 50)
    .option('--before <seq>', 'continue after the last line of an earlier listing', count)
    .action(async (ids: string[], options: FilterOptions & { state: string; limit: number; before?: number }) =>
      withDatabase(async (db) => {
        const letters = await listLetters(db, filterOf(ids, options), { ...options, state: stateOf(options.state) })
        if (options.json) return printJson(letters)
        table(
          letters.map((each) => [
            each.deadLetterId,
            each.deadAt,
            each.code,
            each.type,
            each.source,
            each.id,
            each.error,
          ]),
        )
        if (letters.length === options.limit) console.log(`more: --before ${letters.at(-1)!.seq}`)
      }),
    )

  filtered(command.command('causes'), 'count dead letters by cause')
    .addOption(state().default('open'))
    .action(async (options: FilterOptions & { state: string }) =>
      withDatabase(async (db) => {
        const causes = await countCauses(db, filterOf([], options), stateOf(options.state))
        if (options.json) return printJson(causes)
        table(causes.map((each) => [String(each.count), each.code, each.type, `since ${each.oldest}`, each.error]))
      }),
    )

  command
    .command('show <id>')
    .description('one dead letter whole, with the history of its event')
    .action(async (id: string) =>
      withDatabase(async (db) => {
        const letter = await showLetter(db, null, id)
        if (letter === undefined) throw new MillraceError('not_found', `There is no dead letter ${id}`)
        console.log(JSON.stringify(letter, null, 2))
      }),
    )

  handling(command.command('replay [id...]'), 'publish dead letters again, under the same identity')
    .option('--patch <file|json>', 'RFC 6902 operations on the event document, applied to each letter')
    .action(async (ids: string[], options: HandleOptions & { patch?: string }) => {
      const patch = options.patch === undefined ? undefined : readPatch(patchText(options.patch))
      await withService(async (deps, signal) => {
        const how = { ...handlingOf(ids, options), patch }
        await follow(deps.db, options, how.filter, replayLetters(deps, how, signal), signal)
      })
    })

  handling(command.command('discard [id...]'), 'close dead letters without replaying them')
    .option('--reason <text>', 'for the audit table')
    .action(async (ids: string[], options: HandleOptions & { reason?: string }) =>
      withService(async (deps, signal) => {
        const how = { ...handlingOf(ids, options), reason: options.reason }
        await follow(deps.db, options, how.filter, discardLetters(deps, how, signal), signal)
      }),
    )

  return command
}

const state = () => new Option('--state <state>', 'which ones').choices(['open', 'replayed', 'discarded', 'all'])
const stateOf = (name: string) => (name === 'all' ? undefined : (name as LetterState))

function filtered(command: Command, description: string): Command {
  return command
    .description(`${description}; ids are those of dead letters or of events`)
    .option('--tenant <tenant>', 'of this tenant')
    .option('--type <type>', 'of this event type')
    .option('--source <source>', 'of this event source')
    .option('--code <code>', 'refused with this SQLSTATE, or `unreadable`')
    .option('--from <time>', 'dead since, ISO 8601', instant)
    .option('--to <time>', 'dead before, ISO 8601', instant)
    .option('--json', 'one JSON document a line')
}

function handling(command: Command, description: string): Command {
  return filtered(command, description)
    .option('--all', 'every open dead letter; needed where nothing else narrows it')
    .option('--limit <n>', 'so many at most', count)
    .option('--dry-run', 'only say what would happen')
    .option('--by <name>', 'on whose behalf, for the audit trail')
}

function filterOf(ids: string[], { tenant, type, source, code, from, to }: FilterOptions): LetterFilter {
  return { tenant, type, source, code, from, to, ...(ids.length === 0 ? {} : { ids }) }
}

function handlingOf(ids: string[], options: HandleOptions) {
  const filter = filterOf(ids, options)
  if (!options.all && Object.values(filter).every((value) => value === undefined))
    throw new MillraceError('invalid_request', 'Name the dead letters by ids or filters, or say --all')
  return { filter, by: atTerminal(), onBehalfOf: options.by, dryRun: options.dryRun ?? false, limit: options.limit }
}

function count(text: string): number {
  const value = Number(text)
  if (!Number.isSafeInteger(value) || value < 1) throw new MillraceError('invalid_request', `${text} is no count`)
  return value
}

function instant(text: string): string {
  const date = new Date(text)
  if (Number.isNaN(date.getTime())) throw new MillraceError('invalid_request', `${text} is no time of ISO 8601`)
  return date.toISOString()
}

function patchText(given: string): string {
  if (given.trimStart().startsWith('[')) return given
  try {
    return readFileSync(given, 'utf8')
  } catch (error) {
    throw new MillraceError('invalid_request', `--patch takes a JSON file, or JSON itself: ${describe(error)}`)
  }
}

/** Prints outcomes as they come, with a bar when a person watches, and sums them up. */
async function follow(
  db: Database,
  { json, dryRun, limit = Number.POSITIVE_INFINITY }: HandleOptions,
  filter: LetterFilter,
  lots: AsyncGenerator<LetterOutcome[]>,
  signal: AbortSignal,
): Promise<void> {
  const total = Math.min(limit, await countOpen(db, filter))
  const bar = new SingleBar({ format: '{bar} {value}/{total} | {eta_formatted} left', stream: process.stderr })
  const sums = new Map<string, number>()
  let lines = 0
  let handled = 0
  if (!json) bar.start(total, 0)
  for await (const lot of lots) {
    for (const each of lot) sums.set(each.outcome, (sums.get(each.outcome) ?? 0) + 1)
    handled += lot.length
    bar.update(handled)
    if (json) printJson(lot)
    else if (dryRun || lot.some(({ outcome }) => outcome === 'refused'))
      for (const each of lot)
        if ((dryRun || each.outcome === 'refused') && lines++ < LINES_MAX) console.log(lineOf(each, dryRun))
  }
  bar.stop()
  if (json) return
  if (lines > LINES_MAX) console.log(`... and ${lines - LINES_MAX} more; --json prints all`)
  const said = [...sums].map(([outcome, number]) => `${number} ${dryRun ? 'would be ' : ''}${outcome}`)
  console.log(said.join(', ') || 'no dead letter matches')
  if (signal.aborted) console.log(`stopped; ${total - handled} are left`)
  else if (handled < total) console.log(`${total - handled} passed over: someone else is handling them`)
}

function lineOf(each: LetterOutcome, dryRun: boolean | undefined): string {
  const about = `${each.deadLetterId} ${each.source} ${each.id}: ${dryRun ? 'would be ' : ''}${each.outcome}`
  if (each.outcome === 'refused') return `${about}: ${each.reason}`
  return each.outcome === 'replayed' && each.event !== undefined ? `${about} as ${JSON.stringify(each.event)}` : about
}

const printJson = (items: object[]) => items.forEach((item) => void console.log(JSON.stringify(item)))

/** Columns as wide as their widest cell; the last one as long as it is. */
function table(rows: string[][]): void {
  const widths = (rows[0] ?? []).map((_, column) => Math.max(...rows.map((row) => row[column]!.length)))
  for (const row of rows)
    console.log(row.map((cell, i) => (i < row.length - 1 ? cell.padEnd(widths[i]!) : cell)).join('  '))
  if (rows.length === 0) console.log('no dead letter matches')
}

async function withDatabase(run: (db: Database) => Promise<void>): Promise<void> {
  const database = connectDatabase(await operatorConfig())
  try {
    await run(database.db)
  } finally {
    await database.close()
  }
}

/** A first signal ends after the lot in hand. */
async function withService(run: (deps: ReplayDeps, signal: AbortSignal) => Promise<void>): Promise<void> {
  const config = await operatorConfig()
  const stopping = new AbortController()
  process.once('SIGINT', () => stopping.abort())
  const log = createLog(config, 'dead-letters', 2)
  const telemetry = await startTelemetry({ log }, config, 'millrace-cli')
  const database = connectDatabase(config)
  const [broker, jobs] = await Promise.all([
    connectBroker(config, 'dead-letters'),
    startJobs(config.DATABASE_URL, { onError: (error) => log.warn({ error: describe(error) }, 'pg-boss') }),
  ])
  const { db } = database
  const schemas = await openSchemas({ db, broker, log }, config)
  try {
    const publisher = createPublisher({ broker, telemetry }, config)
    await run({ db, jobs, publisher, telemetry, schemas, config }, stopping.signal)
  } finally {
    schemas.close()
    await jobs.stop()
    await broker.close()
    await database.close()
    await telemetry.stop()
  }
}
