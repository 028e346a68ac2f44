/**
 * Hostile input against one API process, while a well-behaved client goes on: never a 500, a crash, a hang, or a row
 * that no answer told of. Prints what was answered, by kind.
 */

import { connect } from 'node:net'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import pg from 'pg'
import { createRandom, type Hostile, hostileRequests } from './hostile-requests.ts'
import type { LoadOptions } from './load.ts'
import { judge, type Verdict } from './oracle.ts'
import { footprint, type Service, startChild } from './processes.ts'
import { startRig } from './rig.ts'
import { DEFAULT_LOAD } from './run-fault.ts'
import { waitFor } from './wait.ts'

const LOAD = fileURLToPath(new URL('load.ts', import.meta.url))
const SEED = 20_250_801
const EACH = 40
const CONCURRENCY = 24
const BODY_IDLE_MS = 1_500
/** A slow body is read for as long as it moves; these take seconds. */
const ANSWER_MS_MAX = 60_000
const MEMORY_GROWTH_MB_MAX = 250

/** 0: the connection ended without an answer; -1: it hung. */
type Answer = { status: number; body: string; retryAfter: boolean }
type Answered = { request: Hostile; answer: Answer }

/** Every complaint; none when all is well. */
export async function runHostile(): Promise<string[]> {
  const rig = await startRig({ natsNodes: 1, apis: 1, workers: 1, env: { BODY_IDLE_MS: String(BODY_IDLE_MS) } })
  try {
    const api = rig.apis[0]!
    const ledger = join(rig.dir, 'polite.ledger')
    const polite: LoadOptions = {
      ...DEFAULT_LOAD,
      poisonEvery: 0,
      requestsPerSecond: 20,
      run: 'polite',
      urls: [api.url],
      ledger,
    }
    const load = startChild(LOAD, [JSON.stringify(polite)], {})
    const memory = watchMemory(api)
    const answered = await sendAll(Number(new URL(api.url).port), hostileRequests(createRandom(SEED), EACH))
    const grownMb = memory.stop()
    load.signal('SIGTERM')
    await load.exited
    await waitFor('everything to be acknowledged', 60_000, async () => (await rig.depth()) === 0)

    const verdict = await judge(rig.databaseUrl, 'polite', ledger, 0)
    console.log(table(answered))
    console.log(`  ${answered.length} requests, seed ${SEED}; memory grew by ${grownMb.toFixed(0)} MB at most`)
    console.log(
      `  meanwhile, of a polite client: ${verdict.answered} events accepted, ${verdict.refused} requests refused`,
    )
    return [
      ...(api.child().running() ? [] : [`the API process ended: ${api.child().log()}`]),
      ...(grownMb <= MEMORY_GROWTH_MB_MAX ? [] : [`memory grew by ${grownMb} MB`]),
      ...answered.flatMap(complaintOf),
      ...politeComplaints(verdict),
      ...compareStored(answered, await storedEvents(rig.databaseUrl)),
    ].map((complaint) => `hostile input: ${complaint}`)
  } finally {
    await rig.stop()
  }
}

function watchMemory(service: Service): { stop: () => number } {
  const memoryMb = () => (service.child().running() ? footprint(service.child().pid).memoryMb : 0)
  const before = memoryMb()
  let peak = before
  const timer = setInterval(() => {
    peak = Math.max(peak, memoryMb())
  }, 100)
  return {
    stop: () => {
      clearInterval(timer)
      return peak - before
    },
  }
}

async function sendAll(port: number, requests: Hostile[]): Promise<Answered[]> {
  const answered: Answered[] = []
  const queue = requests.values()
  const sendSome = async () => {
    for (const request of queue) answered.push({ request, answer: await send(port, request) })
  }
  await Promise.all(Array.from({ length: CONCURRENCY }, sendSome))
  return answered
}

