/**
 * Takes settled events out of the stream. Measured: a work-queue stream, which deletes each message at its ack, costs
 * the server 100 us an event with fsync on; a stream that keeps them and is purged below the consumer's acknowledged
 * floor costs 8. Nothing above the floor, that is nothing unacknowledged, is ever purged.
 *
 * A purge makes the server forget what it has queued for redelivery at that moment (nats-server 2.15, consumer.purge):
 * nothing is lost, but it comes a whole ack_wait late. So purges are few, and wait while events are being redelivered,
 * unless the stream fills: settled events must never be why it refuses new ones.
 */

import { setTimeout as pause } from 'node:timers/promises'
import type { Broker } from '../broker/connect.ts'
import { CONSUMER, STREAM } from '../broker/streams.ts'
import type { Config } from '../config.ts'
import { describe } from '../errors.ts'
import type { Log } from './log.ts'

const LOOK_MS = 1_000
/** So many settled events are worth a purge, and so long is enough for fewer. */
const SETTLED_MIN = 100_000
const SETTLED_MS_MAX = 60_000
/** Redeliveries may put a purge off until so many have gathered: about a gigabyte. */
const SETTLED_MAX = 2_000_000
/** A stream this full is about to refuse events, so its settled ones go now, if they make more than a little room. */
const FULL_SHARE = 0.5
const ROOM_SHARE = 0.1

export type StreamUse = {
  /** Events the stream still holds, and those of them that are settled. */
  events: number
  settled: number
  redelivering: number
  bytes: number
  bytesMax: number
  /** Since the last purge by this process. */
  sinceMs: number
}

/** Whether a purge is due now. */
export function trimDue({ events, settled, redelivering, bytes, bytesMax, sinceMs }: StreamUse): boolean {
  if (settled <= 0) return false
  if (settled >= SETTLED_MAX) return true
  if (bytes >= FULL_SHARE * bytesMax && settled >= ROOM_SHARE * events) return true
  if (redelivering > 0) return false
  return settled >= SETTLED_MIN || sinceMs >= SETTLED_MS_MAX
}

/** Purges now and then until the signal. Several processes may do so at once. */
export async function trimStream(
  { broker, log }: { broker: Broker; log: Log },
  { STREAM_BYTES_MAX }: Pick<Config, 'STREAM_BYTES_MAX'>,
  signal: AbortSignal,
): Promise<void> {
  let trimmedAtMs = performance.now()
  while (!signal.aborted) {
    await pause(LOOK_MS, undefined, { signal }).catch(() => {})
    if (signal.aborted || !broker.connected()) continue
    try {
      // The floor first: what it covers stays settled, whatever happens until the stream is asked.
      const { ack_floor, num_redelivered } = await broker.jsm.consumers.info(STREAM, CONSUMER)
      const { state } = await broker.jsm.streams.info(STREAM)
      const use: StreamUse = {
        events: state.messages,
        settled: ack_floor.stream_seq - state.first_seq + 1,
        redelivering: num_redelivered,
        bytes: state.bytes,
        bytesMax: STREAM_BYTES_MAX,
        sinceMs: performance.now() - trimmedAtMs,
      }
      if (!trimDue(use)) continue
      await broker.jsm.streams.purge(STREAM, { seq: ack_floor.stream_seq + 1 })
      trimmedAtMs = performance.now()
    } catch (error) {
      log.warn({ error: describe(error) }, 'the stream was not trimmed; trying again')
    }
  }
}
