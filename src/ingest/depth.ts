/**
 * How far the workers are behind, sampled once a second: past QUEUE_DEPTH_MAX, or with JetStream away, a request is
 * refused before its body is read.
 */

import type { Broker } from '../broker/connect.ts'
import { CONSUMER, STREAM } from '../broker/streams.ts'
import type { Config } from '../config.ts'
import { MillraceError } from '../errors.ts'
import type { Publisher } from './publish.ts'

const SAMPLE_MS = 1_000

export type Depth = {
  /** Messages in the stream that no worker has yet; undefined before the first sample, or when JetStream does not answer. */
  pending: () => number | undefined
  /** @throws MillraceError `unavailable` or `overloaded` */
  refuseWhenBehind: () => void
  close: () => void
}

export function createDepth(
  { broker, publisher }: { broker: Broker; publisher: Pick<Publisher, 'eventsPerMessage'> },
  { QUEUE_DEPTH_MAX }: Pick<Config, 'QUEUE_DEPTH_MAX'>,
): Depth {
  let pending: number | undefined
  let asking = false

  async function sample(): Promise<void> {
    if (asking || !broker.connected()) return
    asking = true
    try {
      pending = (await broker.jsm.consumers.info(STREAM, CONSUMER)).num_pending
    } catch {
      // Publishing finds out by itself, and says so to the client; /readyz shows it.
      pending = undefined
    } finally {
      asking = false
    }
  }

  void sample()
  const timer = setInterval(() => void sample(), SAMPLE_MS)

  return {
    pending: () => pending,
    refuseWhenBehind: () => {
      if (!broker.connected())
        throw new MillraceError('unavailable', 'JetStream is away; retry with the same event ids')
      // JetStream counts messages: what those of late held is the best guess at their events.
      const events = Math.round((pending ?? 0) * publisher.eventsPerMessage())
      if (events > QUEUE_DEPTH_MAX)
        throw new MillraceError('overloaded', `The workers are about ${events} events behind; retry later`, {
          details: { limit: 'QUEUE_DEPTH_MAX', max: QUEUE_DEPTH_MAX },
        })
    },
    close: () => clearInterval(timer),
  }
}
