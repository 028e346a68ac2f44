/** The code that workers have loaded, as rows: an API process or a schedule starts workflows that it has not loaded. */

import type pg from 'pg'
import { MillraceError } from '../errors.ts'
import type { Workflow } from './define.ts'

/** What a start needs to know of a workflow. */
export type Definition = Pick<Workflow, 'name' | 'version' | 'queue' | 'priority' | 'timeoutMs'>

const REGISTER = `
  insert into workflow_definitions as d (name, version, queue, priority, timeout_ms)
  select name, version, queue, priority, "timeoutMs"
  from jsonb_to_recordset($1::jsonb)
    n(name text, version text, queue text, priority smallint, "timeoutMs" bigint)
  on conflict (name, version) do update set
    queue = excluded.queue, priority = excluded.priority, timeout_ms = excluded.timeout_ms
  where (d.queue, d.priority) <> (excluded.queue, excluded.priority)
    or d.timeout_ms is distinct from excluded.timeout_ms`

const LIST = `
  select name, version, queue, priority, timeout_ms::float8 as "timeoutMs", first_seen_at as "firstSeenAt"
  from workflow_definitions order by name, first_seen_at desc`

const FIND = `
  select name, version, queue, priority, timeout_ms::float8 as "timeoutMs" from workflow_definitions
  where name = $1 and ($2::text is null or version = $2) order by first_seen_at desc limit 1`

export async function registerDefinitions(pool: pg.Pool, workflows: Workflow[]): Promise<void> {
  const rows = workflows.map(({ name, version, queue, priority, timeoutMs }) => ({
    name,
    version,
    queue,
    priority,
    timeoutMs,
  }))
  await pool.query(REGISTER, [JSON.stringify(rows)])
}

/** All of them, the newest version of each name first. */
export async function listDefinitions(pool: pg.Pool): Promise<(Definition & { firstSeenAt: Date })[]> {
  return (await pool.query(LIST)).rows
}

/**
 * @param version  null: the newest
 * @throws MillraceError `not_found` for code that no worker has ever loaded
 */
export async function findDefinition(pool: pg.Pool, name: string, version: string | null): Promise<Definition> {
  const { rows } = await pool.query<Definition>(FIND, [name, version])
  if (rows[0] !== undefined) return rows[0]
  throw new MillraceError(
    'not_found',
    `No worker has loaded a workflow ${name}${version === null ? '' : ` of version ${version}`}: start one with it (millrace worker ./workflows.ts)`,
  )
}
