/** API keys as rows: make, list, rotate, revoke. What processes hold of them is in keyring.ts. */

import { sql } from 'drizzle-orm'
import { uuidv7 } from 'uuidv7'
import type { Broker } from '../broker/connect.ts'
import { type Database, inTransaction, type Transaction } from '../db/connect.ts'
import { MillraceError } from '../errors.ts'
import type { Scope } from '../http/caller.ts'
import { type Actor, recordAct } from './audit.ts'
import { CHANGED_SUBJECT } from './keyring.ts'
import { makeToken } from './token.ts'

/** A key as lists show it. Times are ISO 8601. */
export type KeySummary = {
  id: string
  prefix: string
  tenant: string
  name: string
  scopes: Scope[]
  sources: string[] | null
  rate: { events: number; burst: number } | null
  createdAt: string
  expiresAt: string | null
  revokedAt: string | null
  rotatedFrom: string | null
}

/**
 * @property sources   of which it may send events: as they are, or with `*` at the end; none: of all
 * @property rate      events per second on average, and at once (default: those of one second); none: no limit
 * @property expiresMs from now; none: never
 */
export type KeySpec = {
  tenant: string
  name: string
  scopes: Scope[]
  sources?: string[] | undefined
  rate?: { events: number; burst?: number | undefined } | undefined
  expiresMs?: number | undefined
}

/** `token` is the only copy: nothing else can tell it again. */
export type NewKey = KeySummary & { token: string }

/** @property broker  tells processes at once; without, they look themselves (keyring.ts says how soon) */
export type KeyDeps = { db: Database; broker: Broker | null }

const instant = (column: string) => sql.raw(`to_char(${column} at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')`)

const summary = sql`id, prefix, tenant, name, scopes, sources,
  case when rate is not null then json_build_object('events', rate, 'burst', burst) end as rate, ${instant('created_at')} as "createdAt",
  ${instant('expires_at')} as "expiresAt", ${instant('revoked_at')} as "revokedAt", rotated_from as "rotatedFrom"`

const later = (ms: number | undefined) =>
  ms === undefined ? sql`null` : sql`clock_timestamp() + ${ms}::float8 * interval '1 ms'`

/** @throws MillraceError `invalid_request` */
export async function createKey(deps: KeyDeps, by: Actor, spec: KeySpec): Promise<NewKey> {
  checkSpec(spec)
  const made = await inTransaction(deps.db, async (tx) => {
    const { token, prefix, secretHash } = makeToken()
    const { tenant, name, scopes, sources, rate } = spec
    const { rows } = await tx.execute<KeySummary>(sql`
      insert into api_keys (id, prefix, secret_hash, tenant, name, scopes, sources, rate, burst, expires_at)
      values (${uuidv7()}, ${prefix}, ${secretHash}, ${tenant}, ${name}, ${sql.param(scopes)}::text[],
              ${sql.param(sources ?? null)}::text[], ${rate?.events ?? null}, ${rate?.burst ?? rate?.events ?? null}, ${later(spec.expiresMs)})
      returning ${summary}`)
    const key = rows[0]!
    await recordAct(tx, by, { action: 'key.create', target: key.id, tenant, detail: key })
    return { ...key, token }
  })
  tellChange(deps)
  return made
}

function checkSpec({ tenant, name, scopes, sources }: KeySpec): void {
  const wrong = (what: string) => new MillraceError('invalid_request', what)
  if (!/^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$/.test(tenant))
    throw wrong('A tenant is named with 1 to 63 letters, digits, dots, dashes and underscores')
  if (name === '' || name.length > 128 || /[\x00-\x1f\x7f]/.test(name) || !name.isWellFormed())
    throw wrong('A key has a name of 1 to 128 characters')
  if (scopes.length === 0) throw wrong('A key needs a scope')
  if (sources?.length === 0) throw wrong('Name a source, or leave them out for all')
}

/**
 * @param tenant  null for all tenants
 * @param ended   also those that are revoked or have expired
 */
export async function listKeys(
  { db }: Pick<KeyDeps, 'db'>,
  { tenant, ended }: { tenant: string | null; ended: boolean },
): Promise<KeySummary[]> {
  const { rows } = await db.execute<KeySummary>(sql`
    select ${summary} from api_keys
    where (${tenant}::text is null or tenant = ${tenant})
      and (${ended} or (revoked_at is null and (expires_at is null or expires_at > clock_timestamp())))
    order by tenant, name, created_at`)
  return rows
}

/**
 * Makes a key that may do the same. The old one ends when the overlap has passed, or when it would have anyway.
 * @param which  id or prefix of the old key
 * @throws MillraceError `not_found`, also for a key of another tenant or one that has ended
 */
export async function rotateKey(
  deps: KeyDeps,
  by: Actor,
  { which, tenant, overlapMs }: { which: string; tenant: string | null; overlapMs: number },
): Promise<NewKey> {
  const made = await inTransaction(deps.db, async (tx) => {
    const { token, prefix, secretHash } = makeToken()
    const old = await lockOpen(tx, which, tenant)
    const { rows } = await tx.execute<KeySummary>(sql`
      insert into api_keys (id, prefix, secret_hash, tenant, name, scopes, sources, rate, burst, expires_at, rotated_from)
      select ${uuidv7()}, ${prefix}, ${secretHash}, tenant, name, scopes, sources, rate, burst,
             clock_timestamp() + (expires_at - created_at), id
      from api_keys where id = ${old}
      returning ${summary}`)
    await tx.execute(sql`
      update api_keys set expires_at = least(expires_at, ${later(overlapMs)}), changed_at = clock_timestamp()
      where id = ${old}`)
    const key = rows[0]!
    await recordAct(tx, by, {
      action: 'key.rotate',
      target: old,
      tenant: key.tenant,
      detail: { overlapMs, by: key.id },
    })
    return { ...key, token }
  })
  tellChange(deps)
  return made
}

/** Ends a key now. @throws MillraceError `not_found` */
export async function revokeKey(
  deps: KeyDeps,
  by: Actor,
  { which, tenant }: { which: string; tenant: string | null },
): Promise<KeySummary> {
  const key = await inTransaction(deps.db, async (tx) => {
    const id = await lockOpen(tx, which, tenant)
    const { rows } = await tx.execute<KeySummary>(sql`
      update api_keys set revoked_at = clock_timestamp(), changed_at = clock_timestamp() where id = ${id}
      returning ${summary}`)
    const key = rows[0]!
    await recordAct(tx, by, { action: 'key.revoke', target: id, tenant: key.tenant })
    return key
  })
  tellChange(deps, key.prefix)
  return key
}

async function lockOpen(tx: Transaction, which: string, tenant: string | null): Promise<string> {
  const { rows } = await tx.execute<{ id: string }>(sql`
    select id from api_keys
    where (id::text = ${which} or prefix = ${which}) and (${tenant}::text is null or tenant = ${tenant})
      and revoked_at is null and (expires_at is null or expires_at > clock_timestamp())
    for update`)
  if (rows[0] !== undefined) return rows[0].id
  throw new MillraceError('not_found', `There is no key ${which}, or it has ended: \`millrace keys list\` shows them`)
}

/** @param revoked  prefix of a key that ends even where Postgres cannot be asked */
function tellChange({ broker }: KeyDeps, revoked = ''): void {
  if (broker?.connected()) broker.nc.publish(CHANGED_SUBJECT, revoked)
}
