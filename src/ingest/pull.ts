/**
 * The messages of one process, pulled ahead of its workers. Our own pull, because the client's `consume()` asks for more
 * whenever a message arrives, however slow its reader: here no more is asked for than the buffer has room for.
 *
 * Protocol: pull requests, NATS ADR-13 and ADR-37 (status 404, 408, 409 close a request; 100 is a heartbeat).
 */

import { createInbox, type Msg, type Subscription } from 'nats'
import type { Broker } from '../broker/connect.ts'
import { deliveryInfo, working } from '../broker/delivery.ts'
import { CONSUMER, STREAM } from '../broker/streams.ts'
import { divide, messagesOf, type Parcel, receive } from './parcel.ts'

/** Long enough that an idle system asks seldom; under 1,000 ms the server refuses. */
const EXPIRES_MS = 20_000
const HEARTBEAT_MS = 2_000
/** Two missed heartbeats: the request is gone with the leader that held it, so ask again. */
const SILENCE_MS_MAX = 2 * HEARTBEAT_MS + 500
/** After a refusal, so that a consumer that is away is not asked in a tight loop. */
const REFUSED_MS = 250
/** Bounds what one request brings when messages suddenly hold many events; far above the largest message. */
const REQUEST_BYTES_MAX = 16 * 1024 * 1024
/** Of the newest message in the mean number of events per message. */
const MEAN_WEIGHT = 0.05

export type Pull = {
  /** Events that are here. */
  buffered: () => number
  /** Messages in the stream behind those delivered, as the newest one said. */
  pending: () => number
  /** Takes up to `max` buffered events at once, cutting the last parcel where it is too large; the room is asked for again. */
  take: (max: number) => Parcel[]
  /** Resolves at the next arrival, on close, or after `ms`. */
  arrival: (ms?: number) => Promise<void>
  /** How many events to hold ready. */
  setCapacity: (events: number) => void
  /** Asks no more, and returns once everything the server sent has arrived in the buffer. */
  close: () => Promise<void>
  closed: () => boolean
}

/**
 * @param requestMax  most messages that one request may ask for
 * @param ackWaitMs   the consumer's; what waits here for a worker is kept alive, so that no delivery is used up
 */
export function openPull(
  { broker }: { broker: Broker },
  { capacity: capacityAtStart, requestMax, ackWaitMs }: { capacity: number; requestMax: number; ackWaitMs: number },
): Pull {
  const { nc } = broker
  const inbox = createInbox()
  const subject = `$JS.API.CONSUMER.MSG.NEXT.${STREAM}.${CONSUMER}`
  let buffer: Parcel[] = []
  let buffered = 0
  let eventsPerMessage = 1
  let capacity = capacityAtStart
  /** Messages asked for and not yet here. */
  let outstanding = 0
  let newest: Msg | undefined
  let heardAt = performance.now()
  let closed = false
  let wake: PromiseWithResolvers<void> | undefined
  let retry: NodeJS.Timeout | undefined

  function awaken(): void {
    wake?.resolve()
    wake = undefined
  }

  const subscription: Subscription = nc.subscribe(inbox, {
    callback: (error, msg) => {
      if (error) return
      heardAt = performance.now()
      if (msg.subject === inbox) return onStatus(msg)
      outstanding = Math.max(0, outstanding - 1)
      newest = msg
      const parcels = receive(msg)
      const { events } = parcels[0]!.from
      buffer.push(...parcels)
      buffered += events
      eventsPerMessage += MEAN_WEIGHT * (events - eventsPerMessage)
      awaken()
      ask()
    },
  })

  function onStatus(msg: Msg): void {
    const status = msg.headers?.code ?? 0
    const says = msg.headers?.description ?? ''
    if (status === 100) return
    // A request with max_bytes is also told its end when it brought all it asked for.
    if (status === 409 && /Batch Completed/i.test(says)) {
      ask()
      return
    }
    const left = Number(msg.headers?.get('Nats-Pending-Messages') || 0)
    outstanding = left > 0 ? Math.max(0, outstanding - left) : 0
    if (status === 408 || status === 404 || /MaxBytes/i.test(says)) ask()
    else retry ??= setTimeout(askAgain, REFUSED_MS)
  }

  function askAgain(): void {
    retry = undefined
    ask()
  }

  /** Tops up when there is room for a whole request, or half of the room is free: one request brings many messages. */
  function ask(): void {
    if (closed || retry !== undefined || !broker.connected()) return
    const capacityMessages = Math.max(1, capacity / eventsPerMessage)
    const worthwhile = Math.max(1, Math.min(requestMax, capacityMessages / 2))
    for (let room = capacityMessages - buffered / eventsPerMessage - outstanding; room >= worthwhile; ) {
      const batch = Math.min(Math.ceil(room), requestMax)
      const request = {
        batch,
        max_bytes: REQUEST_BYTES_MAX,
        expires: EXPIRES_MS * 1e6,
        idle_heartbeat: HEARTBEAT_MS * 1e6,
      }
      nc.publish(subject, JSON.stringify(request), { reply: inbox })
      outstanding += batch
      room -= batch
    }
  }

  /** A request does not outlive the connection it was made on. */
  async function askAfterReconnect(): Promise<void> {
    for await (const { type } of nc.status()) {
      if (type !== 'reconnect') continue
      outstanding = 0
      ask()
    }
  }

  const watchdog = setInterval(() => {
    if (performance.now() - heardAt > SILENCE_MS_MAX) {
      outstanding = 0
      heardAt = performance.now()
    }
    ask()
  }, 1_000)

  const keepAlive = setInterval(() => {
    for (const message of messagesOf(buffer)) working(message)
  }, ackWaitMs / 3)

  function take(max: number): Parcel[] {
    const [taken, rest] = divide(buffer, max)
    buffer = rest
    buffered = Math.max(0, buffered - max)
    ask()
    return taken
  }

  function arrival(ms?: number): Promise<void> {
    if (closed) return Promise.resolve()
    wake ??= Promise.withResolvers<void>()
    const waiting = wake
    if (ms === undefined) return waiting.promise
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, ms)
      void waiting.promise.then(() => {
        clearTimeout(timer)
        resolve()
      })
    })
  }

  async function close(): Promise<void> {
    if (closed) return
    closed = true
    clearInterval(watchdog)
    clearTimeout(retry)
    clearInterval(keepAlive)
    // Drain, not unsubscribe: what the server sent before it heard of this would wait ack_wait for its redelivery.
    if (broker.connected()) await subscription.drain()
    else subscription.unsubscribe()
    awaken()
  }

  void askAfterReconnect()
  ask()
  return {
    buffered: () => buffered,
    pending: () => (newest === undefined ? 0 : deliveryInfo(newest).pending),
    take,
    arrival,
    setCapacity: (events) => {
      capacity = events
      ask()
    },
    close,
    closed: () => closed,
  }
}
