/** The stream that holds events until they are committed, and the one durable consumer that all workers share. */

import { isDeepStrictEqual } from 'node:util'
import {
  AckPolicy,
  type ConsumerConfig,
  DeliverPolicy,
  DiscardPolicy,
  JetStreamApiError,
  type JetStreamManager,
  ReplayPolicy,
  RetentionPolicy,
  StorageType,
  type StreamConfig,
} from '@nats-io/jetstream'
import { PermissionViolationError } from 'nats'
import type { Config } from '../config.ts'
import { MillraceError } from '../errors.ts'
import type { Broker } from './connect.ts'

export const STREAM = 'EVENTS'
export const CONSUMER = 'ingest_workers'

export const SUBJECT_PREFIX = 'events.'

/** `events.<type>`; what NATS does not allow in a subject becomes `_`. The true type travels in the message. */
export function subjectOf(type: string): string {
  const known = subjects.get(type)
  if (known !== undefined) return known
  const tokens = type.split('.').map((token) => token.replace(/[\s*>\x00-\x1f\x7f]/g, '_') || '_')
  const subject = `${SUBJECT_PREFIX}${tokens.join('.')}`
  if (subjects.size >= SUBJECTS_MAX) subjects.clear()
  subjects.set(type, subject)
  return subject
}

/** Types are few; a client that makes up new ones must not fill the memory. */
const SUBJECTS_MAX = 1_000
const subjects = new Map<string, string>()

/**
 * All workers of all processes share the consumer, so the server's bound is for a fleet; each worker keeps to
 * MAX_ACK_PENDING by what it pulls.
 */
const WORKERS_MAX = 256

/** Creates stream and consumer, or brings them to this; what guarantees something is always written out. */
export async function ensureStream({ jsm }: Broker, config: Config): Promise<void> {
  const stream = {
    subjects: ['events.>'],
    storage: StorageType.File,
    num_replicas: config.NATS_REPLICAS,
    // An event leaves the stream only after it is acknowledged (ingest/trim.ts): no age, and a full stream refuses.
    retention: RetentionPolicy.Limits,
    discard: DiscardPolicy.New,
    max_bytes: config.STREAM_BYTES_MAX,
    max_age: 0,
    max_msgs: -1,
    // Identity lives in Postgres. A duplicate Nats-Msg-Id would reject a whole atomic batch, so none is sent, and the
    // server's window for them has nothing to look at.
    allow_atomic: true,
    allow_direct: true,
  }
  const consumer = {
    ack_policy: AckPolicy.Explicit,
    deliver_policy: DeliverPolicy.All,
    replay_policy: ReplayPolicy.Instant,
    ack_wait: config.ACK_WAIT_MS * 1_000_000,
    // The server would silently stop delivering at its limit; the worker counts, and writes a dead letter instead.
    max_deliver: -1,
    max_ack_pending: config.MAX_ACK_PENDING * WORKERS_MAX,
    max_waiting: 4 * WORKERS_MAX,
  }
  try {
    await make(jsm, stream, consumer)
  } catch (error) {
    if (!forbidden(error)) throw error
    throw new MillraceError(
      'unavailable',
      `The stream ${STREAM} is missing or not as these variables want it, and this user may not change it: run \`millrace migrate\` as one that may`,
      { cause: error },
    )
  }
}

async function make(
  jsm: JetStreamManager,
  stream: Partial<StreamConfig> & { subjects: string[] },
  consumer: Partial<ConsumerConfig>,
): Promise<void> {
  const found = await jsm.streams.info(STREAM).catch(absent)
  if (found === undefined) await jsm.streams.add({ name: STREAM, ...stream })
  else if (differs(found.config, stream)) await jsm.streams.update(STREAM, stream)
  const reader = found && (await jsm.consumers.info(STREAM, CONSUMER).catch(absent))
  if (reader === undefined || differs(reader.config, consumer))
    await jsm.consumers.add(STREAM, { durable_name: CONSUMER, ...consumer })
}

/** err_code of JetStream's answers: no such stream, no such consumer; too few servers yet for the replicas. */
const NO_STREAM = 10_059
const NO_CONSUMER = 10_014
const NO_SUITABLE_PEERS = 10_005

function absent(error: unknown): undefined {
  if (error instanceof JetStreamApiError && [NO_STREAM, NO_CONSUMER].includes(error.code)) return undefined
  throw error
}

function forbidden(thrown: unknown): boolean {
  for (let error = thrown; error instanceof Error; error = error.cause)
    if (error instanceof PermissionViolationError) return true
  return false
}

/** Whether something is not as wanted; a process whose user may not change the stream then need not. */
const differs = (is: object, wanted: object) =>
  Object.entries(wanted).some(([name, value]) => !isDeepStrictEqual((is as Record<string, unknown>)[name], value))

/** Whether JetStream does not answer yet: it starts, elects a leader, or waits for its cluster. */
export function isJetStreamAway(error: unknown): boolean {
  if (error instanceof JetStreamApiError) return error.status === 503 || error.code === NO_SUITABLE_PEERS
  if (!(error instanceof Error)) return false
  return /^(TimeoutError|NoResponders(Error)?|ClosedConnectionError|RequestError)$/.test(error.name)
}
