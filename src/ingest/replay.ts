/**
 * Replays and discards dead letters, a few hundred at a time, each lot in one transaction:
 * 1. lock open letters; those that someone else is handling are passed over
 * 2. decide for each: patch it, check it, see whether its event is stored meanwhile
 * 3. publish through the stream under the same identity, and wait until JetStream has it on disk
 * 4. complete the jobs and write the audit rows; COMMIT
 *
 * A crash between 3 and 4 leaves the letters open and the events on the stream. Replaying again adds the same identities
 * to the stream, of which the table takes one each: harmless. The order cannot be turned round, for then a crash would
 * lose the events. Two replays at once take different letters, because of the locks.
 */

import jsonPatch, { type Operation } from 'fast-json-patch'
import type { PgBoss } from 'pg-boss'
import { type Actor, recordAct } from '../access/audit.ts'
import type { Config } from '../config.ts'
import { type Database, inTransaction, type Transaction } from '../db/connect.ts'
import { DEAD_LETTERS, within } from '../db/jobs.ts'
import { deadLetterAudit } from '../db/schema.ts'
import { MillraceError } from '../errors.ts'
import { OPERATOR_TENANT } from '../http/caller.ts'
import type { Telemetry } from '../telemetry/telemetry.ts'
import { type RequestTrace, startReplay } from '../telemetry/tracing.ts'
import { findStored, type LetterFilter, type LockedLetter, lockLetters, newestAudit } from './dead-letter-search.ts'
import type { DeadLetter } from './dead-letters.ts'
import { identityOf, type OutgoingEvent } from './event.ts'
import { rehearse } from './insert.ts'
import { DEPTH_MAX, deeperThan, findUnstorable, type Json, parseJson } from './json.ts'
import { BATCH_MESSAGES_MAX, type Publisher } from './publish.ts'
import type { SchemaRegistry } from './schemas.ts'
import { validateEvent } from './validate.ts'

/** A checked JSON Patch. Its text is parsed anew for each letter, because applying it puts its values into the document. */
export type Patch = { text: string }

export type ReplayDeps = {
  db: Database
  jobs: PgBoss
  publisher: Publisher
  telemetry: Telemetry
  schemas: SchemaRegistry
  config: Pick<Config, 'EVENT_BYTES_MAX'>
}

type Handling = {
  filter: LetterFilter
  by: Actor
  /** For whom they act, by their own account. */
  onBehalfOf?: string | undefined
  /** Only say what would happen. */
  dryRun: boolean
  /** Handle so many at most. */
  limit?: number | undefined
}

/** What became, or in a dry run would become, of one letter. */
export type LetterOutcome = {
  deadLetterId: string
  tenant: string
  source: string
  id: string
  type: string
} & (
  | { outcome: 'replayed' /** After the patch; only in a dry run. */; event?: unknown }
  /** The event was stored meanwhile, so that publishing would change nothing; the letter is closed. */
  | { outcome: 'stored' }
  | { outcome: 'discarded' }
  /** Stays open. */
  | { outcome: 'refused'; reason: string }
)

/** One transaction must end well within Postgres's patience, and its payloads fit in memory. */
const LOT = 100
/** A whole event as the value of an operation in the list. */
const PATCH_DEPTH_MAX = DEPTH_MAX + 2
const PUBLISH_BYTES_MAX = 1024 * 1024

/** @throws MillraceError `invalid_request` where `text` is no JSON Patch (RFC 6902) */
export function readPatch(text: string): Patch {
  const { value, exact } = parseJson(text)
  const refuse = (why: string) => new MillraceError('invalid_request', `Not a JSON Patch (RFC 6902): ${why}`)
  if (!Array.isArray(value) || value.length === 0) throw refuse('it is a list of operations, and not an empty one')
  if (deeperThan(value, PATCH_DEPTH_MAX)) throw refuse(`it nests deeper than ${PATCH_DEPTH_MAX} levels`)
  const unstorable = findUnstorable(exact ?? value)
  if (unstorable !== undefined) throw refuse(`${unstorable.pointer} ${unstorable.message}`)
  const problem = jsonPatch.validate(value)
  if (problem !== undefined) throw refuse(firstLine(problem.message))
  return { text }
}

/**
 * Publishes the matching letters again, after `patch` where one is given. Yields lot by lot, after each COMMIT.
 * @throws MillraceError `unavailable` or `overloaded` where JetStream is away; what was not yielded is still open
 */
