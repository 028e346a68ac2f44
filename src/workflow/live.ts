/**
 * A run in memory: its calls, its results, its rest. The rules that make a replay make the same calls:
 *
 * 1. Each call takes the next position. If the journal has a line there, it must be of the same kind and name.
 * 2. A result reaches the code only when it is durable, one at a time, in the order recorded, and when the code has
 *    done all it can with the one before (a turn of the event loop): Promise.race goes the same way every time.
 * 3. A run whose code can only wait keeps one timer, and leaves memory when nothing is due soon: a parked run is a row
 *    with a due time, and costs nothing until it is claimed and replayed.
 */

import type { Span, Tracer } from '@opentelemetry/api'
import type { Database } from '../db/connect.ts'
import { MillraceError } from '../errors.ts'
import type { Metrics } from '../telemetry/metrics.ts'
import type { Clock } from './clock.ts'
import type { DeadRun } from './dead-runs.ts'
import type { Workflow } from './define.ts'
import type { Journal, JournalEntry, Reply } from './journal.ts'
import type { FinishRow, StartRow, StepRow } from './journal-sql.ts'
import { endRunSpan } from './trace.ts'
import { asRead, decodeError, encodeError } from './values.ts'

/** What the engine counts (telemetry/metrics.ts). */
export type EngineMetrics = Pick<Metrics, 'runEnded' | 'runBegun' | 'stepAttempted' | 'leaseLost' | 'observeRuns'>

/** What a run needs of its process. */
export type Runner = {
  journal: Journal
  clock: Clock
  live: Map<string, LiveRun>
  ended: (run: LiveRun, end: RunEnd) => void
  /** A run left memory, to be woken at `dueAt` at the latest. */
  parked: (dueAt: number | null) => void
  /** Asks the database what came in for these runs. */
  refresh: (runIds: string[]) => void
  cancelChildren: (runIds: string[]) => void
  /** Marks a new run to be run here, if there is room; then `begun` once it is durable. */
  place: (row: StartRow) => void
  begun: (row: StartRow) => LiveRun | undefined
  /** Makes sure that events of the type are kept by this key, from `sinceMs` on. */
  listen: (type: string, path: string[], sinceMs: number) => Promise<void>
  /** Other runs want the memory. */
  crowded: () => boolean
  db: Database
  tracer: Tracer | undefined
  metrics: EngineMetrics | null
}

export type RunEnd =
  | { kind: 'completed'; output: string | null }
  | { kind: 'failed' | 'cancelled' | 'stuck'; error: string }
  | { kind: 'continued'; next: StartRow }

/** A run as it was inserted or claimed. */
export type RunRow = {
  runId: string
  id: string | null
  generation: number
  name: string
  version: string
  queue: string
  priority: number
  concurrencyKey: string | null
  input: string | null
  epoch: number
  wakes: number
  parentId: string | null
  chainId: string | null
  traceparent: string | null
  /** ms since 1970 */
  createdAt: number
  deadlineAt: number | null
}

/** A line of the journal as read back. */
export type Recorded = {
  pos: number
  ord: number | null
  kind: string
  name: string
  output: string | null
  error: string | null
  attempt: number
  dueAt: number | null
  at: number
}

type Result = {
  pos: number
  at: number
  output: unknown
  error: MillraceError | null
  durable: boolean
  /** Came to nothing: its transaction was rolled back. */
  void?: boolean
}

/** The cancellation's place in the journal: no call of the code, but a result like others, in its order. */
const CANCEL_POS = -1

/** @property due  what to do at `dueAt` (ms since 1970) */
export type Call = {
  pos: number
  kind: StepRow['kind']
  name: string
  dueAt: number | null
  due: () => void
  settle: (result: Result) => void
}

/** A signal as it lies in the database until a call has taken it. */
export type Signal = { seq: string; payload: string | null }
/** An event for a wait, or the end of a child. */
export type Arrival = { status: string; output: string | null; error: string | null }

