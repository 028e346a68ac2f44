/** One step: attempt, time out, retry, record. */

import { inTransaction, sqlStateOf, type Transaction } from '../db/connect.ts'
import { type Duration, milliseconds } from '../durations.ts'
import { MillraceError } from '../errors.ts'
import { backoffMs, type Retry } from './backoff.ts'
import { awaitResult, nextResult, openCall, rest, settleResult, writeEntry, writeResult } from './calls.ts'
import type { LiveRun } from './live.ts'
import { isRecorded, recordIn } from './record.ts'
import { inStepSpan } from './trace.ts'
import { encode, encodeError } from './values.ts'

/**
 * @property timeout    of one attempt; then its signal aborts and the attempt counts as failed
 * @property heartbeat  the longest silence of an attempt that calls `heartbeat()`; ended like a timeout
 */
export type StepOptions = { retry?: Retry; timeout?: Duration; heartbeat?: Duration }

/**
 * @property signal    aborts at a timeout, a cancellation, the run's end, and before this worker's lease can be lost, when
 *                     another may do the work again: pass it to fetch and the like
 * @property key       the same for every attempt of this step: an idempotency key for the outside
 * @property heartbeat says that a long attempt is alive
 * @property traceparent  W3C trace context for calls outside; null where there is no trace
 */
export type StepTools = {
  readonly signal: AbortSignal
  attempt: number
  key: string
  heartbeat: () => void
  traceparent: string | null
}

export type StepFunction<T> = (tools: StepTools) => T | Promise<T>

type Step = { pos: number; kind: 'step'; name: string; attempt: number; ms: number | null }

/** An error that no retry mends: `throw nonRetryable('card declined')`. */
export function nonRetryable(error: Error | string): Error {
  const marked = typeof error === 'string' ? new Error(error) : error
  return Object.assign(marked, { [NON_RETRYABLE]: true })
}
const NON_RETRYABLE = Symbol.for('millrace.nonRetryable')

export function callStep<T>(run: LiveRun, name: string, work: StepFunction<T>, options: StepOptions): Promise<T> {
  const { pos, recorded } = openCall(run, 'step', name)
  const result = awaitResult(run, { pos, kind: 'step', name })
  if (run.over || (recorded !== undefined && recorded.ord !== null)) return result as Promise<T>
  const step: Step = { pos, kind: 'step', name, attempt: (recorded?.attempt ?? 0) + 1, ms: null }
  begin(run, step, recorded?.dueAt ?? null, options, (of) => attemptStep(run, of, work, options))
  return result as Promise<T>
}

/**
 * Writes of the user and the step's record in one transaction: both or neither, so the work is done exactly once.
 * @throws MillraceError `step_failed` as run.step does
 */
export function callTransaction<T>(
  run: LiveRun,
  name: string,
  work: (tx: Transaction) => Promise<T>,
  options: Pick<StepOptions, 'retry'>,
): Promise<T> {
  const { pos, recorded } = openCall(run, 'step', name)
  const result = awaitResult(run, { pos, kind: 'step', name })
  if (run.over || (recorded !== undefined && recorded.ord !== null)) return result as Promise<T>
  const step: Step = { pos, kind: 'step', name, attempt: (recorded?.attempt ?? 0) + 1, ms: null }
  begin(run, step, recorded?.dueAt ?? null, options, (of) => attemptTransaction(run, of, work))
  return result as Promise<T>
}

/** Does the work once and records its result; throws when the work fails. */
type Perform = (step: Step) => Promise<void>

function begin(run: LiveRun, step: Step, dueAt: number | null, options: StepOptions, perform: Perform): void {
  if (dueAt === null) void attempt(run, step, options, perform)
  else waitForRetry(run, step, dueAt, () => attempt(run, step, options, perform))
}

async function attempt(run: LiveRun, step: Step, options: StepOptions, perform: Perform): Promise<void> {
  if (run.over || !run.calls.has(step.pos)) return
  run.executing += 1
  const startedAt = performance.now()
  try {
    await perform(step)
    run.executing -= 1
    run.runner.metrics?.stepAttempted('completed')
  } catch (error) {
    run.executing -= 1
    run.runner.metrics?.stepAttempted('failed')
    failed(run, { ...step, ms: performance.now() - startedAt }, error, options, perform)
  }
}