export async function* replayLetters(
  deps: ReplayDeps,
  { patch, request, ...handling }: Handling & { patch?: Patch | undefined; request?: RequestTrace | undefined },
  signal?: AbortSignal,
): AsyncGenerator<LetterOutcome[]> {
  yield* handleInLots(deps.db, handling, signal, async (tx, locked) => {
    const planned = locked.map((each) => ({ ...each, plan: planLetter(deps, each.letter, patch) }))
    const events = planned.flatMap(({ plan }) => plan.event ?? [])
    const stored = await findStored(tx, events)
    const ready = planned.filter(({ plan }) => plan.event !== undefined && !stored.has(identityOf(plan.event)))
    const refused = handling.dryRun ? await rehearseAll(tx, ready) : new Map<string, string>()
    if (!handling.dryRun) await publishAll(deps, ready, request)
    const outcomes = planned.map(({ deadLetterId, letter, plan }): LetterOutcome => {
      const tenant = letter.tenant ?? OPERATOR_TENANT
      const about = { deadLetterId, tenant, source: letter.source, id: letter.id, type: letter.type }
      const reason = plan.reason ?? refused.get(deadLetterId)
      if (reason !== undefined) return { ...about, outcome: 'refused', reason }
      if (stored.has(identityOf(plan.event!))) return { ...about, outcome: 'stored' }
      return { ...about, outcome: 'replayed', ...(handling.dryRun ? { event: JSON.parse(plan.event!.payload) } : {}) }
    })
    if (!handling.dryRun) {
      const closed = outcomes.filter(({ outcome }) => outcome !== 'refused')
      await close(
        deps.jobs,
        tx,
        closed,
        handling,
        'replayed',
        patch === undefined ? {} : { patch: exactJson(patch.text) },
      )
    }
    return outcomes
  })
}

/** Closes the matching letters without publishing them; their jobs and audit rows stay for a year. */
export async function* discardLetters(
  { db, jobs }: Pick<ReplayDeps, 'db' | 'jobs'>,
  { reason, ...handling }: Handling & { reason?: string | undefined },
  signal?: AbortSignal,
): AsyncGenerator<LetterOutcome[]> {
  yield* handleInLots(db, handling, signal, async (tx, locked) => {
    const outcomes = locked.map(
      ({ deadLetterId, letter: { tenant = OPERATOR_TENANT, source, id, type } }): LetterOutcome => {
        return { deadLetterId, tenant, source, id, type, outcome: 'discarded' }
      },
    )
    if (!handling.dryRun) await close(jobs, tx, outcomes, handling, 'discarded', reason === undefined ? {} : { reason })
    return outcomes
  })
}

async function* handleInLots(
  db: Database,
  { filter, limit = Number.POSITIVE_INFINITY }: Handling,
  signal: AbortSignal | undefined,
  handle: (tx: Transaction, locked: LockedLetter[]) => Promise<LetterOutcome[]>,
): AsyncGenerator<LetterOutcome[]> {
  const upTo = await newestAudit(db)
  let left = limit
  for (let after = 0; left > 0 && !signal?.aborted; ) {
    const lot = await inTransaction(db, async (tx) => {
      const locked = await lockLetters(tx, filter, { after, upTo, limit: Math.min(LOT, left) })
      return { last: locked.at(-1)?.seq, outcomes: locked.length === 0 ? [] : await handle(tx, locked) }
    })
    if (lot.last === undefined) return
    after = lot.last
    left -= lot.outcomes.length
    yield lot.outcomes
  }
}

type Plan = { event: OutgoingEvent; reason?: undefined } | { event?: undefined; reason: string }
type Planned = LockedLetter & { plan: Plan }

const refuse = (reason: string): Plan => ({ reason })

function planLetter(deps: ReplayDeps, letter: DeadLetter, patch: Patch | undefined): Plan {
  if (letter.identityLost) return refuse('no row can hold its source and id; discard it')
  const tenant = letter.tenant ?? OPERATOR_TENANT
  const identity = { tenant, id: letter.id, source: letter.source }
  const { traceparent } = letter
  const rest = { tenant, receivedMs: Date.now(), traceparent, commitReply: '', seq: 0, place: 0 }
  if (patch === undefined) {
    if (letter.code === 'unreadable' || letter.payload === undefined)
      return refuse(`it would fail again without a patch: ${letter.error}`)
    return { event: { ...identity, ...rest, type: letter.type, payload: letter.payload } }
  }
  const document = patched(letter, patch)
  if ('refused' in document) return refuse(document.refused)
  if (!isObject(document.value) || typeof document.value.id !== 'string')
    return refuse('the patch must give it an id: another one would be made at each replay')
  const stamp = { tenant, receivedMs: rest.receivedMs, commitReply: '', eventBytesMax: deps.config.EVENT_BYTES_MAX }
  const admitted = validateEvent(deps, document, stamp)
  if ('status' in admitted) return refuse(`not an event after the patch: ${admitted.pointer} ${admitted.message}`)
  if (letter.id !== '' && identityOf(admitted.event) !== identityOf(identity))
    return refuse('the patch changes source or id, which name the event for ever')
  return { event: { ...admitted.event, ...rest } }
}

