/** The audit trail: one row for each act of an operator, in the transaction of the act where there is one. */

import { sql } from 'drizzle-orm'
import type pg from 'pg'
import type { Database, Transaction } from '../db/connect.ts'

/** Who acts: a caller of the API, or someone at a terminal. */
export type Actor = { actor: string; keyId: string | null; tenant: string }

/**
 * @property action  what was done to what, such as `key.revoke`
 * @property target  the id or name of what it was done to
 * @property tenant  whose it was, where not the actor's
 * @property detail  what else was said; never a secret
 */
export type Act = { action: string; target?: string; tenant?: string; detail?: object | undefined }

const columns = (by: Actor, { action, target, tenant, detail }: Act) => [
  tenant ?? by.tenant,
  by.actor,
  by.keyId,
  action,
  target ?? null,
  // jsonb holds no U+0000.
  detail === undefined ? null : JSON.stringify(detail).replaceAll('\\u0000', ''),
]

/** @param by  null: a program acts for itself, which is no operator's act */
export async function recordAct(tx: Database | Transaction, by: Actor | null, act: Act): Promise<void> {
  if (by === null) return
  const [tenant, actor, keyId, action, target, detail] = columns(by, act)
  await tx.execute(sql`
    insert into audit (tenant, actor, key_id, action, target, detail)
    values (${tenant}, ${actor}, ${keyId}, ${action}, ${target}, ${detail}::jsonb)`)
}

/** The same on a bare client, or on a pool where the act has no transaction. */
export async function recordActOn(client: pg.ClientBase | pg.Pool, by: Actor | null, act: Act): Promise<void> {
  if (by === null) return
  await client.query(
    'insert into audit (tenant, actor, key_id, action, target, detail) values ($1, $2, $3, $4, $5, $6::jsonb)',
    columns(by, act),
  )
}

/** An act as lists show it. `at` is ISO 8601. */
export type RecordedAct = {
  seq: number
  at: string
  tenant: string
  actor: string
  keyId: string | null
  action: string
  target: string | null
  detail: unknown
}

/**
 * @property tenant  null for all tenants
 * @property action  this one, or all that begin with it and a dot: `key` finds `key.revoke`
 * @property before  `seq` of the last act of the page before
 */
export type ActFilter = {
  tenant: string | null
  actor?: string | undefined
  action?: string | undefined
  target?: string | undefined
  from?: string | undefined
  to?: string | undefined
  before?: number | undefined
  limit: number
}

/** Newest first. */
export async function listActs(db: Database, filter: ActFilter): Promise<RecordedAct[]> {
  const { tenant, actor = null, action = null, target = null, from = null, to = null, before = null, limit } = filter
  const { rows } = await db.execute<RecordedAct & { seq: string }>(sql`
    select seq, to_char(at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as at, tenant, actor, key_id as "keyId",
           action, target, detail
    from audit
    where (${tenant}::text is null or tenant = ${tenant})
      and (${actor}::text is null or actor = ${actor})
      and (${action}::text is null or action = ${action} or starts_with(action, ${action} || '.'))
      and (${target}::text is null or target = ${target})
      and (${from}::timestamptz is null or at >= ${from}::timestamptz)
      and (${to}::timestamptz is null or at < ${to}::timestamptz)
      and (${before}::bigint is null or seq < ${before})
    order by seq desc limit ${limit}`)
  return rows.map((row) => ({ ...row, seq: Number(row.seq) }))
}
