/**
 * The test kit, `millrace/testing`: runs a workflow without servers, with time skipped, and replays exported histories.
 * It is the engine's own run over a journal in memory; where a run would leave memory to sleep, it does, and is
 * replayed when its time comes, so every long wait is a check of determinism too.
 */

import { isDeepStrictEqual } from 'node:util'
import type pg from 'pg'
import { uuidv7 } from 'uuidv7'
import type { Database } from '../db/connect.ts'
import { type Duration, milliseconds } from '../durations.ts'
import { MillraceError } from '../errors.ts'
import { OPERATOR_TENANT } from '../http/caller.ts'
import { cancelRun, rest } from './calls.ts'
import type { Run } from './context.ts'
import type { Workflow } from './define.ts'
import { dropRun } from './ending.ts'
import { readNews } from './incoming.ts'
import type { Journal, JournalEntry, Reply } from './journal.ts'
import type { StepRow, WaitRow } from './journal-sql.ts'
import type { LiveRun, Recorded, RunEnd, Runner, RunRow } from './live.ts'
import { beginRun } from './run.ts'
import type { ExportedHistory } from './runs.ts'
import { decode, decodeError, encode } from './values.ts'

export type { ExportedHistory } from './runs.ts'

type TestEvent = { source?: string; id?: string; subject?: string; data?: unknown }

/**
 * @property steps     stands in for steps and transactions, by name; others run as they are (transactions cannot)
 * @property children  stands in for child workflows, by name; others run in the kit too
 * @property now       when the run starts
 */
export type TestOptions = {
  steps?: Record<string, () => unknown>
  children?: Record<string, (input: unknown) => unknown>
  now?: Date
}

export type TestRun<O> = {
  /** Settles when the run ends; rejects when it waits for what nobody sends. */
  result: Promise<O>
  /** Does something once the run has rested until then: `test.after('2d', () => test.signal('approve'))`. */
  after: (time: Duration, act: () => void) => void
  signal: (name: string, payload?: unknown) => void
  event: (type: string, event?: TestEvent) => void
  cancel: () => void
  /** The skipped clock, in ms since 1970. */
  now: () => number
  state: () => unknown
  /** The journal so far: kind, name and what each call came to. */
  history: () => { kind: string; name: string; output: unknown; failed: boolean }[]
}

type Kept = { seq: string; name: string; payload: string | null }
type Posted = Required<TestEvent> & { n: number; type: string; ms: number }

