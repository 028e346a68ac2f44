/**
 * A run that failed is a dead letter: a pg-boss job in the queue `dead-runs`, under the run's id, written in the commit
 * that ends the run. An open one is `created`; when the run is restarted it is `completed`.
 */

import type pg from 'pg'
import type { PgBoss } from 'pg-boss'
import { DEAD_RUNS, onClient } from '../db/jobs.ts'

export type DeadRun = {
  runId: string
  id: string | null
  name: string
  version: string
  input: string | null
  error: string
}

/** The end of a long history: what led to the failure. The whole of it stays in the journal. */
const LINES_MAX = 100
/** Longer results are cut in the letter; they too stay in the journal. */
const OUTPUT_CHARACTERS_MAX = 2_000

const HISTORY = `
  select r.run_id, s.pos, s.kind, s.name, s.attempt, s.at, left(s.output::text, $3) as output, s.error
  from unnest($1::uuid[]) r(run_id), lateral (
    select * from workflow_steps where run_id = r.run_id order by pos desc limit $2) s
  order by r.run_id, s.pos`

/** Writes letters as part of the client's transaction; one that is there already stays as it is. */
export async function buryRuns(jobs: PgBoss, client: pg.ClientBase, dead: DeadRun[]): Promise<void> {
  const { rows } = await client.query(HISTORY, [dead.map((run) => run.runId), LINES_MAX, OUTPUT_CHARACTERS_MAX])
  const letters = dead.map(({ input, error, ...run }) => ({
    id: run.runId,
    data: {
      ...run,
      input: storable(input),
      error: storable(error),
      history: rows
        .filter((row) => row.run_id === run.runId)
        .map(({ run_id, ...line }) => ({ ...line, output: clean(line.output) })),
    },
  }))
  await jobs.insert(DEAD_RUNS, letters, { db: onClient(client) })
}

/** The run has been started again. */
export async function closeLetter(jobs: PgBoss, client: pg.ClientBase, runId: string, newRunId: string): Promise<void> {
  await jobs.complete(DEAD_RUNS, runId, { restartedAs: newRunId }, { db: onClient(client), includeQueued: true })
}

/** jsonb, unlike the journal's json, holds no U+0000. */
const clean = (text: string | null) => text?.replaceAll('\\u0000', '') ?? null

const storable = (text: string | null): unknown => (text === null ? null : JSON.parse(clean(text)!))
