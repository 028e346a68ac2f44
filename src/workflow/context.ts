/** What a workflow's function is given: every call takes a position in the run's journal. */

import { createHash } from 'node:crypto'
import { type Duration, milliseconds } from './durations.ts'
import { awaitResult, type LiveRun, openCall, writeEntry, writeResult } from './live.ts'
import { callStep, type StepFunction, type StepOptions } from './step.ts'

export type Run = {
  /** This execution's own id. */
  runId: string
  /** The id it was started under. */
  id: string
  /**
   * Does work outside and records its result: once recorded, it never runs again. Before that it runs at least once.
   * @throws MillraceError `step_failed` when its attempts are used up, with the last error's name and message
   */
  step: <T>(name: string, work: StepFunction<T>, options?: StepOptions) => Promise<T>
  sleep: (duration: Duration) => Promise<void>
  sleepUntil: (time: Date | number) => Promise<void>
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
    step: (name, work, options = {}) => callStep(run, name, work, options),
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