/** Runs a workflow in this process, skipping all time it would only wait. Needs no servers. */
export function testRun<I, O>(workflow: Workflow<I, O>, input: I, options: TestOptions = {}): TestRun<O> {
  let now = options.now?.getTime() ?? Date.now()
  const startedAt = now
  const lines = new Map<number, StepRow>()
  const waits = new Map<number, WaitRow>()
  const agenda: { at: number; act: () => void }[] = []
  let signals: Kept[] = []
  const events: Posted[] = []
  let state: string | null = null
  let cancelling = false
  let seq = 0
  let parkedUntil: number | null | undefined
  let run: LiveRun
  let end: RunEnd | undefined

  const write = (entry: JournalEntry) => {
    const replies: Reply[] = []
    const reply = (kind: Reply['kind']) => replies.push({ kind, run_id: entry.runId })
    for (const step of entry.steps ?? []) lines.set(step.pos, step)
    for (const wait of entry.waits ?? []) {
      waits.set(wait.pos, wait)
      if (mailFor(wait) !== undefined) reply('waits')
    }
    if (entry.taken !== undefined) {
      const { waitPos, signalSeq } = entry.taken
      if (waitPos !== null) waits.delete(waitPos)
      signals = signals.filter((signal) => signal.seq !== signalSeq)
    }
    if (entry.state !== undefined) state = entry.state.state
    if (entry.park !== undefined) reply('parks')
    setImmediate(() => entry.settle({ kind: 'written', replies }))
  }
  const mailFor = ({ type, path, key, after, sinceMs }: WaitRow) =>
    events.find(
      (event) =>
        event.type === type && event.n > after && event.ms >= sinceMs && keyIn(event, JSON.parse(path)) === key,
    )
  const deliver = () => {
    if (parkedUntil !== undefined) return
    const rows: object[] = [{ kind: 'run', ref: '0', status: String(cancelling) }]
    for (const { seq, name, payload } of signals) rows.push({ kind: 'signal', ref: seq, status: name, output: payload })
    for (const wait of waits.values()) {
      const mail = mailFor(wait)
      if (mail === undefined) continue
      const { n, ms, ...event } = mail
      const output = JSON.stringify({ mail: n, event: { ...event, time: new Date(ms).toISOString() } })
      rows.push({ kind: 'event', ref: String(wait.pos), status: 'completed', output })
    }
    const answer = { rows: rows.map((row) => ({ ...row, run_id: run.row.runId })) }
    void readNews({ query: () => Promise.resolve(answer) } as unknown as pg.Pool, [run])
  }
  const runner = runnerOf({
    now: () => now,
    write,
    refresh: deliver,
    parked: (dueAt) => {
      parkedUntil = dueAt
    },
    ended: (_, ended) => {
      end = ended
    },
  })
  const standIns = {
    ...workflow,
    body: (context: Run, given: I) => workflow.body(withStandIns(context, options), given),
  }
  const begin = (row: RunRow) => {
    parkedUntil = undefined
    run = beginRun(runner, row, standIns as Workflow, [...lines.values()] as Recorded[])
    if (row.epoch > 1) deliver()
  }
  const send = (act: () => void) => {
    act()
    if (parkedUntil === undefined) deliver()
    else begin({ ...run.row, epoch: run.row.epoch + 1 })
  }

  /** One turn: nothing while the run is at work; else what comes next is made to come. */
  const skip = () => {
    agenda.sort((a, b) => a.at - b.at)
    const due =
      parkedUntil === undefined
        ? Math.min(...[...run.calls.values()].map(dueOf), run.row.deadlineAt ?? NEVER)
        : (parkedUntil ?? NEVER)
    const next = agenda[0] !== undefined && agenda[0].at <= due ? agenda.shift() : undefined
    const at = next?.at ?? due
    if (at === NEVER) throw waitsForEver(workflow.name, [...lines.values()])
    now = Math.max(now, at)
    if (next !== undefined) next.act()
    else if (parkedUntil !== undefined) begin({ ...run.row, epoch: run.row.epoch + 1 })
    else if (run.row.deadlineAt !== null && now >= run.row.deadlineAt) cancelRun(run, 'timed_out')
    else rest(run)
  }
  const drive = async (): Promise<O> => {
    for (;;) {
      await new Promise((resolve) => (run.executing > 0 ? setTimeout(resolve, 1) : setImmediate(resolve)))
      if (end?.kind === 'completed') return decode(end.output) as O
      if (end?.kind === 'continued')
        return testRun(workflow, decode(end.next.input) as I, { ...options, now: new Date(now) }).result
      if (end !== undefined) throw decodeError(end.error, 'run_failed')
      if (parkedUntil !== undefined || (run.timer !== undefined && atRest(run))) skip()
    }
  }
  begin(rowOf(workflow, input, startedAt))
  return {
    result: drive().finally(() => dropRun(run, new MillraceError('conflict', 'The test has ended'))),
    after: (time, act) => void agenda.push({ at: now + milliseconds(time), act }),
    signal: (name, payload) =>
      send(() => void signals.push({ seq: String(++seq), name, payload: encode(payload, `The signal ${name}`) })),
    event: (type, { source = 'test', id = uuidv7(), subject = '', data = null } = {}) =>
      send(() => void events.push({ n: ++seq, type, source, id, subject, data, ms: now })),
    cancel: () =>
      send(() => {
        cancelling = true
      }),
    now: () => now,
    state: () => decode(state),
    history: () =>
      [...lines.values()]
        .sort((a, b) => a.pos - b.pos)
        .map(({ kind, name, output, error }) => ({ kind, name, output: decode(output), failed: error !== null })),
  }
}

/**
 * Replays a run that `millrace workflows history ID --export` wrote, against the code given: nothing is executed, only
 * compared.
 * @throws MillraceError `nondeterminism` that names what the code does and what the history holds
 */
export async function replayHistory(workflow: Workflow, history: ExportedHistory): Promise<void> {
  let end: RunEnd | undefined
  const never = () => new Promise<never>(() => {})
  const runner = runnerOf({
    now: () => Date.parse(String(history.createdAt)),
    // What goes beyond the history stays open.
    write: (entry) => entry.finish !== undefined && setImmediate(() => entry.settle({ kind: 'written', replies: [] })),
    refresh: () => {},
    parked: () => {},
    ended: (_, ended) => {
      end = ended
    },
  })
  const inert = (run: Run): Run =>
    Object.assign(Object.create(run), {
      step: (name: string, _: unknown, options?: object) => run.step(name, never, { ...options, timeout: undefined }),
      compensate: (name: string) => run.compensate(name, never),
    })
  const body = (run: Run, input: unknown) => workflow.body(inert(run), input)
  const recorded = history.lines.map(recordedOf)
  const row = {
    ...rowOf(workflow, history.input, Date.parse(String(history.createdAt))),
    runId: history.runId,
    id: history.id,
  }
  const run = beginRun(runner, row, { ...workflow, body }, recorded)
  for (let quiet = 0; quiet < QUIET_TURNS && end === undefined; quiet = isThrough(run) ? quiet + 1 : 0)
    await new Promise((resolve) => setTimeout(resolve, 1))
  dropRun(run, new MillraceError('conflict', 'The replay has ended'))
  compare(run, history, end)
}

/** Code that awaits something of its own between two calls gets so many turns to go on. */
const QUIET_TURNS = 20
const isThrough = (run: LiveRun) => run.over || (!run.turning && run.delivered === run.results.length)

