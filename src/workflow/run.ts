/** A run's way in this process: begin or resume, call the workflow's function, write how it ended. */

import { createContext } from './context.ts'
import type { Workflow } from './define.ts'
import {
  finish,
  type LiveRun,
  type Recorded,
  type RunEnd,
  type Runner,
  type RunRow,
  startTurn,
  stopStuck,
} from './live.ts'
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
    now: row.createdAt,
    executing: 0,
    writing: 0,
    turning: false,
    over: false,
    startedHere: false,
    timer: undefined,
    restingSince: null,
    cancelling: false,
    controller: null,
    span: null,
  }
  if (recorded.length > 0) loadHistory(run, recorded)
  runner.live.set(row.runId, run)
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
    at: line.at,
    output: decode(line.output),
    error: line.error === null ? null : decodeError(line.error, 'step_failed'),
    durable: true,
  }))
}

async function execute(run: LiveRun): Promise<void> {
  let end: RunEnd
  try {
    const output = await run.workflow.body(createContext(run), decode(run.row.input))
    end = { kind: 'completed', output: encode(output, `The result of ${run.row.name}`) }
  } catch (error) {
    end = { kind: 'failed', error: encodeError(error) }
  }
  if (run.over) return
  const forgotten = [...run.history.values()].find((line) => line.ord !== null)
  if (forgotten !== undefined) return stopStuck(run, `ended after ${run.nextPos} calls`, forgotten)
  finish(run, end)
}
