/**
 * The steady load, a program of its own: sends requests at a fixed rate and writes its ledger until SIGTERM, then ends
 * once every request has its answer or has been given up. Argument: LoadOptions as JSON.
 *
 * Clients behave as docs/api.md asks them to: after a 503 or a broken connection they try again with the same ids. Every
 * tenth never does, so that events nobody was promised anything about exist too. Some requests repeat an event within
 * themselves, some are sent again after they were accepted.
 */

import { createHash } from 'node:crypto'
import { Agent, request } from 'node:http'
import { setTimeout as pause } from 'node:timers/promises'
import { openLedger } from './ledger.ts'

export type LoadOptions = {
  /** Prefix of every id, and the source of every event. */
  run: string
  urls: string[]
  ledger: string
  requestsPerSecond: number
  eventsPerRequest: number
  /** Every so-manieth event is one that Postgres refuses; 0 for none. */
  poisonEvery: number
  /** Requests under way at once; beyond it the load waits, as clients do. */
  concurrencyMax: number
  fillerBytes: number
  /** Keep trying after SIGTERM for so long. */
  patienceMs: number
  /** After a refusal, ms before the next attempt; 0 never tries again. */
  retryMs: number
}

const options: LoadOptions = JSON.parse(process.argv[2]!)
const ledger = openLedger(options.ledger)
const agent = new Agent({ keepAlive: true, maxSockets: options.concurrencyMax })
const filler = 'x'.repeat(options.fillerBytes)
const ANSWER_MS_MAX = 20_000

let stopping = false
let giveUpAt = Number.POSITIVE_INFINITY
process.once('SIGTERM', () => {
  stopping = true
  giveUpAt = performance.now() + options.patienceMs
})

const idOf = (n: number) => `${options.run}-${n}`
const isPoison = (n: number) => options.poisonEvery > 0 && n % options.poisonEvery === options.poisonEvery - 1

function eventOf(n: number) {
  const id = idOf(n)
  return {
    id,
    source: options.run,
    type: isPoison(n) ? 'fault.poison' : 'fault.good',
    data: { n, check: createHash('md5').update(id).digest('hex'), filler },
  }
}

type Answer = { status: number; body: string; retryAfter: string | undefined }

/** Status 0 where no answer came. */
function post(url: string, body: string): Promise<Answer> {
  return new Promise((resolve) => {
    const none = () => resolve({ status: 0, body: '', retryAfter: undefined })
    const sent = request(`${url}/v1/events`, { method: 'POST', agent, headers: { 'content-type': 'application/json' } })
    sent.setTimeout(ANSWER_MS_MAX, () => sent.destroy())
    sent.on('error', none)
    sent.on('close', none)
    sent.on('response', (response) => {
      const chunks: Buffer[] = []
      response.on('data', (chunk) => chunks.push(chunk))
      response.on('error', none)
      response.on('end', () =>
        resolve({
          status: response.statusCode ?? 0,
          body: Buffer.concat(chunks).toString(),
          retryAfter: response.headers['retry-after'],
        }),
      )
    })
    sent.end(body)
  })
}

/** Sends until accepted or given up; never throws. */
async function deliver(first: number, count: number, turn: number): Promise<void> {
  const numbers = Array.from({ length: count }, (_, i) => first + i)
  if (turn % 7 === 3) numbers.push(first)
  const body = JSON.stringify(numbers.map(eventOf))
  ledger.sent(Date.now(), first, count)
  const again = options.retryMs > 0 && turn % 10 !== 9
  for (let attempt = 0; ; attempt++) {
    const startedAt = performance.now()
    const answer = await post(options.urls[(turn + attempt) % options.urls.length]!, body)
    if (answer.status === 202) {
      accept(answer.body, numbers, performance.now() - startedAt)
      return
    }
    ledger.refused(Date.now(), answer.status, reasonOf(answer))
    if (![0, 429, 503].includes(answer.status)) ledger.wrong(`${answer.status} ${answer.body}`)
    else if (answer.status !== 0 && !(Number(answer.retryAfter) > 0))
      ledger.wrong(`${answer.status} without Retry-After`)
    if (!again || performance.now() > giveUpAt) return
    await pause(options.retryMs)
  }
}

function reasonOf({ status, body }: Answer): string {
  if (status === 0) return 'no answer'
  try {
    return JSON.parse(body).message
  } catch {
    return body
  }
}

function accept(body: string, numbers: number[], latencyMs: number): void {
  const outcomes: { status: string; id: string }[] = JSON.parse(body).events
  const named = outcomes.every((outcome, i) => outcome.status === 'accepted' && outcome.id === idOf(numbers[i]!))
  if (named && outcomes.length === numbers.length) ledger.accepted(Date.now(), latencyMs, numbers)
  else ledger.wrong(`202 with other outcomes than sent: ${body.slice(0, 500)}`)
}

const underWay = new Set<Promise<void>>()
function start(first: number, count: number, turn: number): void {
  const delivery = deliver(first, count, turn).finally(() => underWay.delete(delivery))
  underWay.add(delivery)
}

const startedAt = performance.now()
for (let turn = 0; !stopping; turn++) {
  const due = startedAt + (turn * 1_000) / options.requestsPerSecond
  const early = due - performance.now()
  if (early > 0) await pause(early)
  while (underWay.size >= options.concurrencyMax && !stopping) await Promise.race(underWay)
  const first = turn * options.eventsPerRequest
  start(first, options.eventsPerRequest, turn)
  // A client that does not trust its answer sends a whole earlier request again.
  if (turn % 11 === 10) start(first - 5 * options.eventsPerRequest, options.eventsPerRequest, turn)
}
await Promise.all(underWay)
agent.destroy()
