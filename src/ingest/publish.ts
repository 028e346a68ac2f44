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
import type { Config } from '../config.ts'
import { MillraceError } from '../errors.ts'
import type { Telemetry } from '../telemetry/telemetry.ts'
import type { OutgoingEvent } from './event.ts'
import { messageOf, type OutgoingMessage } from './parcel.ts'

/** The server's own limit (ADR-50). */
export const BATCH_MESSAGES_MAX = 1_000

/** A batch must reach the server within its 10 s of patience, and not swell the connection's buffers. */
const BATCH_BYTES_MAX = 4 * 1024 * 1024

/** One more than the server stores at a time, so that it need not wait for us to encode; more only make batches smaller (measured). */
const FLIGHTS_MAX = 2

/** Of the newest batch in the mean number of events per message. */
const MEAN_WEIGHT = 0.05

type Entry = {
  messages: OutgoingMessage[]
  bytes: number
  resolve: (firstSeq: number) => void
  reject: (error: unknown) => void
}

export type Publisher = {
  /**
   * Stores the parcels of one request together.
   * @param parcels at most BATCH_MESSAGES_MAX; their sequences follow one another
   * @returns the stream sequence of the first, once all are on disk
   * @throws MillraceError `unavailable` or `overloaded`; after a timeout they may be stored all the same, so a client
   *   retries with the same ids
   */
  publish: (parcels: OutgoingEvent[][]) => Promise<number>
  /** Whether so much is waiting that a reader should slow down, before `publish` has to refuse. */
  crowded: () => boolean
  /** How many events a message of late held, on average. */
  eventsPerMessage: () => number
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
  let eventsPerMessage = 1
  let scheduled = false
  let idle: PromiseWithResolvers<void> | undefined

  function publish(parcels: OutgoingEvent[][]): Promise<number> {
    if (!broker.connected())
      return Promise.reject(new MillraceError('unavailable', 'JetStream is away; retry with the same event ids'))
    if (pendingBytes > config.PUBLISH_PENDING_BYTES_MAX)
      return Promise.reject(new MillraceError('overloaded', 'Too much is waiting for JetStream; retry later'))
    const messages = parcels.map(messageOf)
    let bytes = 0
    for (const { payload } of messages) bytes += payload.length
    pendingBytes += bytes
    return new Promise<number>((resolve, reject) => {
      waiting.push({ messages, bytes, resolve, reject })
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
      const messages = entries.length === 1 ? entries[0]!.messages : entries.flatMap((entry) => entry.messages)
      const startedAt = performance.now()
      let seq = await storeBatch(broker, messages, config.PUBLISH_TIMEOUT_MS)
      const events = messages.reduce((sum, message) => sum + message.events, 0)
      eventsPerMessage += MEAN_WEIGHT * (events / messages.length - eventsPerMessage)
      metrics.batchPublished(events, (performance.now() - startedAt) / 1_000)
      for (const entry of entries) {
        entry.resolve(seq)
        seq += entry.messages.length
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

  return {
    publish,
    crowded: () => pendingBytes > config.PUBLISH_PENDING_BYTES_MAX / 2,
    eventsPerMessage: () => eventsPerMessage,
    drain,
  }
}

/** Takes whole requests, in order, up to the limits of a batch; always at least one. */
function nextBatch(waiting: Entry[]): Entry[] {
  let messages = 0
  let bytes = 0
  let count = 0
  for (const entry of waiting) {
    messages += entry.messages.length
    bytes += entry.bytes
    if (count > 0 && (messages > BATCH_MESSAGES_MAX || bytes > BATCH_BYTES_MAX)) break
    count++
  }
  return waiting.splice(0, count)
}

/**
 * Stores messages as one atomic batch, at most BATCH_MESSAGES_MAX.
 * @returns the stream sequence of the first, once all are on disk
 * @throws MillraceError `unavailable`
 */
export async function storeBatch({ nc }: Broker, messages: OutgoingMessage[], timeoutMs: number): Promise<number> {
  let answer: Msg
  try {
    answer = await sendBatch(nc, messages, timeoutMs)
  } catch (error) {
    throw publishFailure(error, timeoutMs)
  }
  const ack = answer.json<{ seq?: number; error?: { err_code: number; description: string } }>()
  if (ack.error || ack.seq === undefined)
    throw new MillraceError('unavailable', `JetStream refused the batch: ${ack.error?.description ?? 'no sequence'}`, {
      details: { broker_code: ack.error?.err_code },
    })
  return ack.seq - (messages.length - 1)
}

/** The commit comes with the last message, and the server answers it alone. */
function sendBatch(nc: NatsConnection, messages: OutgoingMessage[], timeoutMs: number): Promise<Msg> {
  const last = messages.length - 1
  const batchId = nuid.next()
  const partOf = (n: number) => `\r\nNats-Batch-Id: ${batchId}\r\nNats-Batch-Sequence: ${n}`
  for (let i = 0; i < last; i++) {
    const { subject, headerLines, payload } = messages[i]!
    nc.publish(subject, payload, { headers: headersFrom(headerLines + partOf(i + 1)) })
  }
  const { subject, headerLines, payload } = messages[last]!
  const commit = last === 0 ? '' : `${partOf(last + 1)}\r\nNats-Batch-Commit: 1`
  return nc.request(subject, payload, { headers: headersFrom(headerLines + commit), timeout: timeoutMs })
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