async function attemptStep<T>(run: LiveRun, step: Step, work: StepFunction<T>, options: StepOptions): Promise<void> {
  const startedAt = performance.now()
  const { span, runner, row } = run
  const value =
    span === null
      ? await attemptOnce(run, step, work, options, row.traceparent)
      : await inStepSpan(runner.tracer, span, step, (own) => attemptOnce(run, step, work, options, own))
  const output = encode(value, `The result of step '${step.name}'`)
  step.ms = performance.now() - startedAt
  writeResult(run, step, { value, output })
}

async function attemptTransaction<T>(run: LiveRun, step: Step, work: (tx: Transaction) => Promise<T>): Promise<void> {
  const startedAt = performance.now()
  let slot: ReturnType<typeof nextResult>['slot'] | undefined
  try {
    await inTransaction(run.runner.db, async (tx) => {
      const value = await work(tx)
      const output = encode(value, `The result of transaction '${step.name}'`)
      if (run.over || !run.calls.has(step.pos)) throw new MillraceError('conflict', 'The run no longer waits for it')
      const next = nextResult(run, { ...step, ms: performance.now() - startedAt }, { value, output })
      slot = next.slot
      if (!(await recordIn(tx, run.runner.journal.worker!, next.row)))
        throw new MillraceError('conflict', 'The lease is lost')
    })
    if (slot !== undefined) settleResult(run, slot)
  } catch (error) {
    // A connection lost at COMMIT leaves open whether it was one.
    if (slot !== undefined && sqlStateOf(error) === undefined && (await isRecorded(run, step.pos)))
      settleResult(run, slot)
    else {
      if (slot !== undefined) slot.void = true
      throw error
    }
  }
}

function failed(run: LiveRun, step: Step, error: unknown, options: StepOptions, perform: Perform): void {
  if (run.over || !run.calls.has(step.pos)) return
  const retry = options.retry ?? {}
  const final =
    (error as { [NON_RETRYABLE]?: boolean } | null)?.[NON_RETRYABLE] === true || retry.unless?.(error) === true
  const waitMs = final ? null : backoffMs(retry, step.attempt)
  if (waitMs === null) {
    writeResult(run, step, { error: encodeError(error) })
    return
  }
  const at = run.runner.clock.now()
  const dueAt = at + waitMs
  const { runId, epoch } = run.row
  const row = { ...step, runId, epoch, ord: null, output: null, error: encodeError(error), dueAt, at }
  writeEntry(run, { steps: [row] }, () => {
    const next = { ...step, attempt: step.attempt + 1 }
    waitForRetry(run, next, dueAt, () => attempt(run, next, options, perform))
  })
}

function waitForRetry(run: LiveRun, step: Step, dueAt: number, then: () => Promise<void>): void {
  const call = run.calls.get(step.pos)
  if (call === undefined) return
  call.dueAt = dueAt
  call.due = () => void then()
  rest(run)
}

/** Runs the work once, under its time limits if it has any. */
function attemptOnce<T>(
  run: LiveRun,
  step: Step,
  work: StepFunction<T>,
  options: StepOptions,
  traceparent: string | null,
): T | Promise<T> {
  const key = `${run.row.runId}/${step.pos}`
  if (options.timeout === undefined && options.heartbeat === undefined)
    return work({
      get signal() {
        return runSignal(run)
      },
      attempt: step.attempt,
      key,
      heartbeat: () => {},
      traceparent,
    })
  const limits = new AbortController()
  const signal = AbortSignal.any([limits.signal, runSignal(run)])
  const timers: NodeJS.Timeout[] = []
  const expired = new Promise<never>((_, reject) => {
    const expire = (what: string, limit: Duration) => () => {
      const error = new MillraceError('timed_out', `Step '${step.name}' ${what} ${limit}`)
      // First, so that work which ends at the abort does not pass for done.
      reject(error)
      limits.abort(error)
    }
    if (options.timeout !== undefined)
      timers.push(setTimeout(expire('took longer than', options.timeout), milliseconds(options.timeout)))
    if (options.heartbeat !== undefined)
      timers.push(setTimeout(expire('gave no heartbeat for', options.heartbeat), milliseconds(options.heartbeat)))
  })
  const heartbeat = () => void (options.heartbeat !== undefined && timers.at(-1)?.refresh())
  const stop = () => timers.forEach(clearTimeout)
  return Promise.race([
    Promise.resolve(work({ signal, attempt: step.attempt, key, heartbeat, traceparent })),
    expired,
  ]).finally(stop)
}

/** Aborts when the run is cancelled, lost or over. Made when first asked for: most steps never do. */
export function runSignal(run: LiveRun): AbortSignal {
  run.controller ??= new AbortController()
  return run.controller.signal
}
