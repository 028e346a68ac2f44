/** How a run leaves memory: ended, dropped because it is another's, or stopped because its code does not fit. */

import { MillraceError } from '../errors.ts'
import type { DeadRun } from './dead-runs.ts'
import type { JournalEntry } from './journal.ts'
import type { FinishRow } from './journal-sql.ts'
import { type LiveRun, openChildren, type Recorded, type RunEnd, type RunRow } from './live.ts'
import { endRunSpan } from './trace.ts'
import { encodeError } from './values.ts'

export function finish(run: LiveRun, end: RunEnd): void {
  if (end.kind === 'continued') run.runner.place(end.next)
  run.over = true
  stir(run)
  clearTimeout(run.deadlineTimer)
  endRunSpan(run.span, end.kind)
  if (end.kind !== 'stuck') run.runner.cancelChildren(openChildren(run))
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
    ...(end.kind !== 'stuck' && (run.row.wakes > 0 || run.outside !== null) ? { forget: run.row.runId } : {}),
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

/** The code goes on: its next rest is a new one. */
export function stir(run: LiveRun): void {
  if (run.timer === undefined && run.restingSince === null) return
  clearTimeout(run.timer)
  run.timer = undefined
  run.restingSince = null
}
