/** How runs begin: by a caller (group-committed), or by an event, in the transaction that inserts it. */

import { sql } from 'drizzle-orm'
import type pg from 'pg'
import { uuidv7 } from 'uuidv7'
import type { Transaction } from '../db/connect.ts'
import { workflowRuns } from '../db/schema.ts'
import { type Duration, milliseconds } from '../durations.ts'
import { MillraceError } from '../errors.ts'
import type { Definition } from './definitions.ts'
import type { Journal } from './journal.ts'
import type { StartRow } from './journal-sql.ts'
import { activeTraceparent } from './trace.ts'
import { encode } from './values.ts'

/**
 * @property id          makes the start idempotent: one open run per id
 * @property onConflict  the id's run is open: `use` it (default), `fail`, or `terminate` it and start
 * @property reuse       the id's last run has ended: `use` it (default), start `again`, `again-if-failed`, or `fail`
 * @property delay       before it starts
 * @property attributes  to filter runs by
 * @property traceparent W3C trace context the run continues; default: the active span's
 */
export type StartOptions = {
  id?: string
  onConflict?: 'use' | 'fail' | 'terminate'
  reuse?: 'use' | 'again' | 'again-if-failed' | 'fail'
  queue?: string
  priority?: number
  concurrencyKey?: string
  delay?: Duration
  timeout?: Duration
  attributes?: Record<string, unknown>
  traceparent?: string
}

/** The row of a new run, checked. */
export function newRun(tenant: string, workflow: Definition, input: unknown, options: StartOptions): StartRow {
  for (const [name, text] of [
    ['id', options.id],
    ['concurrencyKey', options.concurrencyKey],
  ] as const)
    if (text !== undefined && (text === '' || text.length > 512 || text.includes('\u0000')))
      throw new MillraceError('invalid_request', `${name} must be text of 1 to 512 characters without NUL`)
  return {
    runId: uuidv7(),
    id: options.id ?? null,
    generation: 1,
    name: workflow.name,
    version: workflow.version,
    queue: options.queue ?? workflow.queue,
    priority: options.priority ?? workflow.priority,
    concurrencyKey: options.concurrencyKey ?? null,
    status: options.delay === undefined ? 'queued' : 'waiting',
    input: encode(input, `The input of ${workflow.name}`),
    attributes: encode(options.attributes, 'attributes'),
    traceparent: options.traceparent ?? activeTraceparent(),
    delayMs: options.delay === undefined ? null : milliseconds(options.delay),
    timeoutMs: options.timeout === undefined ? workflow.timeoutMs : milliseconds(options.timeout),
    parentId: null,
    chainId: null,
    starter: null,
    createdAt: 0,
    tenant,
  }
}

/** Inserts a run. @returns false when its id (or, for one to run here, the lease) stands against it */
export function insertRun(journal: Journal, row: StartRow): Promise<boolean> {
  return new Promise((resolve, reject) => {
    journal.write({
      runId: row.runId,
      epoch: row.status === 'running' ? 1 : 0,
      starts: [row],
      settle: (outcome) => {
        switch (outcome.kind) {
          case 'written':
            return resolve(true)
          case 'lost':
            return resolve(false)
          case 'failed':
            return reject(outcome.error)
        }
      },
    })
  })
}

/**
 * Inserts a run in a transaction of the caller's: it exists if and only if that commits, and starts within a sweep.
 * @returns false when another run has its id
 */
export async function insertRunIn(tx: Transaction, row: StartRow): Promise<boolean> {
  const after = (ms: number | null) => (ms === null ? null : sql`clock_timestamp() + ${ms}::float8 * interval '1 ms'`)
  const json = (text: string | null) => (text === null ? null : sql`${text}::json`)
  const inserted = await tx
    .insert(workflowRuns)
    .values({
      ...row,
      status: row.delayMs === null ? 'queued' : 'waiting',
      input: json(row.input),
      attributes: row.attributes === null ? null : sql`${row.attributes}::jsonb`,
      dueAt: after(row.delayMs),
      deadlineAt: after(row.timeoutMs),
      createdAt: sql`clock_timestamp()`,
    })
    .onConflictDoNothing()
    .returning({ runId: workflowRuns.runId })
  return inserted.length === 1
}

export async function exists(pool: pg.Pool, runId: string): Promise<boolean> {
  const { rowCount } = await pool.query('select from workflow_runs where run_id = $1', [runId])
  return rowCount === 1
}
