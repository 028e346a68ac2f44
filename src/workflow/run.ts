/** A run's way in this process: begin or resume, call the workflow's function, write how it ended. */

import { describe, MillraceError } from '../errors.ts'
import { cancelRun, startTurn } from './calls.ts'
import { Continuation, createContext } from './context.ts'
import type { Workflow } from './define.ts'
import { dropRun, finish, stopStuck } from './ending.ts'
import type { LiveRun, Recorded, RunEnd, Runner, RunRow } from './live.ts'
import { newRun } from './start.ts'
import { startRunSpan } from './trace.ts'
import { decode, decodeError, encode, encodeError } from './values.ts'

/** Starts (or, with a history, resumes) a run whose lease this process has. */
export function beginRun(runner: Runner, row: RunRow, workflow: Workflow, recorded: Recorded[]): LiveRun {
  const run: LiveRun = {
    runner,
    row,
    workflow,
    history: new Map(),
    results: [],
    delivered: 0,
    calls: new Map(),
    nextPos: 0,
    nextOrd: 0,
    now: Math.round(row.createdAt),
    executing: 0,
    writing: 0,
    turning: false,
    over: false,
    startedHere: false,
    unread: row.epoch > 1 || row.wakes > 0,
    timer: undefined,
    restingSince: null,
    cancelling: recorded.some((line) => line.kind === 'cancel'),
    dropped: null,
    outside: null,
    compensations: [],
    replayed: 0,
    shown: { state: null, unwritten: false, writing: false },
    patches: null,
    deadlineTimer: undefined,
    controller: null,
    span: startRunSpan(runner.tracer, row),
  }
  if (recorded.length > 0) loadHistory(run, recorded)
  const before = runner.live.get(row.runId)
  if (before !== undefined) dropRun(before, new MillraceError('conflict', 'The lease is lost'))
  runner.live.set(row.runId, run)
  armDeadline(run)
  startTurn(run)
  void execute(run)
  return run
}

function loadHistory(run: LiveRun, recorded: Recorded[]): void {
  for (const line of recorded) run.history.set(line.pos, line)
  const settled = recorded.filter((line) => line.ord !== null).sort((a, b) => a.ord! - b.ord!)
  run.nextOrd = (settled.at(-1)?.ord ?? -1) + 1
  run.results = settled.map((line) => ({
    pos: line.pos,
    at: Math.round(line.at),
    output: decode(line.output),
    error: line.error === null ? null : decodeError(line.error, 'step_failed'),
    durable: true,
  }))
  run.replayed = run.results.length
}

/** A run that is at work cannot rest until its deadline, so the deadline has a timer of its own. */
function armDeadline(run: LiveRun): void {
  if (run.row.deadlineAt === null || run.cancelling) return
  const wait = run.row.deadlineAt - run.runner.clock.now()
  run.deadlineTimer = setTimeout(
    () => (wait > TIMER_MS_MAX ? armDeadline(run) : cancelRun(run, 'timed_out')),
    Math.min(Math.max(0, wait), TIMER_MS_MAX),
  )
}

/** setTimeout takes 2^31 ms at most. */
const TIMER_MS_MAX = 86_400_000

async function execute(run: LiveRun): Promise<void> {
  let end: RunEnd
  try {
    const output = await run.workflow.body(createContext(run), decode(run.row.input))
    end = output instanceof Continuation ? continued(run, output) : completed(run, output)
  } catch (error) {
    end = await failed(run, error)
  }
  if (run.over) return
  const forgotten = [...run.history.values()].find((line) => line.ord !== null && line.pos >= 0)
  if (forgotten !== undefined) stopStuck(run, `ended after ${run.nextPos} calls`, forgotten)
  else finish(run, end)
}

const completed = (run: LiveRun, output: unknown): RunEnd => ({
  kind: 'completed',
  output: encode(output, `The result of ${run.row.name}`),
})

function continued(run: LiveRun, { input }: Continuation): RunEnd {
  const { row, workflow } = run
  const next = newRun(row.tenant, workflow, input, { queue: row.queue, priority: row.priority })
  const shared = {
    id: row.id,
    generation: row.generation + 1,
    parentId: row.parentId,
    traceparent: row.traceparent,
    chainId: row.chainId ?? row.runId,
    starter: row,
  }
  return { kind: 'continued', next: { ...next, ...shared, concurrencyKey: row.concurrencyKey } }
}

/** Undoes, newest first, what the code has asked to have undone; one that fails does not keep the others from it. */
async function failed(run: LiveRun, thrown: unknown): Promise<RunEnd> {
  const failures: { name: string; error: string }[] = []
  for (const { name, undo } of run.compensations)
    try {
      await undo()
    } catch (error) {
      failures.push({ name, error: describe(error) })
    }
  const cancelled = run.cancelling && thrown instanceof MillraceError && thrown.code === 'cancelled'
  const error = JSON.parse(encodeError(thrown))
  if (failures.length > 0) error.details = { ...error.details, notUndone: failures }
  return { kind: cancelled ? 'cancelled' : 'failed', error: JSON.stringify(error) }
}
