/** How far behind the workers are, as JetStream says. */

import type { Broker } from './connect.ts'
import { CONSUMER, STREAM } from './streams.ts'

export type QueueState = {
  /** Messages stored and not yet acknowledged; one holds events of one request (ingest/parcel.ts). */
  depth: number
  /** Age of the oldest of them, in seconds. */
  lagSeconds: number
  /** Of them, delivered to a worker. */
  unacknowledged: number
}

/** Asks JetStream for the consumer, and for the first message above its acknowledged floor. @throws when it is away */
export async function readQueue({ jsm }: Broker): Promise<QueueState> {
  const { num_pending, num_ack_pending, ack_floor } = await jsm.consumers.info(STREAM, CONSUMER)
  const depth = num_pending + num_ack_pending
  if (depth === 0) return { depth: 0, lagSeconds: 0, unacknowledged: 0 }
  const oldest = await jsm.direct.getMessage(STREAM, { seq: ack_floor.stream_seq + 1, next_by_subj: '>' })
  const lagSeconds = oldest === null ? 0 : Math.max(0, (Date.now() - oldest.time.getTime()) / 1_000)
  return { depth, lagSeconds, unacknowledged: num_ack_pending }
}