function compare(run: LiveRun, history: ExportedHistory, end: RunEnd | undefined): void {
  if (end?.kind === 'stuck') throw decodeError(end.error, 'run_failed')
  const differs = (code: string, holds: string) =>
    new MillraceError(
      'nondeterminism',
      `The code of ${run.row.name} ${code}, but the history of run ${history.runId} ${holds}`,
      {
        details: { code, journal: holds },
      },
    )
  const uncalled = [...run.history.values()].find((line) => line.pos >= 0 && line.ord !== null)
  if (uncalled !== undefined)
    throw differs(
      `stops after ${run.nextPos} calls`,
      `has ${uncalled.kind} '${uncalled.name}' at position ${uncalled.pos}`,
    )
  if (history.status !== 'completed' && history.status !== 'failed') return
  if (end === undefined) throw differs(`goes on after ${run.nextPos} calls`, `ends there: ${history.status}`)
  if (end.kind !== history.status) throw differs(`ends there: ${end.kind}`, `says ${history.status}`)
  if (end.kind === 'completed' && !isDeepStrictEqual(decode(end.output) ?? null, history.output ?? null))
    throw differs(`gives ${end.output}`, `says ${JSON.stringify(history.output)}`)
}

const NEVER = Number.POSITIVE_INFINITY
const dueOf = ({ dueAt }: { dueAt: number | null }) => dueAt ?? NEVER
const atRest = (run: LiveRun) => run.executing === 0 && run.writing === 0 && !run.turning && !run.over

function waitsForEver(name: string, lines: StepRow[]): MillraceError {
  const open = lines.filter((line) => line.ord === null).map((line) => `${line.kind} '${line.name}'`)
  return new MillraceError(
    'timed_out',
    `${name} waits for ever for ${open.join(', ')}: send it before, or with after(time, () => test.signal(...))`,
  )
}

function withStandIns(run: Run, { steps = {}, children = {}, ...options }: TestOptions): Run {
  const standIn = (name: string) => (Object.hasOwn(steps, name) ? steps[name]! : undefined)
  return Object.assign(Object.create(run), {
    step: (name: string, work: () => unknown, more?: object) => run.step(name, standIn(name) ?? work, more),
    transaction: (name: string) => {
      const work = standIn(name)
      if (work !== undefined) return run.step(name, work)
      throw new MillraceError('invalid_request', `The test kit has no database: give steps: { '${name}': () => ... }`)
    },
    child: (workflow: Workflow, input: unknown) => {
      const child = Object.hasOwn(children, workflow.name) ? children[workflow.name]! : undefined
      const work = child ?? ((given: unknown) => testRun(workflow, given, { ...options, steps, children }).result)
      return run.step(`child ${workflow.name}`, async () => work(input), { retry: { attempts: 1 } })
    },
  })
}

/** What an event carries at a path, as the database would match it. */
function keyIn(event: Posted, path: string[]): string {
  if (path.length === 0) return ''
  let value: unknown = event
  for (const name of path) value = (value as Record<string, unknown> | null | undefined)?.[name]
  return typeof value === 'string' ? value : JSON.stringify(value ?? null)
}

const rowOf = (workflow: Workflow, input: unknown, createdAt: number): RunRow => ({
  runId: uuidv7(),
  id: null,
  generation: 1,
  name: workflow.name,
  version: workflow.version,
  queue: workflow.queue,
  priority: workflow.priority,
  concurrencyKey: null,
  input: encode(input, 'The input'),
  epoch: 1,
  wakes: 0,
  parentId: null,
  chainId: null,
  tenant: OPERATOR_TENANT,
  traceparent: null,
  createdAt,
  deadlineAt: workflow.timeoutMs === null ? null : createdAt + workflow.timeoutMs,
})

const recordedOf = (line: ExportedHistory['lines'][number]): Recorded => ({
  ...line,
  output: encode(line.output, 'An output'),
  error: line.error === null ? null : JSON.stringify(line.error),
  dueAt: line.dueAt === null ? null : Date.parse(String(line.dueAt)),
  at: Date.parse(String(line.at)),
})

type Stage = Pick<Runner, 'refresh' | 'parked' | 'ended'> & {
  now: () => number
  write: (entry: JournalEntry) => unknown
}

function runnerOf({ now, write, ...rest }: Stage): Runner {
  const journal: Journal = {
    worker: null,
    write: (entry) => void write(entry),
    drain: () => Promise.resolve(),
    close: () => Promise.resolve(),
  }
  return {
    ...rest,
    journal,
    clock: { now, set: () => {} },
    live: new Map(),
    cancelChildren: () => {},
    place: () => {},
    begun: () => undefined,
    listen: () => Promise.resolve(),
    crowded: () => false,
    // A transaction never gets a connection: in a replay nothing is executed.
    db: { $client: { connect: () => new Promise(() => {}) } } as unknown as Database,
    tracer: undefined,
    metrics: null,
  }
}
