/** What the tests of dead letters share: a worker with small fixed batches, and events that Postgres refuses. */

import { sql } from 'drizzle-orm'
import { readQueue } from '../../src/broker/queue.ts'
import type { Config } from '../../src/config.ts'
import type { OutgoingEvent } from '../../src/ingest/event.ts'
import { messageOf } from '../../src/ingest/parcel.ts'
import { createPublisher, store } from '../../src/ingest/publish.ts'
import type { Servers } from '../servers.ts'
import { startService, until } from '../service.ts'

/** One batch is what one test publishes at once; refused events come back within milliseconds. */
export const SMALL: Partial<Config> = {
  WORKER_POOL_SIZE: 1,
  WORKER_ADAPTIVE: false,
  WORKER_BATCH_SIZE: 50,
  WORKER_BATCH_TIMEOUT: 0.1,
  MAX_DELIVER: 3,
  RETRY_DELAY_MS: 10,
}

export const TRACEPARENT = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00'

/** As the API would publish it, had it not looked. */
export function outgoing(id: string, over: Record<string, unknown> = {}): OutgoingEvent {
  const event = { specversion: '1.0', id, source: 'test', type: 'order.placed', data: { id }, ...over }
  return {
    id,
    source: event.source,
    type: event.type,
    payload: JSON.stringify(event),
    receivedMs: Date.now(),
    traceparent: TRACEPARENT,
    commitReply: '',
    tenant: 'default',
    seq: 0,
    place: 0,
  }
}

/** Valid CloudEvents but for its time, which the API would refuse and Postgres does (SQLSTATE 22007). */
export const poison = (id: string, over: Record<string, unknown> = {}) => outgoing(id, { time: 'last week', ...over })

export async function startPipeline(servers: Servers, over: Partial<Config> = {}) {
  const service = await startService(servers, { ...SMALL, ...over })
  const { db, broker } = servers
  const publisher = createPublisher({ broker, telemetry: service.telemetry }, servers.config)
  const column = async (statement: ReturnType<typeof sql>) =>
    (await db.execute<{ value: string }>(statement)).rows.map(({ value }) => value)
  const rows = () => column(sql`select id as value from events order by id`)
  const letters = () =>
    column(sql`
      select data->>'id' as value from pgboss.job where name = 'dead-letters' and state = 'created' order by 1`)
  return {
    ...service,
    publisher,
    /** Each in a message to itself. */
    publish: async (...events: OutgoingEvent[]) => {
      const [first] = await store(
        broker,
        events.map((event) => messageOf([event])),
        5_000,
      )
      return first!
    },
    /** As one request. */
    publishTogether: async (...events: OutgoingEvent[]) => {
      await publisher.publish(events)
      return events[0]!.seq
    },
    rows,
    letters,
    failedBatches: async () =>
      (
        await db.execute<{ state: string; data: any }>(
          sql`select state, data from pgboss.job where name = 'failed-batches' order by created_on`,
        )
      ).rows,
    /** Waits until so many rows and dead letters are there and nothing is left on the stream. */
    settled: (committed: number, dead: number) =>
      until(async () => {
        if ((await rows()).length !== committed || (await letters()).length !== dead) return false
        return (await readQueue(broker)).depth === 0
      }),
    /** Forgets what earlier tests left. */
    clear: async () => {
      await db.execute(sql`truncate events, event_ids, dead_letter_audit`)
      await db.execute(sql`delete from pgboss.job where name in ('dead-letters', 'failed-batches')`)
    },
  }
}
