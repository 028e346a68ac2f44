/**
 * Finding dead letters. All SQL that reads them is here: searches and counts run over their `recorded` audit rows and the
 * state of their jobs, so that no payload is read; only a letter that is shown or handled is read whole.
 */

import { type SQL, sql } from 'drizzle-orm'
import type { Database, Transaction } from '../db/connect.ts'
import { OPERATOR_TENANT } from '../http/caller.ts'
import type { DeadLetter } from './dead-letters.ts'
import { identityOf } from './event.ts'

export type LetterState = 'open' | 'replayed' | 'discarded'

/** Every condition given must hold. */
export type LetterFilter = {
  /** Absent for all tenants. */
  tenant?: string | undefined
  /** Ids of dead letters or of events. */
  ids?: string[]
  type?: string
  source?: string
  /** SQLSTATE, or `unreadable`. */
  code?: string
  /** Dead since (inclusive), ISO 8601. */
  from?: string
  /** Dead before. */
  to?: string
}

export type LetterSummary = {
  deadLetterId: string
  state: LetterState
  source: string
  id: string
  type: string
  code: string
  error: string
  attempts: number
  /** ISO 8601 */
  deadAt: string
  /** Place in the order of death; continues a listing. */
  seq: number
}

export type Cause = { code: string; type: string; count: number; oldest: string; newest: string; error: string }

export type LetterHistory = {
  deadLetterId: string
  action: 'recorded' | 'replayed' | 'discarded'
  actor: string
  at: string
  detail: unknown
}

export type LetterWhole = DeadLetter & {
  deadLetterId: string
  state: LetterState
  /** All that was ever done to letters of this event, oldest first. */
  history: LetterHistory[]
}

export type LockedLetter = { seq: number; deadLetterId: string; letter: DeadLetter }

const JOB_STATE = { open: 'created', replayed: 'completed', discarded: 'cancelled' } as const

const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i

const instant = (column: SQL) => sql`to_char(${column} at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')`

const letters = sql`dead_letter_audit a join pgboss.job j on j.name = 'dead-letters' and j.id = a.dead_letter_id`

/** `a` is the `recorded` row, `j` the job. What is not asked for is null, which Postgres plans away. */
function matching({ tenant, ids, type, source, code, from, to }: LetterFilter, state: LetterState | undefined): SQL {
  const uuids = ids?.filter((id) => UUID.test(id))
  return sql`a.action = 'recorded'
    and (${tenant ?? null}::text is null or a.tenant = ${tenant ?? null})
    and (${array(ids)}::text[] is null
         or a.event_id = any(${array(ids)}::text[]) or a.dead_letter_id = any(${array(uuids)}::uuid[]))
    and (${type ?? null}::text is null or a.type = ${type ?? null})
    and (${source ?? null}::text is null or a.source = ${source ?? null})
    and (${code ?? null}::text is null or a.code = ${code ?? null})
    and (${from ?? null}::timestamptz is null or a.at >= ${from ?? null}::timestamptz)
    and (${to ?? null}::timestamptz is null or a.at < ${to ?? null}::timestamptz)
    and (${state ?? null}::text is null or j.state = ${state === undefined ? null : JOB_STATE[state]}::pgboss.job_state)`
}

const array = (values: string[] | undefined) => sql.param(values ?? null)

const stateName = sql`case j.state when 'created' then 'open' when 'completed' then 'replayed' else 'discarded' end`

/**
 * Lists letters, newest first.
 * @param before  `seq` of the last one of the page before
 */
export async function listLetters(
  db: Database,
  filter: LetterFilter,
  { state, before, limit }: { state?: LetterState | undefined; before?: number | undefined; limit: number },
): Promise<LetterSummary[]> {
  const { rows } = await db.execute<LetterSummary & { seq: string }>(sql`
    select a.dead_letter_id as "deadLetterId", ${stateName} as state, a.source, a.event_id as id, a.type, a.code,
           a.detail->>'error' as error, (a.detail->>'attempts')::int as attempts, ${instant(sql`a.at`)} as "deadAt", a.seq
    from ${letters}
    where ${matching(filter, state)} and (${before ?? null}::bigint is null or a.seq < ${before ?? null})
    order by a.seq desc
    limit ${limit}`)
  return rows.map((row) => ({ ...row, seq: Number(row.seq) }))
}

