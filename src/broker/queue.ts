/** How far behind the workers are, as JetStream says. */

import type { Broker } from './connect.ts'
import { CONSUMER, STREAM } from './streams.ts'

export type QueueState = {
  /** Events stored and not yet acknowledged: an acknowledged event leaves the stream. */
  depth: number
  /** Age of the oldest of them, in seconds. */
  lagSeconds: number
  /** Of them, delivered to a worker. */
  unacknowledged: number
}

/** Two requests to JetStream. @throws when it is away */
export async function readQueue({ jsm }: Broker): Promise<QueueState> {
  const [{ state }, consumer] = await Promise.all([jsm.streams.info(STREAM), jsm.consumers.info(STREAM, CONSUMER)])
  return {
    depth: state.messages,
    lagSeconds: state.messages === 0 ? 0 : Math.max(0, (Date.now() - Date.parse(state.first_ts)) / 1_000),
    unacknowledged: consumer.num_ack_pending,
  }
}
