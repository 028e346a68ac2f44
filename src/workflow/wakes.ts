/**
 * Wake-ups over NATS: hints, never the truth. Whoever misses one finds the work at the next sweep, so every function
 * here does nothing while NATS is away.
 */

import type { Broker } from '../broker/connect.ts'

const QUEUE = 'millrace.wake.'
/** Payload: the ids of runs that something came in for. */
const WOKEN = 'millrace.woken'
/** Payload: the ids of runs that ended. */
const ENDED = 'millrace.ended'

/** A message of core NATS holds 1 MB; 20,000 ids of 37 bytes fit. */
const IDS_PER_MESSAGE_MAX = 20_000

/** What to tell other processes after a COMMIT. */
export type Wakes = { queues: string[]; runs: string[] }

/** Tells workers that a queue has work, and the holders of runs that something came in for them. */
export function publishWakes(broker: Broker | null, { queues, runs }: Wakes): void {
  if (broker === null || !broker.connected()) return
  for (const queue of queues) broker.nc.publish(QUEUE + queue)
  publishIds(broker, WOKEN, runs)
}

export function publishEnded(broker: Broker | null, runs: string[]): void {
  if (broker?.connected()) publishIds(broker, ENDED, runs)
}

function publishIds(broker: Broker, subject: string, runs: string[]): void {
  for (let from = 0; from < runs.length; from += IDS_PER_MESSAGE_MAX)
    broker.nc.publish(subject, runs.slice(from, from + IDS_PER_MESSAGE_MAX).join(','))
}

export function onQueued(broker: Broker | null, queue: string, then: () => void): () => void {
  return subscribe(broker, QUEUE + queue, then)
}

export function onWoken(broker: Broker | null, then: (runs: string[]) => void): () => void {
  return subscribe(broker, WOKEN, (payload) => then(payload.split(',')))
}

export function onEnded(broker: Broker | null, then: (runs: string[]) => void): () => void {
  return subscribe(broker, ENDED, (payload) => then(payload.split(',')))
}

function subscribe(broker: Broker | null, subject: string, then: (payload: string) => void): () => void {
  if (broker === null) return () => {}
  const subscription = broker.nc.subscribe(subject, {
    callback: (error, message) => {
      if (error === null) then(message.string())
    },
  })
  return () => subscription.unsubscribe()
}