/** Counts letters by cause, the most frequent first, each with its newest error. */
export async function countCauses(db: Database, filter: LetterFilter, state?: LetterState): Promise<Cause[]> {
  const { rows } = await db.execute<Cause & { count: string }>(sql`
    select a.code, a.type, count(*) as count, ${instant(sql`min(a.at)`)} as oldest, ${instant(sql`max(a.at)`)} as newest,
           (select detail->>'error' from dead_letter_audit where seq = max(a.seq)) as error
    from ${letters}
    where ${matching(filter, state)}
    group by a.code, a.type
    order by count(*) desc, a.code, a.type`)
  return rows.map((row) => ({ ...row, count: Number(row.count) }))
}

/** Open letters that match. */
export async function countOpen(db: Database, filter: LetterFilter): Promise<number> {
  const { rows } = await db.execute<{ count: string }>(sql`
    select count(*) as count from ${letters} where ${matching(filter, 'open')}`)
  return Number(rows[0]!.count)
}

/**
 * The whole letter with the history of its event, or undefined.
 * @param tenant  null for all
 */
export async function showLetter(
  db: Database,
  tenant: string | null,
  deadLetterId: string,
): Promise<LetterWhole | undefined> {
  if (!UUID.test(deadLetterId)) return undefined
  const { rows } = await db.execute<{ state: LetterState; data: DeadLetter }>(sql`
    select ${stateName} as state, j.data from ${letters}
    where a.action = 'recorded' and a.dead_letter_id = ${deadLetterId} and (${tenant}::text is null or a.tenant = ${tenant})`)
  if (rows[0] === undefined) return undefined
  const { state, data } = rows[0]
  const { rows: history } = await db.execute<LetterHistory>(sql`
    select dead_letter_id as "deadLetterId", action, actor, ${instant(sql`at`)} as at, detail
    from dead_letter_audit
    where dead_letter_id = ${deadLetterId}
      or (event_id = ${data.id} and event_id <> '' and source = ${data.source} and tenant = ${data.tenant ?? OPERATOR_TENANT})
    order by seq`)
  return { deadLetterId, state, ...data, history }
}

/** The newest audit row: letters that die later are no part of what was asked for now. */
export async function newestAudit(db: Database): Promise<number> {
  const { rows } = await db.execute<{ seq: string }>(sql`select coalesce(max(seq), 0) as seq from dead_letter_audit`)
  return Number(rows[0]!.seq)
}

/** Locks the next open letters in the order of their death, except those that someone else is handling now. */
export async function lockLetters(
  tx: Transaction,
  filter: LetterFilter,
  { after, upTo, limit }: { after: number; upTo: number; limit: number },
): Promise<LockedLetter[]> {
  const { rows } = await tx.execute<LockedLetter & { seq: string }>(sql`
    select a.seq, a.dead_letter_id as "deadLetterId", j.data as letter
    from ${letters}
    where ${matching(filter, 'open')} and a.seq > ${after} and a.seq <= ${upTo}
    order by a.seq
    limit ${limit}
    for update of j skip locked`)
  return rows.map((row) => ({ ...row, seq: Number(row.seq) }))
}

/** Which of these events are stored. */
export async function findStored(
  tx: Transaction,
  events: { tenant: string; source: string; id: string }[],
): Promise<Set<string>> {
  const { rows } = await tx.execute<{ tenant: string; source: string; id: string }>(sql`
    select tenant, source, id from unnest(${sql.param(events.map((event) => event.tenant))}::text[],
                                          ${sql.param(events.map((event) => event.source))}::text[],
                                          ${sql.param(events.map((event) => event.id))}::text[]) as event(tenant, source, id)
    where exists (select from event_ids where key = event_key(tenant, source, id))`)
  return new Set(rows.map(identityOf))
}
