/** What a workflow's function is given: every call takes a position in the run's journal. */

import { createHash } from 'node:crypto'
import type { Transaction } from '../db/connect.ts'
import { type Duration, milliseconds } from '../durations.ts'
import { awaitResult, openCall, writeEntry, writeResult } from './calls.ts'
import type { Workflow } from './define.ts'
import { type ChildOptions, callChild, callSignal, callWait, type WaitOptions, type WorkflowEvent } from './incoming.ts'
import type { LiveRun } from './live.ts'
import { callStep, callTransaction, runSignal, type StepFunction, type StepOptions } from './step.ts'
import { encode } from './values.ts'

export type Run = {
  /** This execution's own id. */
  runId: string
  /** The id it was started under. */
  id: string
  /** Whose run it is (docs/security.md). */
  tenant: string
  /**
   * Does work outside and records its result: once recorded, it never runs again. Before that it runs at least once.
   * @throws MillraceError `step_failed` when its attempts are used up, with the last error's name and message
   */
  step: <T>(name: string, work: StepFunction<T>, options?: StepOptions) => Promise<T>
  /**
   * The user's own writes through `tx` and the step's record commit together: the work is done exactly once.
   * @throws MillraceError `step_failed` as step does
   */
  transaction: <T>(
    name: string,
    work: (tx: Transaction) => Promise<T>,
    options?: Pick<StepOptions, 'retry'>,
  ) => Promise<T>
  sleep: (duration: Duration) => Promise<void>
  sleepUntil: (time: Date | number) => Promise<void>
  /**
   * Waits for an ingested event; one that came since the run started counts, whichever was first.
   * @returns null at the timeout
   */
  waitFor: (type: string, options?: WaitOptions) => Promise<WorkflowEvent | null>
  /** The next signal of that name, in the order sent. @returns undefined for no payload, null at the timeout */
  // biome-ignore lint/suspicious/noExplicitAny: the shape of a signal is the user's to know
  signal: (name: string, options?: { timeout?: Duration }) => Promise<any>
  /**
   * Runs another workflow as a child, and gives its result. A child whose parent ends first is cancelled.
   * @throws MillraceError `run_failed` when it fails or is cancelled
   */
  child: <I, O>(workflow: Workflow<I, O>, input: I, options?: ChildOptions) => Promise<O>
  /** Registers what undoes a step: if the run fails or is cancelled, all are run as steps, newest first. */
  compensate: (name: string, undo: StepFunction<unknown>, options?: StepOptions) => void
  /** What the run shows to whoever asks; the last one set counts. */
  setState: (state: unknown) => void
  /** `return run.continueAsNew(input)` ends this run and starts the next under the same id, with an empty journal. */
  continueAsNew: (input: unknown) => never
  /**
   * True where new code may run: in runs that get here for the first time since the code has this call. Runs that were
   * past it go on the old way. `if (await run.patched('fix-1')) ... else ...`
   */
  patched: (id: string) => Promise<boolean>
  /** Aborts when the run is cancelled, ended or lost. */
  readonly cancelled: AbortSignal
  /** Time of the last result that reached the code, in ms since 1970: the same at every replay. */
  now: () => number
  /** Like Math.random, but the same at every replay. */
  random: () => number
  /** A UUIDv4, the same at every replay. */
  uuid: () => string
}

export function createContext(run: LiveRun): Run {
  const { runId } = run.row
  let drawn = 0
  const draw = () => {
    drawn += 1
    return createHash('sha256').update(`${runId}/${drawn}`).digest()
  }
  return {
    runId,
    id: run.row.id ?? runId,
    tenant: run.row.tenant,
    step: (name, work, options = {}) => callStep(run, name, work, options),
    transaction: (name, work, options = {}) => callTransaction(run, name, work, options),
    waitFor: (type, options = {}) => callWait(run, type, options),
    signal: (name, options = {}) => callSignal(run, name, options.timeout),
    child: (workflow, input, options = {}) => callChild(run, workflow, input, options) as never,
    compensate: (name, undo, options = {}) => {
      run.compensations.unshift({ name, undo: async () => void (await callStep(run, name, undo, options)) })
    },
    setState: (state) => setState(run, state),
    continueAsNew: (input) => new Continuation(input) as never,
    patched: (id) => callPatched(run, id),
    get cancelled() {
      return runSignal(run)
    },
    sleep: (duration) => callSleep(run, run.runner.clock.now() + milliseconds(duration)),
    sleepUntil: (time) => callSleep(run, Number(time)),
    now: () => Math.floor(run.now),
    random: () => draw().readUIntBE(0, 6) / 2 ** 48,
    uuid: () => {
      const bytes = draw().subarray(0, 16)
      bytes[6] = (bytes[6]! & 0x0f) | 0x40
      bytes[8] = (bytes[8]! & 0x3f) | 0x80
      return bytes.toString('hex').replace(/(.{8})(.{4})(.{4})(.{4})(.{12})/, '$1-$2-$3-$4-$5')
    },
  }
}

/** What continueAsNew returns: a mark, not an exception, so that no catch of the user's takes it. */
export class Continuation {
  readonly input: unknown
  constructor(input: unknown) {
    this.input = input
  }
}

/** Not a call: what a replay would set again is not written. */
function setState(run: LiveRun, state: unknown): void {
  const text = encode(state, 'The state of a run')
  if (run.over || run.delivered < run.replayed) return
  run.shown.state = text
  run.shown.unwritten = true
  if (!run.shown.writing) writeState(run)
}

/** One at a time, since of two commits the later may be the first to end. */
function writeState(run: LiveRun): void {
  run.shown.writing = true
  run.shown.unwritten = false
  const { runId, epoch } = run.row
  writeEntry(run, { state: { runId, epoch, state: run.shown.state } }, () => {
    run.shown.writing = false
    if (run.shown.unwritten) writeState(run)
  })
}

function callPatched(run: LiveRun, id: string): Promise<boolean> {
  const known = run.patches?.get(id)
  if (known !== undefined) return Promise.resolve(known)
  const recorded = run.history.get(run.nextPos)
  const marked = recorded?.kind === 'patch' && recorded.name === id
  const past = !marked && [...run.history.values()].some((line) => line.pos >= run.nextPos)
  run.patches ??= new Map()
  run.patches.set(id, !past)
  if (past) return Promise.resolve(false)
  const { pos } = openCall(run, 'patch', id)
  const call = { pos, kind: 'patch', name: id, attempt: 1, ms: null } as const
  const result = awaitResult(run, call) as Promise<boolean>
  if (!marked) writeResult(run, call, { value: true, output: 'true' })
  return result
}

/** The due time is durable before anything waits for it. */
function callSleep(run: LiveRun, until: number): Promise<void> {
  const { pos, recorded } = openCall(run, 'sleep', 'sleep')
  const call = { pos, kind: 'sleep', name: 'sleep', attempt: 1, ms: null } as const
  const due = () => writeResult(run, call, { value: undefined, output: null })
  const dueAt = recorded === undefined ? until : recorded.ord === null ? recorded.dueAt : null
  const result = awaitResult(run, call, { dueAt, due }) as Promise<void>
  if (run.over || recorded !== undefined) return result
  const { runId, epoch } = run.row
  const row = { ...call, runId, epoch, ord: null, output: null, error: null, dueAt: until, at: run.runner.clock.now() }
  writeEntry(run, { steps: [row] }, () => {})
  return result
}
