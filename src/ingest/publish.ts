/**
 * Group commit into JetStream. Concurrent requests share atomic batches: what arrives while the batches in flight are
 * out is the next one, without a timer. A batch is stored whole or not at all, and acknowledged after its fsync.
 *
 * Protocol: atomic batch publish, NATS ADR-50. Messages carry Nats-Batch-Id and Nats-Batch-Sequence; the last one also
 * Nats-Batch-Commit and a reply subject, on which the server answers once for all.
 */

import { type Msg, type NatsConnection, nuid, RequestError, TimeoutError } from 'nats'
import type { Broker } from '../broker/connect.ts'
import { headersFrom } from '../broker/delivery.ts'
import { subjectOf } from '../broker/streams.ts'
import type { Config } from '../config.ts'
import { MillraceError } from '../errors.ts'
import type { Telemetry } from '../telemetry/telemetry.ts'
import { headerLines, type OutgoingEvent } from './event.ts'

/** The server's own limit (ADR-50). */
export const BATCH_MESSAGES_MAX = 1_000

/** A batch must reach the server within its 10 s of patience, and not swell the connection's buffers. */
const BATCH_BYTES_MAX = 4 * 1024 * 1024

/** One more than the server stores at a time, so that it need not wait for us to encode; more only make batches smaller (measured). */
const FLIGHTS_MAX = 2

type Entry = {
  events: OutgoingEvent[]
  bytes: number
  resolve: (firstSeq: number) => void
  reject: (error: unknown) => void
}

export type Publisher = {
  /**
   * Stores the events of one request together.
   * @param events at most BATCH_MESSAGES_MAX; their sequences follow one another
   * @returns the stream sequence of the first, once all are on disk
   * @throws MillraceError `unavailable` or `overloaded`; after a timeout they may be stored all the same, so a client
   *   retries with the same ids
   */
  publish: (events: OutgoingEvent[]) => Promise<number>
  /** Whether so much is waiting that a reader should slow down, before `publish` has to refuse. */
  crowded: () => boolean
  /** Resolves when nothing is waiting or in flight. */
  drain: () => Promise<void>
}

export function createPublisher(
  { broker, telemetry: { metrics } }: { broker: Broker; telemetry: Telemetry },
  config: Pick<Config, 'PUBLISH_PENDING_BYTES_MAX' | 'PUBLISH_TIMEOUT_MS'>,
): Publisher {
  const waiting: Entry[] = []
  let pendingBytes = 0
  let flights = 0
  let scheduled = false
  let idle: PromiseWithResolvers<void> | undefined

  function publish(events: OutgoingEvent[]): Promise<number> {
    if (!broker.connected())
      return Promise.reject(new MillraceError('unavailable', 'JetStream is away; retry with the same event ids'))
    if (pendingBytes > config.PUBLISH_PENDING_BYTES_MAX)
      return Promise.reject(new MillraceError('overloaded', 'Too much is waiting for JetStream; retry later'))
    let bytes = 0
    for (const event of events) bytes += event.payload.length
    pendingBytes += bytes
    return new Promise<number>((resolve, reject) => {
      waiting.push({ events, bytes, resolve, reject })
      schedule()
    })
  }

  /** After the requests that the event loop holds ready now, so that they share a batch. */
  function schedule(): void {
    if (scheduled || flights >= FLIGHTS_MAX || waiting.length === 0) return
    scheduled = true
    setImmediate(() => {
      scheduled = false
      while (flights < FLIGHTS_MAX && waiting.length > 0) void fly(nextBatch(waiting))
    })
  }

  async function fly(entries: Entry[]): Promise<void> {
    flights++
    try {
      const events = entries.length === 1 ? entries[0]!.events : entries.flatMap((entry) => entry.events)
      const startedAt = performance.now()
      let seq = await storeBatch(broker, events, config.PUBLISH_TIMEOUT_MS)
      metrics.batchPublished(events.length, (performance.now() - startedAt) / 1_000)
      for (const entry of entries) {
        entry.resolve(seq)
        seq += entry.events.length
      }
    } catch (error) {
      metrics.publishFailed(error instanceof MillraceError ? error.code : 'internal')
      for (const entry of entries) entry.reject(error)
    } finally {
      for (const entry of entries) pendingBytes -= entry.bytes
      flights--
      schedule()
      if (flights === 0 && waiting.length === 0) idle?.resolve()
    }
  }

  async function drain(): Promise<void> {
    if (flights === 0 && waiting.length === 0) return
    idle ??= Promise.withResolvers<void>()
    await idle.promise
  }

  return { publish, crowded: () => pendingBytes > config.PUBLISH_PENDING_BYTES_MAX / 2, drain }
}

/** Takes whole requests, in order, up to the limits of a batch; always at least one. */
function nextBatch(waiting: Entry[]): Entry[] {
  let messages = 0
  let bytes = 0
  let count = 0
  for (const entry of waiting) {
    messages += entry.events.length
    bytes += entry.bytes
    if (count > 0 && (messages > BATCH_MESSAGES_MAX || bytes > BATCH_BYTES_MAX)) break
    count++
  }
  return waiting.splice(0, count)
}

/** Stores one atomic batch; returns the sequence of its first message. */
async function storeBatch({ nc }: Broker, events: OutgoingEvent[], timeoutMs: number): Promise<number> {
  let answer: Msg
  try {
    answer = await sendBatch(nc, events, timeoutMs)
  } catch (error) {
    throw publishFailure(error, timeoutMs)
  }
  const ack = answer.json<{ seq?: number; error?: { err_code: number; description: string } }>()
  if (ack.error || ack.seq === undefined)
    throw new MillraceError('unavailable', `JetStream refused the batch: ${ack.error?.description ?? 'no sequence'}`, {
      details: { broker_code: ack.error?.err_code },
    })
  return ack.seq - (events.length - 1)
}

/** The commit comes with the last message, and the server answers it alone. */
async function sendBatch(nc: NatsConnection, events: OutgoingEvent[], timeoutMs: number): Promise<Msg> {
  const last = events.length - 1
  const batchId = nuid.next()
  const partOf = (n: number) => `\r\nNats-Batch-Id: ${batchId}\r\nNats-Batch-Sequence: ${n}`
  const final = events[last]!
  // All of them before any is sent: an event that cannot be written must not leave half a batch behind.
  const lines = events.map(headerLines)
  for (let i = 0; i < last; i++) {
    const event = events[i]!
    nc.publish(subjectOf(event.type), Buffer.from(event.payload), { headers: headersFrom(lines[i]! + partOf(i + 1)) })
  }
  const commit = last === 0 ? '' : `${partOf(last + 1)}\r\nNats-Batch-Commit: 1`
  return nc.request(subjectOf(final.type), Buffer.from(final.payload), {
    headers: headersFrom(lines[last]! + commit),
    timeout: timeoutMs,
  })
}

function publishFailure(error: unknown, timeoutMs: number): MillraceError {
  if (error instanceof MillraceError) return error
  if (error instanceof RequestError && error.isNoResponders())
    return new MillraceError('unavailable', 'JetStream is away; retry with the same event ids', { cause: error })
  if (error instanceof TimeoutError)
    return new MillraceError(
      'unavailable',
      `JetStream did not confirm within ${timeoutMs} ms; the events may be stored, so retry with the same event ids`,
      { cause: error },
    )
  return new MillraceError('unavailable', 'The connection to NATS broke; retry with the same event ids', {
    cause: error,
  })
}