export type LiveRun = {
  runner: Runner
  row: RunRow
  workflow: Workflow
  /** Journal lines that the code has not called yet, by position. */
  history: Map<number, Recorded>
  /** Results in the order in which the code gets them. */
  results: Result[]
  delivered: number
  /** Calls whose result has not reached the code. */
  calls: Map<number, Call>
  nextPos: number
  nextOrd: number
  /** Time of the last delivered result: the run's `now()`. */
  now: number
  executing: number
  writing: number
  turning: boolean
  over: boolean
  /** Never left the process that started it. */
  startedHere: boolean
  timer: NodeJS.Timeout | undefined
  restingSince: number | null
  /** A cancellation has been asked for, or is in the journal. */
  cancelling: boolean
  /** Calls that the cancellation has ended; what they still come to is dropped. */
  dropped: Set<number>
  /** Claimed, and what came in before that is not read yet: it must not rest. */
  unread: boolean
  /** What came from outside and no call has taken yet. */
  signals: Map<string, Signal[]>
  signalsSeen: Set<string>
  signalCalls: Map<string, ((signal: Signal) => void)[]>
  arrivals: Map<string, Arrival>
  /** By what key an arrival finds its call. */
  expecting: Map<string, (arrival: Arrival) => void>
  /** Open children by position, to be cancelled with the run. */
  children: Map<number, string>
  /** Number of the last event taken from a mailbox. */
  mailTaken: Map<string, number>
  /** Newest first. */
  compensations: { name: string; undo: () => Promise<void> }[]
  /** Results that a replay gives again. */
  replayed: number
  /** What the run shows (setState): the last one set, and whether the row has it. */
  shown: { state: string | null; unwritten: boolean; writing: boolean }
  patches: Map<string, boolean>
  deadlineTimer: NodeJS.Timeout | undefined
  controller: AbortController | null
  span: Span | null
}

/** Takes the next position for a call and checks it against the journal. */
export function openCall(run: LiveRun, kind: string, name: string): { pos: number; recorded: Recorded | undefined } {
  const pos = run.nextPos
  run.nextPos += 1
  if (run.history.size === 0) return { pos, recorded: undefined }
  const recorded = run.history.get(pos)
  if (recorded === undefined) {
    // Its line was never written, since a cancellation ended it first: the journal goes on beyond.
    if (run.cancelling && run.results.some((result, n) => n >= run.delivered && result.pos === CANCEL_POS))
      return { pos, recorded: { ...NEVER_ENDED, pos, kind, name } }
  } else {
    if (recorded.kind !== kind || recorded.name !== name) stopStuck(run, `calls ${kind} '${name}'`, recorded)
    run.history.delete(pos)
  }
  return { pos, recorded }
}

const NEVER_ENDED: Omit<Recorded, 'pos' | 'kind' | 'name'> = {
  ord: Number.POSITIVE_INFINITY,
  output: null,
  error: null,
  attempt: 1,
  dueAt: null,
  at: 0,
}

/** A promise for a call's result, kept in order with all others of the run. Never settles in a run that is over. */
export function awaitResult(
  run: LiveRun,
  call: Pick<Call, 'pos' | 'kind' | 'name'>,
  timer: Pick<Call, 'dueAt' | 'due'> = NO_TIMER,
): Promise<unknown> {
  return new Promise((resolve, reject) => {
    const settle = (result: Result) => (result.error === null ? resolve(result.output) : reject(result.error))
    run.calls.set(call.pos, {
      pos: call.pos,
      kind: call.kind,
      name: call.name,
      dueAt: timer.dueAt,
      due: timer.due,
      settle,
    })
    deliver(run)
  })
}

const NO_TIMER = { dueAt: null, due: () => {} }

/** Writes a call's result; the code gets it once it is durable. */
export function writeResult(
  run: LiveRun,
  call: { pos: number; kind: string; name: string; attempt: number; ms: number | null },
  result: { value: unknown; output: string | null } | { error: string },
  more: Partial<JournalEntry> = {},
): void {
  if (run.over || !run.calls.has(call.pos)) return
  const { row, slot } = nextResult(run, call, result)
  writeEntry(run, { ...more, steps: [row] }, () => {
    slot.durable = true
    deliver(run)
  })
}

/** The line of a call's result and its place among the results, not yet written. */
export function nextResult(
  run: LiveRun,
  call: { pos: number; kind: string; name: string; attempt: number; ms: number | null },
  result: { value: unknown; output: string | null } | { error: string },
): { row: StepRow; slot: Result } {
  const at = Math.max(run.now, Math.floor(run.runner.clock.now()))
  const failed = 'error' in result
  const row: StepRow = {
    runId: run.row.runId,
    epoch: run.row.epoch,
    pos: call.pos,
    ord: run.nextOrd,
    kind: call.kind,
    name: call.name,
    output: failed ? null : result.output,
    error: failed ? result.error : null,
    attempt: call.attempt,
    dueAt: null,
    at,
    ms: call.ms,
  }
  run.nextOrd += 1
  const slot: Result = {
    pos: call.pos,
    at,
    output: failed ? undefined : asRead(result.value, result.output),
    error: failed ? decodeError(result.error, 'step_failed') : null,
    durable: false,
  }
  run.results.push(slot)
  return { row, slot }
}

/** A result that is durable by other means than writeResult. */
export function settleResult(run: LiveRun, slot: Result): void {
  slot.durable = true
  deliver(run)
}

