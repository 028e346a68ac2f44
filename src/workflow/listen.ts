/**
 * Which events concern workflows, as a tiny table that every ingest worker reads (events.ts). A new row locks the table
 * against those transactions, so an event is either seen by this row or committed before it and looked up here.
 */

import { drizzle } from 'drizzle-orm/node-postgres'
import type pg from 'pg'
import type { Workflow } from './define.ts'
import { backfill } from './events.ts'
import { inSession } from './session.ts'

export type Listeners = {
  /** Replaces the triggers of these workflows and declares what they await. */
  register: (workflows: Workflow[]) => Promise<void>
  /** Declares an awaited type at its first wait, and looks up its events since `sinceMs`. */
  ensure: (type: string, path: string[], sinceMs: number) => Promise<void>
}

type Row = {
  type: string
  path: string[]
  workflow: string
  version: string
  queue: string
  priority: number
  reuse: string
  concurrencyPath: string[] | null
  timeoutMs: number | null
}

/** Ingest transactions read the table `for key share`, which this waits for and then holds off; plain reads go on. */
const LOCK = `lock table workflow_listeners in exclusive mode`

const MISSING = `
  select 1 from jsonb_to_recordset($1::jsonb) n(type text, path text[], workflow text, version text, queue text,
    priority smallint, reuse text, "timeoutMs" bigint, "concurrencyPath" text[])
  where not exists (
    select from workflow_listeners l where l.type = n.type and l.path = n.path and l.workflow = n.workflow
      and (l.version, l.queue, l.priority, l.reuse) = (n.version, n.queue, n.priority, n.reuse)
      and l.timeout_ms is not distinct from n."timeoutMs" and l.concurrency_path is not distinct from n."concurrencyPath")
  union all
  select 1 from workflow_listeners l
  where l.workflow = any($2::text[]) and not exists (
    select from jsonb_to_recordset($1::jsonb) n(type text, path text[], workflow text)
    where n.type = l.type and n.path = l.path and n.workflow = l.workflow)
  limit 1`

const REMOVE = `delete from workflow_listeners where workflow = any($1::text[])`

const INSERT = `
  insert into workflow_listeners (type, path, workflow, version, queue, priority, reuse, timeout_ms, concurrency_path)
  select type, path, workflow, version, queue, priority, reuse, "timeoutMs", "concurrencyPath"
  from jsonb_to_recordset($1::jsonb) n(type text, path text[], workflow text, version text, queue text,
    priority smallint, reuse text, "timeoutMs" bigint, "concurrencyPath" text[])
  on conflict do nothing`

export function createListeners(pool: pg.Pool): Listeners {
  const known = new Map<string, Promise<void>>()
  return {
    async register(workflows) {
      const rows = rowsOf(workflows)
      const names = workflows.map((workflow) => workflow.name)
      const { rowCount } = await pool.query(MISSING, [JSON.stringify(rows), names])
      if (rowCount! > 0)
        await inSession(pool, async (client) => {
          await client.query(LOCK)
          await client.query(REMOVE, [names])
          await client.query(INSERT, [JSON.stringify(rows)])
        })
      for (const { type, path, workflow } of rows)
        if (workflow === '') known.set(JSON.stringify([type, path]), Promise.resolve())
    },
    ensure(type, path, sinceMs) {
      const name = JSON.stringify([type, path])
      const begun = known.get(name)
      if (begun !== undefined) return begun
      const learned = learn(pool, type, path, sinceMs).catch((error) => {
        known.delete(name)
        throw error
      })
      known.set(name, learned)
      return learned
    },
  }
}

async function learn(pool: pg.Pool, type: string, path: string[], sinceMs: number): Promise<void> {
  const row = awaitedRow(type, path)
  const { rowCount } = await pool.query(MISSING, [JSON.stringify([row]), []])
  if (rowCount === 0) return
  await inSession(pool, async (client) => {
    await client.query(LOCK)
    const inserted = await client.query(INSERT, [JSON.stringify([row])])
    // Under the lock no event of the type is on its way: all are either here or will see the row.
    if (inserted.rowCount === 1) await drizzle(client).execute(backfill(type, path, sinceMs))
  })
}

/** Listens to a type without starting anything: its events go to mailboxes for whoever waits. */
const awaitedRow = (type: string, path: string[]): Row => ({
  type,
  path,
  workflow: '',
  version: '',
  queue: 'default',
  priority: 0,
  reuse: 'never',
  timeoutMs: null,
  concurrencyPath: null,
})

function rowsOf(workflows: Workflow[]): Row[] {
  const rows = new Map<string, Row>()
  for (const { name, version, queue, priority, timeoutMs, triggers, awaits } of workflows) {
    for (const { event, path, concurrencyPath, reuse } of triggers)
      rows.set(JSON.stringify([event, path, name]), {
        type: event,
        path,
        workflow: name,
        version,
        queue,
        priority,
        reuse,
        timeoutMs,
        concurrencyPath,
      })
    for (const [type, path] of awaits) rows.set(JSON.stringify([type, path, '']), awaitedRow(type, path))
  }
  return [...rows.values()]
}
