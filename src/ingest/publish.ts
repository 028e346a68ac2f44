/**
 * Group commit into JetStream. Concurrent requests share messages (parcel.ts): what arrives while the flights that are out
 * have no answer is the next one, without a timer. A few messages are published one by one, each with its fsync; many as an
 * atomic batch with one for all.
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
import { messageOf, type OutgoingMessage, pack } from './parcel.ts'

/** The server's own limit (ADR-50). */
export const BATCH_MESSAGES_MAX = 1_000

/** A flight must reach the server within its 10 s of patience, and not swell the connection's buffers. */
const FLIGHT_CHARS_MAX = 4 * 1024 * 1024
/** However many types there are, a flight fits a batch. */
const FLIGHT_EVENTS_MAX = BATCH_MESSAGES_MAX

/** Up to here an fsync each costs the server less than an atomic batch, which it stages in a store of its own (measured). */
const SINGLY_MAX = 8

/** One more than the server stores at a time, so that it need not wait for us to encode; more only make batches smaller (measured). */
const FLIGHTS_MAX = 2

/** Of the newest flight in the mean number of events per message. */
const MEAN_WEIGHT = 0.05

type Entry = {
  events: OutgoingEvent[]
  chars: number
  resolve: () => void
  reject: (error: unknown) => void
}

export type Publisher = {
  /**
   * Stores the events of one request, BATCH_MESSAGES_MAX at most. Resolves once all are on disk, and each knows its `seq`
   * and `place`.
   * @throws MillraceError `unavailable` or `overloaded`; some or all may be stored all the same, so a client retries with
   *   the same ids
   */
  publish: (events: OutgoingEvent[]) => Promise<void>
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
  let pendingChars = 0
  let flights = 0
  let eventsPerMessage = 1
  let scheduled = false
  let idle: PromiseWithResolvers<void> | undefined

  function publish(events: OutgoingEvent[]): Promise<void> {
    if (!broker.connected())
      return Promise.reject(new MillraceError('unavailable', 'JetStream is away; retry with the same event ids'))
    if (pendingChars > config.PUBLISH_PENDING_BYTES_MAX)
      return Promise.reject(new MillraceError('overloaded', 'Too much is waiting for JetStream; retry later'))
    let chars = 0
    for (const { payload } of events) chars += payload.length
    pendingChars += chars
    return new Promise<void>((resolve, reject) => {
      waiting.push({ events, chars, resolve, reject })
      schedule()
    })
  }

  /** After the requests that the event loop holds ready now, so that they share a batch. */
  function schedule(): void {
    if (scheduled || flights >= FLIGHTS_MAX || waiting.length === 0) return
    scheduled = true
    setImmediate(() => {
      scheduled = false
      while (flights < FLIGHTS_MAX && waiting.length > 0) void fly(nextFlight(waiting))
    })
  }

  async function fly(entries: Entry[]): Promise<void> {
    flights++
    try {
      const events = entries.length === 1 ? entries[0]!.events : entries.flatMap((entry) => entry.events)
      const lists = pack(events)
      const startedAt = performance.now()
      const seqs = await store(broker, lists.map(messageOf), config.PUBLISH_TIMEOUT_MS)
      for (const [i, list] of lists.entries())
        for (const [place, event] of list.entries()) Object.assign(event, { seq: seqs[i]!, place })
      eventsPerMessage += MEAN_WEIGHT * (events.length / lists.length - eventsPerMessage)
      metrics.batchPublished(events.length, (performance.now() - startedAt) / 1_000)
      for (const entry of entries) entry.resolve()
    } catch (error) {
      metrics.publishFailed(error instanceof MillraceError ? error.code : 'internal')
      for (const entry of entries) entry.reject(error)
    } finally {
      for (const entry of entries) pendingChars -= entry.chars
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
    crowded: () => pendingChars > config.PUBLISH_PENDING_BYTES_MAX / 2,
    eventsPerMessage: () => eventsPerMessage,
    drain,
  }
}

/** Takes whole requests, in order, up to the limits of a flight; always at least one. */
function nextFlight(waiting: Entry[]): Entry[] {
  let events = 0
  let chars = 0
  let count = 0
  for (const entry of waiting) {
    events += entry.events.length
    chars += entry.chars
    if (count > 0 && (events > FLIGHT_EVENTS_MAX || chars > FLIGHT_CHARS_MAX)) break
    count++
  }
  return waiting.splice(0, count)
}

/**
 * Stores messages, at most BATCH_MESSAGES_MAX.
 * @returns their stream sequences, once all are on disk
 * @throws MillraceError `unavailable`; then some of them may be stored
 */
export async function store({ nc }: Broker, messages: OutgoingMessage[], timeoutMs: number): Promise<number[]> {
  try {
    if (messages.length <= SINGLY_MAX)
      return await Promise.all(messages.map(async (message) => seqOf(await send(nc, message, timeoutMs))))
    const last = seqOf(await sendBatch(nc, messages, timeoutMs))
    return messages.map((_, i) => last - (messages.length - 1) + i)
  } catch (error) {
    throw publishFailure(error, timeoutMs)
  }
}

function seqOf(answer: Msg): number {
  const { seq, error } = answer.json<{ seq?: number; error?: { err_code: number; description: string } }>()
  if (error || seq === undefined)
    throw new MillraceError('unavailable', `JetStream refused the events: ${error?.description ?? 'no sequence'}`, {
      details: { broker_code: error?.err_code },
    })
  return seq
}

const send = (nc: NatsConnection, { subject, headerLines, payload }: OutgoingMessage, timeout: number): Promise<Msg> =>
  nc.request(subject, payload, { headers: headersFrom(headerLines), timeout })

/** The commit comes with the last message, and the server answers it alone. */
function sendBatch(nc: NatsConnection, messages: OutgoingMessage[], timeoutMs: number): Promise<Msg> {
  const last = messages.length - 1
  const batchId = nuid.next()
  const partOf = (n: number) => `\r\nNats-Batch-Id: ${batchId}\r\nNats-Batch-Sequence: ${n}`
  for (let i = 0; i < last; i++) {
    const { subject, headerLines, payload } = messages[i]!
    nc.publish(subject, payload, { headers: headersFrom(headerLines + partOf(i + 1)) })
  }
  const message = messages[last]!
  const headerLines = `${message.headerLines}${partOf(last + 1)}\r\nNats-Batch-Commit: 1`
  return send(nc, { ...message, headerLines }, timeoutMs)
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