function send(port: number, { bytes, trickleMs, breakOff }: Hostile): Promise<Answer> {
  return new Promise((resolve) => {
    const chunks: Buffer[] = []
    const socket = connect({ port, host: '127.0.0.1', allowHalfOpen: true })
    let trickle: NodeJS.Timeout | undefined
    const finish = (answer: Answer) => {
      clearTimeout(timer)
      clearInterval(trickle)
      socket.destroy()
      resolve(answer)
    }
    const timer = setTimeout(() => finish({ status: -1, body: '', retryAfter: false }), ANSWER_MS_MAX)
    for (const event of ['error', 'end', 'close']) socket.on(event, () => finish(parse(Buffer.concat(chunks))))
    socket.on('data', (chunk: Buffer) => chunks.push(chunk))
    socket.on('connect', () => {
      if (trickleMs === undefined) {
        socket.write(bytes, () => breakOff && socket.resetAndDestroy())
        return
      }
      // The head and most of the body at once; then byte by byte, and in the end silence.
      let at = bytes.length - 20
      socket.write(bytes.subarray(0, at))
      trickle = setInterval(() => at < bytes.length - 5 && socket.write(bytes.subarray(at, ++at)), trickleMs)
    })
  })
}

function parse(bytes: Buffer): Answer {
  const [head = '', ...rest] = bytes.toString('utf8').split('\r\n\r\n')
  const status = Number(/^HTTP\/1\.1 (\d{3})/.exec(head)?.[1] ?? 0)
  return { status, body: rest.join('\r\n\r\n'), retryAfter: /^retry-after: \d+/im.test(head) }
}

function table(answered: Answered[]): string {
  const said = (status: number) => (status === 0 ? 'no answer' : status === -1 ? 'hung' : status)
  return [...Map.groupBy(answered, ({ request }) => request.kind)]
    .toSorted(([a], [b]) => a.localeCompare(b))
    .map(([kind, all]) => {
      const counts = [...Map.groupBy(all, ({ answer }) => answer.status)].toSorted(([a], [b]) => a - b)
      return `  ${kind.padEnd(32)}${counts.map(([status, some]) => `${some.length} x ${said(status)}`).join(', ')}`
    })
    .join('\n')
}

/** Only a connection that we broke ourselves may go without an answer, and only 503 with Retry-After is a fault of ours. */
function complaintOf({ request: { kind, breakOff }, answer: { status, body, retryAfter } }: Answered): string[] {
  if (status === -1) return [`${kind}: hung`]
  if (status === 0) return breakOff ? [] : [`${kind}: no answer`]
  return status < 500 || (status === 503 && retryAfter) ? [] : [`${kind}: ${status} ${body.slice(0, 200)}`]
}

function politeComplaints({ refused, lost, duplicated, wrong }: Verdict): string[] {
  return [
    ...(refused === 0 ? [] : [`a polite client was refused ${refused} times`]),
    ...[...lost, ...duplicated, ...wrong].map((what) => `a polite client: ${what}`),
  ]
}

/** Ids, and whether the payload is as sent where the request left both as they were made. */
async function storedEvents(databaseUrl: string): Promise<Map<string, boolean>> {
  const client = new pg.Client({ connectionString: databaseUrl })
  await client.connect()
  try {
    const { rows } = await client.query<{ id: string; intact: boolean }>(
      `select id, type <> 'fault.good' or id !~ '^[a-z0-9-]+-[0-9]+$' or id like 'mutated-%'
                  or coalesce(data->>'check' = md5(id), true) as intact
       from events where source <> 'polite'`,
    )
    return new Map(rows.map(({ id, intact }) => [id, intact]))
  } finally {
    await client.end()
  }
}

/** Told to be accepted: stored. Told to be refused, as a whole or one by one: not stored. No answer: either. */
function compareStored(answered: Answered[], stored: Map<string, boolean>): string[] {
  const complaints: string[] = []
  for (const { request, answer } of answered) {
    const accepted = new Set(
      outcomesOf(answer)
        .filter(({ status }) => status === 'accepted')
        .map(({ id }) => id),
    )
    for (const id of accepted)
      if (!stored.has(id)) complaints.push(`${request.kind}: ${id} was accepted and is not stored`)
    if (answer.status < 400) continue
    for (const [, id = ''] of request.bytes.toString('latin1').matchAll(/"id":"([\w-]+)"/g))
      if (stored.has(id) && !accepted.has(id))
        complaints.push(`${request.kind}: ${id} was refused with ${answer.status} and is stored`)
  }
  for (const [id, intact] of stored) if (!intact) complaints.push(`${id} changed on the way`)
  return complaints
}

function outcomesOf({ status, body }: Answer): { status: string; id: string }[] {
  if (status < 200) return []
  try {
    return JSON.parse(body).events ?? []
  } catch {
    return []
  }
}
