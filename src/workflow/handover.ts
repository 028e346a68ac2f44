/**
 * Starts that one process makes and another runs, without the way through the queue.
 *
 * 1. The starter offers the rows of one turn of its event loop, in one request per queue, to one worker of that queue.
 * 2. The worker inserts them as its own and begins them; it answers when they are durable.
 * 3. When such a run ends, its worker sends the end, durable by then, to the starter.
 * 4. No worker, no NATS, no answer in time, too large: the starter inserts the run as queued, under the same run id, so
 *    it exists once whoever came first. An end that got lost is found by the starter's sweep (results.ts).
 */

import type { Broker } from '../broker/connect.ts'
import type { StartRow } from './journal-sql.ts'
import type { Ending } from './results.ts'

/** Another subject than that of versions whose workers did not know tenants. */
const OFFER = 'millrace.offer2.'
const ENDINGS = 'millrace.ends.'
/** Workers of a queue share its offers. */
const WORKERS = 'millrace-workers'

/** Longer than a busy worker's commit; a worker that was killed holds its starters up for this long, once. */
const ANSWER_MS_MAX = 2_000
/** Rows of one request: they become part of one commit, and stay far below NATS's 1 MB a message. */
const ROWS_MAX = 500
const ROWS_CHARACTERS_MAX = 256 * 1024
/** Larger ends are read from the database by who wants them. */
const ENDING_CHARACTERS_MAX = 8 * 1024
/** Runs whose end is expected; with more, all are forgotten, and whoever waits asks the database. */
const EXPECTED_MAX = 100_000

/** @property stands  the run was not begun: its id is taken */
type Answer = 'begun' | 'stands' | 'failed'
type Offer = { row: StartRow; settle: (answer: Answer | null) => void }
/** @property ending  null: too large to send */
type Sent = { runId: string; ending: Ending | null }

export type Handover = {
  /** @returns null when no worker took it */
  offer: (row: StartRow) => Promise<Answer | null>
  /** A worker began the run for this process, and has not said that it ended: asking the database would be too early. */
  expects: (runId: string) => boolean
  /** Tells the starter that the run it handed over has ended. */
  sendEnd: (starter: string, runId: string, ending: Ending) => void
  close: () => void
}

/**
 * @param starter  names this process; it gets its ends under that name
 * @param queues   whose offers this process takes
 * @param begin    begins an offered run for the starter named
 * @param onEnd    a run handed over from here has ended; how is in the database where it is null
 */
export function openHandover(
  broker: Broker | null,
  starter: string,
  queues: string[],
  begin: (row: StartRow, starter: string) => Promise<boolean>,
  onEnd: (runId: string, ending: Ending | null) => void,
): Handover {
  if (broker === null)
    return { offer: () => Promise.resolve(null), expects: () => false, sendEnd: () => {}, close: () => {} }
  const { nc } = broker
  const offers = new Map<string, Offer[]>()
  const ends = new Map<string, Sent[]>()
  const expected = new Set<string>()

  const send = async (queue: string, batch: Offer[]) => {
    if (expected.size > EXPECTED_MAX) expected.clear()
    // A run can end before the answer for the whole offer is here.
    for (const { row } of batch) expected.add(row.runId)
    let answers: (Answer | null)[] = []
    try {
      const request = JSON.stringify({ starter, rows: batch.map(({ row }) => row) })
      answers = (await nc.request(OFFER + queue, request, { timeout: ANSWER_MS_MAX })).json<Answer[]>()
    } catch {
      // No worker there, or none that answers: whoever offered goes the other way.
    }
    batch.forEach(({ row, settle }, n) => {
      if (answers[n] !== 'begun') expected.delete(row.runId)
      settle(answers[n] ?? null)
    })
  }
  const answer = async (rows: StartRow[], from: string): Promise<Answer[]> =>
    Promise.all(
      rows.map((row) =>
        begin(row, from).then(
          (begun): Answer => (begun ? 'begun' : 'stands'),
          (): Answer => 'failed',
        ),
      ),
    )

  const subscriptions = queues.map((queue) =>
    nc.subscribe(OFFER + queue, {
      queue: WORKERS,
      callback: (error, message) => {
        if (error !== null) return
        const { starter: from, rows } = message.json<{ starter: string; rows: StartRow[] }>()
        void answer(rows, from).then((answers) => message.respond(JSON.stringify(answers)))
      },
    }),
  )
  subscriptions.push(
    nc.subscribe(ENDINGS + starter, {
      callback: (error, message) => {
        if (error !== null) return
        for (const { runId, ending } of message.json<Sent[]>()) {
          expected.delete(runId)
          onEnd(runId, ending)
        }
      },
    }),
  )
  return {
    offer(row) {
      if (!broker.connected() || (row.input?.length ?? 0) > ROWS_CHARACTERS_MAX) return Promise.resolve(null)
      return new Promise((settle) => {
        gather(offers, row.queue, { row, settle }, (batch) => {
          for (const part of parts(batch, ({ row: { input, attributes } }) => size(input) + size(attributes)))
            void send(row.queue, part)
        })
      })
    },
    expects: (runId) => expected.has(runId),
    sendEnd(to, runId, ending) {
      const characters = size(ending.output) + size(ending.error)
      const sent = { runId, ending: characters > ENDING_CHARACTERS_MAX ? null : ending }
      gather(ends, to, sent, (batch) => {
        if (!broker.connected()) return
        for (const part of parts(batch, (each) => size(each.ending?.output) + size(each.ending?.error)))
          nc.publish(ENDINGS + to, JSON.stringify(part))
      })
    },
    close() {
      for (const subscription of subscriptions) subscription.unsubscribe()
    },
  }
}

/** Everything that this turn of the event loop brings for `key` goes out together. */
function gather<T>(pending: Map<string, T[]>, key: string, item: T, flush: (batch: T[]) => void): void {
  const known = pending.get(key)
  if (known !== undefined) return void known.push(item)
  const batch = [item]
  pending.set(key, batch)
  setImmediate(() => {
    pending.delete(key)
    flush(batch)
  })
}

const size = (text: unknown) => (typeof text === 'string' ? text.length : 0)

function* parts<T>(batch: T[], charactersOf: (item: T) => number): Generator<T[]> {
  let part: T[] = []
  let characters = 0
  for (const item of batch) {
    if (part.length === ROWS_MAX || (part.length > 0 && characters > ROWS_CHARACTERS_MAX)) {
      yield part
      part = []
      characters = 0
    }
    part.push(item)
    characters += charactersOf(item)
  }
  yield part
}