/** Writes for the run and goes on when it is durable; a lost lease or a refused write ends the run here, quietly. */
export function writeEntry(run: LiveRun, entry: Partial<JournalEntry>, then: (replies: Reply[]) => void): void {
  run.writing += 1
  run.runner.journal.write({
    ...entry,
    runId: run.row.runId,
    epoch: run.row.epoch,
    settle: (outcome) => {
      run.writing -= 1
      if (run.over) return
      if (outcome.kind === 'written') {
        then(outcome.replies)
        rest(run)
      } else if (outcome.kind === 'lost') {
        run.runner.metrics?.leaseLost(1)
        dropRun(run, new MillraceError('conflict', 'The lease is lost'), 'lost')
      } else if (outcome.error.code === 'unavailable') dropRun(run, outcome.error)
      else finish(run, { kind: 'failed', error: encodeError(outcome.error) })
    },
  })
}

/** Gives the code its next result, if it is durable and the code has called for it. */
function deliver(run: LiveRun): void {
  if (run.turning || run.over) return
  let result = run.results[run.delivered]
  while (result !== undefined && (result.void === true || run.dropped.has(result.pos))) {
    run.delivered += 1
    result = run.results[run.delivered]
  }
  if (result === undefined || !result.durable) return
  if (result.pos === CANCEL_POS) {
    deliverCancel(run, result)
    return
  }
  const call = run.calls.get(result.pos)
  if (call === undefined) return
  run.delivered += 1
  run.calls.delete(result.pos)
  run.now = result.at
  stir(run)
  startTurn(run)
  call.settle(result)
}

/**
 * Asks the code to end: written like a result, so that a replay cancels at the same point. Then every open call rejects,
 * once; what the code does after that (cleanup) works as ever.
 */
export function cancelRun(run: LiveRun, code: 'cancelled' | 'timed_out'): void {
  if (run.cancelling || run.over) return
  run.cancelling = true
  const message = code === 'cancelled' ? 'The run was cancelled' : 'The run took longer than its timeout'
  const call = { pos: CANCEL_POS, kind: 'cancel', name: code, attempt: 1, ms: null }
  const { row, slot } = nextResult(run, call, { error: encodeError(new MillraceError(code, message)) })
  writeEntry(run, { steps: [row] }, () => {
    slot.durable = true
    deliver(run)
  })
}

function deliverCancel(run: LiveRun, result: Result): void {
  run.delivered += 1
  run.now = result.at
  const open = [...run.calls.values()]
  for (const { pos } of open) run.dropped.add(pos)
  run.calls.clear()
  run.expecting.clear()
  stir(run)
  startTurn(run)
  run.controller?.abort(result.error)
  run.controller = null
  run.runner.cancelChildren([...run.children.values()])
  for (const call of open) call.settle({ ...result, pos: call.pos })
}

/** Runs whose code is at work: all of them are through when the event loop comes round. */
let turning: LiveRun[] = []

export function startTurn(run: LiveRun): void {
  run.turning = true
  if (turning.length === 0) setImmediate(endTurns)
  turning.push(run)
}

function endTurns(): void {
  const runs = turning
  turning = []
  for (const run of runs) {
    run.turning = false
    deliver(run)
    rest(run)
  }
}

export function finish(run: LiveRun, end: RunEnd): void {
  if (end.kind === 'continued') run.runner.place(end.next)
  run.over = true
  stir(run)
  clearTimeout(run.deadlineTimer)
  endRunSpan(run.span, end.kind)
  if (end.kind !== 'stuck') run.runner.cancelChildren([...run.children.values()])
  run.controller?.abort(new MillraceError('conflict', 'The run has ended'))
  const row: FinishRow = {
    runId: run.row.runId,
    epoch: run.row.epoch,
    status: end.kind,
    output: end.kind === 'completed' ? end.output : end.kind === 'continued' ? JSON.stringify(end.next.runId) : null,
    error: 'error' in end ? end.error : null,
  }
  // The parent goes on when its child has really ended.
  const wakesParent = run.row.parentId !== null && end.kind !== 'continued' && end.kind !== 'stuck'
  const entry: JournalEntry = {
    runId: run.row.runId,
    epoch: run.row.epoch,
    finish: row,
    // A write that is still out may come after this one, and then changes nothing.
    ...(run.shown.unwritten || run.shown.writing
      ? { state: { runId: row.runId, epoch: row.epoch, state: run.shown.state } }
      : {}),
    ...(wakesParent ? { wake: run.row.parentId! } : {}),
    ...(end.kind === 'continued' ? { starts: [end.next], move: { from: run.row.runId, to: end.next.runId } } : {}),
    ...(end.kind === 'failed' ? { letter: letterOf(run.row, end.error) } : {}),
    ...(end.kind !== 'stuck' && (run.row.wakes > 0 || run.mailTaken.size > 0 || run.expecting.size > 0)
      ? { forget: run.row.runId }
      : {}),
    settle: (outcome) => {
      // A letter that cannot be written must not keep the run from ending.
      if (outcome.kind === 'failed' && entry.letter !== undefined && outcome.error.code !== 'unavailable') {
        run.runner.journal.write({ ...entry, letter: undefined })
        return
      }
      leave(run)
      if (outcome.kind === 'written') run.runner.ended(run, end)
    },
  }
  run.runner.journal.write(entry)
}

