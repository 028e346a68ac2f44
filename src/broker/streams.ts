/** The stream that holds events until they are committed, and the one durable consumer that all workers share. */

import { AckPolicy, DeliverPolicy, DiscardPolicy, ReplayPolicy, RetentionPolicy, StorageType } from '@nats-io/jetstream'
import type { Config } from '../config.ts'
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

/** Creates or updates stream and consumer; what guarantees something is always written out. */
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
    // Identity lives in Postgres. A duplicate Nats-Msg-Id would reject a whole atomic batch, so none is sent.
    duplicate_window: 0,
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
  const exists = await jsm.streams.info(STREAM).then(
    () => true,
    (error: { code?: number; api_error?: { err_code?: number }; message: string }) => {
      if (/stream not found/.test(error.message)) return false
      throw error
    },
  )
  if (exists) await jsm.streams.update(STREAM, stream)
  else await jsm.streams.add({ name: STREAM, ...stream })
  await jsm.consumers.add(STREAM, { durable_name: CONSUMER, ...consumer })
}
