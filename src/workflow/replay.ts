/** Dead runs (failed, or stuck) are dead letters that keep their history: they are run again from the step that failed. */

import { uuidv7 } from 'uuidv7'
import { DEAD_RUNS } from '../db/jobs.ts'
import { describe, MillraceError } from '../errors.ts'
import { type ControlDeps, restartRun, resumeRun } from './control.ts'
import { listRuns, type RunFilter } from './runs.ts'

/**
 * Where the run's own error came from: the last line that failed with it. A run that failed outside its steps, or whose
 * code made an error of its own, is run again as a whole.
 */
const FAILURE = `
  select coalesce((
    select s.pos from workflow_steps s
    where s.run_id = r.run_id and s.ord is not null and s.error->>'message' = r.error->>'message'
    order by s.ord desc limit 1), 0) as pos
  from workflow_runs r where r.run_id = $1`

/**
 * Restarts an ended run as a new run under the same id.
 * @param from  `failure`, the name of a step, or a position in the history
 * @returns the new run's id
 * @throws MillraceError `conflict` for a run that is open, `not_found` for a step that is not there
 */
export async function restartFrom(
  deps: ControlDeps,
  runId: string,
  { from = 0, version }: { from?: number | string; version?: string } = {},
): Promise<string> {
  let pos = from
  if (from === 'failure') {
    const { rows } = await deps.pool.query<{ pos: number }>(FAILURE, [runId])
    if (rows[0] === undefined) throw new MillraceError('not_found', `There is no run ${runId}`)
    pos = rows[0].pos
  }
  return restartRun(deps, { runId, newRunId: uuidv7(), from: pos, version: version ?? null })
}

export type ReplayOutcome = {
  runId: string
  id: string | null
  name: string
  error: string
  outcome: 'restarted' | 'resumed' | 'refused' | 'would be restarted' | 'would be resumed'
  newRunId?: string
  reason?: string
}

/**
 * Runs dead runs again, newest first. One that was replayed before, or whose id has had another run since, is refused.
 * @property step  as `from` of restartFrom (default `failure`); a stuck run is resumed where it stands
 */
export async function replayRuns(
  deps: ControlDeps,
  {
    step = 'failure',
    version,
    dryRun = false,
    ...filter
  }: Omit<RunFilter, 'status'> & { step?: number | string; version?: string; dryRun?: boolean },
): Promise<{ runs: ReplayOutcome[]; next: string | null }> {
  const { runs, next } = await listRuns(deps, { ...filter, status: ['failed', 'stuck'] })
  const outcomes: ReplayOutcome[] = []
  for (const { runId, id, name, status, error } of runs) {
    const about = { runId, id, name, error: error?.message ?? '' }
    const resumes = status === 'stuck'
    if (dryRun) {
      outcomes.push({ ...about, outcome: resumes ? 'would be resumed' : 'would be restarted' })
      continue
    }
    try {
      if (resumes) await resumeRun(deps, runId)
      else await refuseSucceeded(deps, runId)
      outcomes.push(
        resumes
          ? { ...about, outcome: 'resumed' }
          : { ...about, outcome: 'restarted', newRunId: await restartFrom(deps, runId, { from: step, version }) },
      )
    } catch (thrown) {
      if (!(thrown instanceof MillraceError)) throw thrown
      outcomes.push({ ...about, outcome: 'refused', reason: describe(thrown) })
    }
  }
  return { runs: outcomes, next }
}

const SUCCESSOR = `
  select l.run_id from workflow_runs r join workflow_runs l on l.id = r.id and l.tenant = r.tenant and l.generation > r.generation
  where r.run_id = $1 limit 1`

async function refuseSucceeded({ pool, jobs }: ControlDeps, runId: string): Promise<void> {
  const [letter] = (await jobs?.findJobs<object>(DEAD_RUNS, { id: runId })) ?? []
  if (letter?.state === 'completed') throw new MillraceError('conflict', 'It was replayed before')
  const { rows } = await pool.query(SUCCESSOR, [runId])
  if (rows[0] !== undefined)
    throw new MillraceError('conflict', `Run ${rows[0].run_id} has followed it under the same id`)
}