/** A letter that cannot be read is patched as the document `null`, so that a patch can replace it as a whole. */
function patched(letter: DeadLetter, patch: Patch): Json | { refused: string } {
  try {
    const operations = exactJson(patch.text) as Operation[]
    const { newDocument } = jsonPatch.applyPatch(readDocument(letter), operations, true, true)
    const { id, source } = letter
    // Where only the message's headers name the event.
    return parseJson(JSON.stringify(isObject(newDocument) && id !== '' ? { id, source, ...newDocument } : newDocument))
  } catch (error) {
    return { refused: `the patch does not fit: ${firstLine((error as Error).message)}` }
  }
}

/** With every number as it was written, so that a patch changes what it names and nothing else. */
function exactJson(text: string): unknown {
  const { value, exact } = parseJson(text)
  return exact ?? value
}

const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value)

function readDocument({ payload = '' }: DeadLetter): unknown {
  try {
    return exactJson(payload)
  } catch {
    return null
  }
}

const firstLine = (text: string) => text.split('\n', 1)[0]!

/** Tries a lot as a whole, and its halves when it is refused: a lot that is well patched costs one statement. */
async function rehearseAll(
  tx: Transaction,
  ready: Planned[],
  refused = new Map<string, string>(),
): Promise<Map<string, string>> {
  if (ready.length === 0) return refused
  const refusal = await rehearse(
    tx,
    ready.map(({ plan }) => plan.event!),
  )
  if (refusal === undefined) return refused
  if (ready.length === 1)
    return refused.set(ready[0]!.deadLetterId, `Postgres refuses it: ${refusal.sqlstate} ${refusal.error}`)
  await rehearseAll(tx, ready.slice(0, ready.length >> 1), refused)
  return rehearseAll(tx, ready.slice(ready.length >> 1), refused)
}

/** Publishes in parts of a size that suits the stream; returns when all are on disk. */
async function publishAll(
  { publisher, telemetry }: ReplayDeps,
  ready: Planned[],
  request: RequestTrace | undefined,
): Promise<void> {
  const sends = ready.map(({ deadLetterId, letter, plan }) => {
    const send = startReplay(telemetry.tracing, { deadLetterId, traceparent: letter.traceparent }, request)
    return { send, event: { ...plan.event!, traceparent: send.traceparent() } }
  })
  try {
    for (const part of parts(sends.map(({ event }) => event))) await publisher.publish(part)
    for (const { send } of sends) send.end()
  } catch (error) {
    for (const { send } of sends) send.end(error)
    throw error
  }
}

function parts(events: OutgoingEvent[]): OutgoingEvent[][] {
  const out: OutgoingEvent[][] = []
  let bytes = 0
  for (const event of events) {
    bytes += event.payload.length
    if (out.length === 0 || bytes > PUBLISH_BYTES_MAX || out.at(-1)!.length === BATCH_MESSAGES_MAX) {
      out.push([])
      bytes = event.payload.length
    }
    out.at(-1)!.push(event)
  }
  return out
}

async function close(
  jobs: PgBoss,
  tx: Transaction,
  letters: LetterOutcome[],
  { by, onBehalfOf }: Handling,
  action: 'replayed' | 'discarded',
  detail: object,
): Promise<void> {
  if (letters.length === 0) return
  const ids = letters.map(({ deadLetterId }) => deadLetterId)
  if (action === 'discarded') await jobs.cancel(DEAD_LETTERS, ids, { db: within(tx) })
  else await jobs.complete(DEAD_LETTERS, ids, null, { db: within(tx), includeQueued: true })
  const actor = onBehalfOf === undefined ? by.actor : `${onBehalfOf} (${by.actor})`
  const rows = letters.map(({ deadLetterId, tenant, source, id, outcome }) => ({
    deadLetterId,
    tenant,
    source,
    eventId: id,
    action,
    actor,
    detail: outcome === 'stored' ? { ...detail, stored: true } : detail,
  }))
  await tx.insert(deadLetterAudit).values(rows)
  const act = action === 'replayed' ? 'dead_letter.replay' : 'dead_letter.discard'
  for (const tenant of new Set(letters.map((letter) => letter.tenant))) {
    const theirs = letters.filter((letter) => letter.tenant === tenant).map(({ deadLetterId }) => deadLetterId)
    await recordAct(tx, by, { action: act, tenant, detail: { ...detail, onBehalfOf, letters: theirs } })
  }
}
