/**
 * Takes settled events out of the stream. Measured: a work-queue stream, which deletes each message at its ack, costs
 * the server 100 us an event with fsync on; a stream that keeps them and is purged below the consumer's acknowledged
 * floor costs 8. Nothing above the floor, that is nothing unacknowledged, is ever purged.
 *
 * A purge makes the server forget what it has queued for redelivery at that moment (nats-server 2.15, consumer.purge):
 * nothing is lost, but it comes a whole ack_wait late. So purges are few, and wait while events are being redelivered.
 */

import { setTimeout as pause } from 'node:timers/promises'
import type { Broker } from '../broker/connect.ts'
import { CONSUMER, STREAM } from '../broker/streams.ts'
import { describe } from '../errors.ts'
import type { Log } from './log.ts'

const LOOK_MS = 5_000
/** So many settled events are worth a purge, and so long is enough for fewer. */
const SETTLED_MIN = 100_000
const SETTLED_MS_MAX = 60_000
/** Redeliveries may put a purge off until so many have gathered: about a gigabyte. */
const SETTLED_MAX = 2_000_000

export type TrimState = { trimmedSeq: number; trimmedAtMs: number }

/** Whether a purge is due now. */
export function trimDue(
  state: TrimState,
  { settledSeq, redelivering, nowMs }: { settledSeq: number; redelivering: number; nowMs: number },
): boolean {
  const settled = settledSeq - state.trimmedSeq
  if (settled <= 0) return false
  if (settled >= SETTLED_MAX) return true
  if (redelivering > 0) return false
  return settled >= SETTLED_MIN || nowMs - state.trimmedAtMs >= SETTLED_MS_MAX
}

/** Purges now and then until the signal. Several processes may do so at once. */
export async function trimStream({ broker, log }: { broker: Broker; log: Log }, signal: AbortSignal): Promise<void> {
  let state: TrimState = { trimmedSeq: 0, trimmedAtMs: performance.now() }
  while (!signal.aborted) {
    await pause(LOOK_MS, undefined, { signal }).catch(() => {})
    if (signal.aborted || !broker.connected()) continue
    try {
      const { ack_floor, num_redelivered } = await broker.jsm.consumers.info(STREAM, CONSUMER)
      const settledSeq = ack_floor.stream_seq
      if (!trimDue(state, { settledSeq, redelivering: num_redelivered, nowMs: performance.now() })) continue
      await broker.jsm.streams.purge(STREAM, { seq: settledSeq + 1 })
      state = { trimmedSeq: settledSeq, trimmedAtMs: performance.now() }
    } catch (error) {
      log.warn({ error: describe(error) }, 'the stream was not trimmed; trying again')
    }
  }
}
