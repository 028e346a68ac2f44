/** The audit trail: one row for each act of an operator, in the transaction of the act where there is one. */

import { sql } from 'drizzle-orm'
import type { Database, Transaction } from '../db/connect.ts'

/** Who acts: a caller of the API, or someone at a terminal. */
export type Actor = { actor: string; keyId: string | null; tenant: string }

/**
 * @property action  what was done to what, such as `key.revoke`
 * @property target  the id or name of what it was done to
 * @property tenant  whose it was, where not the actor's
 * @property detail  what else was said; never a secret
 */
export type Act = { action: string; target?: string; tenant?: string; detail?: object }

export async function recordAct(tx: Database | Transaction, by: Actor, act: Act): Promise<void> {
  await tx.execute(sql`
    insert into audit (tenant, actor, key_id, action, target, detail)
    values (${act.tenant ?? by.tenant}, ${by.actor}, ${by.keyId}, ${act.action}, ${act.target ?? null},
            ${act.detail === undefined ? null : JSON.stringify(act.detail)}::jsonb)`)
}