const letterOf = ({ runId, id, name, version, input }: RunRow, error: string): DeadRun => ({
  runId,
  id,
  name,
  version,
  input,
  error,
})

/** This process may have claimed the run again meanwhile; that one stays. */
function leave(run: LiveRun): void {
  const { live } = run.runner
  if (live.get(run.row.runId) === run) live.delete(run.row.runId)
}

/** The run is another's now, or nothing can be written: its code gets no further result. */
export function dropRun(run: LiveRun, reason: MillraceError, outcome = 'dropped'): void {
  endRunSpan(run.span, outcome)
  run.over = true
  stir(run)
  clearTimeout(run.deadlineTimer)
  leave(run)
  run.controller?.abort(reason)
}

/** The code and its journal disagree: nothing is lost, and the run goes on when the code that fits is back. */
export function stopStuck(run: LiveRun, code: string, recorded: Recorded): never | undefined {
  const error = new MillraceError(
    'nondeterminism',
    `The code of ${run.row.name} ${code}, but the journal of run ${run.row.runId} has ${recorded.kind} '${recorded.name}' at position ${recorded.pos}. Bring back the code that fits (or guard the change with run.patched), then resume the run`,
    { details: { pos: recorded.pos, journal: { kind: recorded.kind, name: recorded.name }, code } },
  )
  if (!run.over) finish(run, { kind: 'stuck', error: encodeError(error) })
  return undefined
}

/** A wait shorter than this stays in memory: parking and replay would cost more than the memory. */
const RESIDENT_MS = 2_000
/** setTimeout takes 2^31 ms at most; nothing waits in memory for as long as this. */
const TIMER_MS_MAX = 60_000

/** Called whenever a run's code may have come to rest. */
export function rest(run: LiveRun): void {
  if (!atRest(run)) return
  const now = run.runner.clock.now()
  const { due, outside } = nextOf(run)
  run.restingSince ??= now
  const residentMs = run.runner.crowded() ? 0 : RESIDENT_MS
  const parkAt = outside ? run.restingSince + residentMs : due - now > residentMs ? now : Number.POSITIVE_INFINITY
  if (parkAt <= now && due > now) {
    park(run, due)
    return
  }
  const wait = Math.max(0, Math.min(due, parkAt) - now)
  clearTimeout(run.timer)
  run.timer = setTimeout(() => ring(run), Math.min(wait, TIMER_MS_MAX))
}

/** The code goes on: its next rest is a new one. */
function stir(run: LiveRun): void {
  if (run.timer === undefined && run.restingSince === null) return
  clearTimeout(run.timer)
  run.timer = undefined
  run.restingSince = null
}

function atRest(run: LiveRun): boolean {
  return (
    run.executing === 0 &&
    run.writing === 0 &&
    !run.turning &&
    !run.unread &&
    !run.over &&
    run.calls.size > 0 &&
    run.delivered === run.results.length
  )
}

/** When a timer is next due, and whether anything outside may come before it. */
function nextOf(run: LiveRun): { due: number; outside: boolean } {
  let due = run.cancelling ? Number.POSITIVE_INFINITY : (run.row.deadlineAt ?? Number.POSITIVE_INFINITY)
  let outside = false
  for (const call of run.calls.values()) {
    if (call.dueAt !== null) due = Math.min(due, call.dueAt)
    if (call.kind !== 'sleep' && call.kind !== 'step') outside = true
  }
  return { due, outside }
}

function ring(run: LiveRun): void {
  run.timer = undefined
  if (run.over) return
  const now = run.runner.clock.now()
  for (const call of [...run.calls.values()])
    if (call.dueAt !== null && call.dueAt <= now) {
      call.dueAt = null
      call.due()
    }
  rest(run)
}

function park(run: LiveRun, due: number): void {
  const { runId, epoch, wakes } = run.row
  const dueAt = due === Number.POSITIVE_INFINITY ? null : due
  writeEntry(run, { park: { runId, epoch, wakes, dueAt } }, (replies) => {
    if (replies.some((reply) => reply.kind === 'parks')) {
      dropRun(run, new MillraceError('conflict', 'The run sleeps'), 'parked')
      run.runner.parked(dueAt)
    } else run.runner.refresh([runId])
  })
}
