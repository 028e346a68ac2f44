/**
 * The keys as a process holds them, so that no request asks the database. All are read at the start; what changed is read
 * again as soon as NATS tells of it, and every REREAD_MS for when that was not heard: that bounds how long a revoked key
 * goes on, and how soon a new one works. While Postgres is away the keys known go on: events must, and a key that is
 * revoked meanwhile by another way to Postgres ends by what NATS tells.
 */

import { timingSafeEqual } from 'node:crypto'
import { sql } from 'drizzle-orm'
import type { Broker } from '../broker/connect.ts'
import { follow } from '../broker/follow.ts'
import type { Config } from '../config.ts'
import type { Database } from '../db/connect.ts'
import { MillraceError } from '../errors.ts'
import { type Caller, OPERATOR_TENANT, SCOPES, type Scope } from '../http/caller.ts'
import { createBucket } from './rate.ts'
import { hashSecret, readAuthorization } from './token.ts'

/** Carries the prefix of a key that was revoked, or nothing. */
export const CHANGED_SUBJECT = 'millrace.keys.changed'
const REREAD_MS = 2_000
/** A row is stamped before it is committed; a transaction lives for 10 s at most (connect.ts), and clocks are Postgres's. */
const COMMIT_MS_MAX = 60_000

export type Keyring = {
  /**
   * Who presents this Authorization header.
   * @throws MillraceError `unauthenticated`
   */
  identify: (authorization: string) => Caller
  close: () => void
}

type Row = {
  id: string
  prefix: string
  secret_hash: string
  tenant: string
  name: string
  scopes: Scope[]
  sources: string[] | null
  rate: number | null
  burst: number | null
  /** When it ends, in ms since 1970; null: never. */
  ends_ms: number | null
  changed_ms: number
}
type Entry = { hash: Buffer; endsMs: number; rate: number | null; burst: number | null; caller: Caller }

/** Whoever comes where API_KEYS is off. */
export const ANYONE: Caller = {
  keyId: null,
  actor: 'anyone',
  tenant: OPERATOR_TENANT,
  scopes: SCOPES,
  allowsSource: null,
  spend: null,
}

/**
 * @returns null where API_KEYS is off
 * @throws where the first reading fails: a process that knows no key would refuse everyone
 */
export async function openKeyring(
  { db, broker, log }: { db: Database; broker: Broker; log: { warn: (facts: object, message: string) => void } },
  { API_KEYS }: Pick<Config, 'API_KEYS'>,
): Promise<Keyring | null> {
  if (API_KEYS === 'off') return null
  const entries = new Map<string, Entry>()
  let seenMs = 0
  const followed = follow(
    { broker, log },
    { subject: CHANGED_SUBJECT, everyMs: REREAD_MS, complaint: 'cannot read the API keys; keeping those known' },
    async () => {
      for (const row of await readChanged(db, seenMs - COMMIT_MS_MAX)) {
        entries.set(row.prefix, entryOf(row, entries.get(row.prefix)))
        seenMs = Math.max(seenMs, row.changed_ms)
      }
    },
    (prefix) => entries.delete(prefix),
  )
  try {
    await followed.read()
  } catch (error) {
    followed.close()
    throw error
  }
  return {
    identify: (authorization) => identify(entries, authorization, Date.now()),
    close: followed.close,
  }
}

const HASH_CHARS = 64
/** Of no secret: what an unknown prefix is compared with, so that it takes as long as a wrong secret. */
const NO_HASH = Buffer.alloc(HASH_CHARS)
/** Filled and compared within one turn. */
const presented = Buffer.alloc(HASH_CHARS)

const WHERE_KEYS_GO = 'send a key as `Authorization: Bearer mr_...`; `millrace keys create` makes one'

function identify(entries: Map<string, Entry>, authorization: string, nowMs: number): Caller {
  const token = readAuthorization(authorization)
  if (token === undefined)
    throw new MillraceError(
      'unauthenticated',
      authorization === ''
        ? `This needs an API key: ${WHERE_KEYS_GO}`
        : `That is no API key of Millrace: ${WHERE_KEYS_GO}`,
    )
  const entry = entries.get(token.prefix)
  presented.write(hashSecret(token.secret), 'latin1')
  const right = timingSafeEqual(presented, entry?.hash ?? NO_HASH)
  if (entry === undefined || !right)
    throw new MillraceError('unauthenticated', 'This API key is not known: it is wrong, or was revoked')
  // Only who has the secret is told more.
  if (nowMs >= entry.endsMs)
    throw new MillraceError('unauthenticated', 'This API key was revoked or has expired: ask for a new one')
  return entry.caller
}

async function readChanged(db: Database, sinceMs: number): Promise<Row[]> {
  const { rows } = await db.execute<Row>(sql`
    select id, prefix, secret_hash, tenant, name, scopes, sources, rate, burst,
           extract(epoch from least(expires_at, revoked_at))::float8 * 1000 as ends_ms,
           extract(epoch from changed_at)::float8 * 1000 as changed_ms
    from api_keys where changed_at > to_timestamp(${sinceMs}::float8 / 1000)`)
  return rows
}

/** @param known  whose bucket stays as full as it is, unless its size changed */
function entryOf(row: Row, known: Entry | undefined): Entry {
  const { id, prefix, tenant, name, scopes, sources, rate, burst } = row
  const spend =
    rate === null || burst === null
      ? null
      : known?.rate === rate && known.burst === burst
        ? known.caller.spend
        : createBucket({ rate, burst })
  return {
    hash: Buffer.from(row.secret_hash, 'latin1'),
    endsMs: row.ends_ms ?? Number.POSITIVE_INFINITY,
    rate,
    burst,
    caller: {
      keyId: id,
      actor: `key ${name} ${prefix}`,
      tenant,
      scopes,
      allowsSource: sources === null ? null : sourceMatcher(sources),
      spend,
    },
  }
}

/** @param patterns  sources as they are, or their beginning and `*` */
function sourceMatcher(patterns: string[]): (source: string) => boolean {
  const whole = new Set(patterns.filter((pattern) => !pattern.endsWith('*')))
  const starts = patterns.filter((pattern) => pattern.endsWith('*')).map((pattern) => pattern.slice(0, -1))
  return (source) => whole.has(source) || starts.some((start) => source.startsWith(start))
}
