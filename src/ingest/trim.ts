/**
 * Takes settled events out of the stream. Measured: a work-queue stream, which deletes each message at its ack, costs
 * the server 100 us an event with fsync on; a stream that keeps them and is purged below the consumer's acknowledged
 * floor costs 8. Nothing above the floor, that is nothing unacknowledged, is ever purged.
 */

import { setTimeout as pause } from 'node:timers/promises'
import type { Broker } from '../broker/connect.ts'
import { CONSUMER, STREAM } from '../broker/streams.ts'
import { describe } from '../errors.ts'
import type { Log } from './log.ts'

/** Purging is cheaper in large pieces; the stream holds at most this much more than is unsettled. */
const TRIM_MS = 5_000

/** Purges every few seconds until the signal. Several processes may do so at once. */
export async function trimStream({ broker, log }: { broker: Broker; log: Log }, signal: AbortSignal): Promise<void> {
  let trimmed = 0
  while (!signal.aborted) {
    await pause(TRIM_MS, undefined, { signal }).catch(() => {})
    if (!broker.connected()) continue
    try {
      const { ack_floor } = await broker.jsm.consumers.info(STREAM, CONSUMER)
      if (ack_floor.stream_seq <= trimmed) continue
      await broker.jsm.streams.purge(STREAM, { seq: ack_floor.stream_seq + 1 })
      trimmed = ack_floor.stream_seq
    } catch (error) {
      log.warn({ error: describe(error) }, 'the stream was not trimmed; trying again')
    }
  }
}
