/**
 * A run's calls, its results and its rest. The rules that make a replay make the same calls:
 *
 * 1. Each call takes the next position. If the journal has a line there, it must be of the same kind and name.
 * 2. A result reaches the code only when it is durable, one at a time, in the order recorded, and when the code has
 *    done all it can with the one before (a turn of the event loop): Promise.race goes the same way every time.
 * 3. A run whose code can only wait keeps one timer, and leaves memory when nothing is due soon: a parked run is a row
 *    with a due time, and costs nothing until it is claimed and replayed.
 */

import { MillraceError } from '../errors.ts'
import { dropRun, finish, stir, stopStuck } from './ending.ts'
import type { JournalEntry, Reply } from './journal.ts'
import type { StepRow } from './journal-sql.ts'
import { CANCEL_POS, type Call, type LiveRun, openChildren, type Recorded, type Result } from './live.ts'
import { asRead, decodeError, encodeError } from './values.ts'

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
  while (result !== undefined && (result.void === true || run.dropped?.has(result.pos) === true)) {
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
  run.dropped = new Set(open.map((call) => call.pos))
  run.calls.clear()
  run.outside?.expecting.clear()
  stir(run)
  startTurn(run)
  run.controller?.abort(result.error)
  run.controller = null
  run.runner.cancelChildren(openChildren(run))
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
