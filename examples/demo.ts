/**
 * `make demo`: 20,000 realistic events through the whole of Millrace on real servers, and a summary read back from the
 * database whose sums must agree. Mixed types, sizes and forms of request; some sent twice, some that the database
 * refuses (dead letters), which are then fixed and replayed. Exits 1 when a sum is wrong.
 */

import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { createWriteStream } from 'node:fs'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as pause } from 'node:timers/promises'
import { gzipSync } from 'node:zlib'
import cliProgress from 'cli-progress'
import pg from 'pg'
import { migrateDatabase } from '../src/db/migrate.ts'
import { startNats } from '../src/embedded/nats.ts'
import { startPostgres } from '../src/embedded/postgres.ts'

const EVENTS = 20_000
const POISON_EVERY = 500
const DUPLICATE_EVERY = 20
const REJECTED = 25
/** The demo gives up when nothing more happens for this long. */
const STALLED_MS = 60_000

type DemoEvent = { id?: string; source: string; type?: string; subject?: string; time: string; data: unknown }
type Answer = { accepted: number; rejected: number }

const run = Date.now().toString(36)
const source = `/demo/${run}`
const folder = join(process.cwd(), '.millrace/demo')

/** Event `n`: orders, payments, page views with a text of 50 to 2,000 characters. Every 500th order has no sum. */
function makeEvent(n: number): DemoEvent {
  const common = { id: `${run}-${n}`, source, time: new Date().toISOString(), subject: `customer-${n % 500}` }
  if (n % POISON_EVERY === 0) return { ...common, type: 'order.placed', data: { orderId: `o-${n}`, total: 'twelve' } }
  switch (n % 4) {
    case 0:
      return {
        ...common,
        type: 'order.placed',
        data: { orderId: `o-${n}`, total: (n % 9_000) / 100, items: [{ sku: `s-${n % 90}` }] },
      }
    case 1:
      return { ...common, type: 'order.paid', data: { orderId: `o-${n}`, method: 'card', total: (n % 9_000) / 100 } }
    default:
      return {
        ...common,
        type: 'page.viewed',
        data: { path: `/p/${n % 300}`, text: 'lorem ipsum '.repeat(4 + (n % 160)) },
      }
  }
}

/** Starts `millrace api` or `millrace worker` from source and waits for its first word. */
function start(command: string, env: Record<string, string>): Promise<{ child: ChildProcess; port: number }> {
  const child = spawn(process.execPath, ['src/cli.ts', command], {
    env: { ...process.env, ...env },
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  child.stdout!.pipe(createWriteStream(join(folder, `${command}.log`)))
  return new Promise((resolve, reject) => {
    createInterface({ input: child.stdout! }).on('line', (line) => {
      const port = /"port":(\d+)/.exec(line)?.[1]
      if (port !== undefined) resolve({ child, port: Number(port) })
    })
    child.once('exit', () => reject(new Error(`millrace ${command} ended; see ${folder}/${command}.log`)))
  })
}

async function post(
  url: string,
  body: string | Uint8Array<ArrayBuffer>,
  headers: Record<string, string>,
): Promise<Answer> {
  const response = await fetch(`${url}/v1/events`, { method: 'POST', body, headers })
  const answer = (await response.json()) as Answer
  if (response.status !== 202 && response.status !== 400)
    throw new Error(`${response.status}: ${JSON.stringify(answer)}`)
  return answer
}

/** Sends all events, eight requests at a time: single events, arrays, gzipped NDJSON and CloudEvents batches. */
async function ingest(url: string, events: DemoEvent[], progress: (count: number) => void): Promise<Answer> {
  const total: Answer = { accepted: 0, rejected: 0 }
  const waiting = [...events]
  const send = async () => {
    for (let turn = 0; waiting.length > 0; turn++) {
      const form = turn % 4
      const part = waiting.splice(0, form === 0 ? 1 : form === 1 ? 20 : 200)
      const answer =
        form === 0
          ? await post(url, JSON.stringify(part[0]), { 'content-type': 'application/json' })
          : form === 1
            ? await post(url, JSON.stringify(part), { 'content-type': 'application/json' })
            : form === 2
              ? await post(url, new Uint8Array(gzipSync(part.map((event) => JSON.stringify(event)).join('\n'))), {
                  'content-type': 'application/x-ndjson',
                  'content-encoding': 'gzip',
                })
              : await post(url, JSON.stringify(part.map((event) => ({ specversion: '1.0', ...event }))), {
                  'content-type': 'application/cloudevents-batch+json',
                })
      total.accepted += answer.accepted
      total.rejected += answer.rejected
      progress(part.length)
    }
  }
  await Promise.all(Array.from({ length: 8 }, send))
  return total
}

/** Waits until `done`, and fails when `measure` has not moved for a minute. */
async function until(measure: () => Promise<number>, done: (value: number) => boolean): Promise<number> {
  let last = -1
  let movedAt = Date.now()
  for (;;) {
    const value = await measure()
    if (done(value)) return value
    if (value !== last) movedAt = Date.now()
    if (Date.now() - movedAt > STALLED_MS) throw new Error(`nothing has happened for a minute, at ${value}`)
    last = value
    await pause(100)
  }
}

console.log('Starting Postgres and nats-server in .millrace/demo, an API and a worker process ...')
const [postgres, nats] = await Promise.all([
  startPostgres(join(folder, 'postgres'), { detached: true }),
  startNats(join(folder, 'nats'), { detached: true }),
])
const children: ChildProcess[] = []
const db = new pg.Client({ connectionString: postgres.url })
let failed = true
try {
  const env = {
    DATABASE_URL: postgres.url,
    NATS_URL: nats.url,
    HOST: '127.0.0.1',
    PORT: '0',
    API_KEYS: 'off',
    WORKER_PORT: '0',
    RETRY_DELAY_MS: '200',
  }
  await migrateDatabase(postgres.url)
  await db.connect()
  // The rule that makes some events poison: the API has no schema for orders yet, but the database knows better.
  await db.query(`alter table events drop constraint if exists demo_order_has_total`)
  await db.query(`alter table events add constraint demo_order_has_total
                  check (type <> 'order.placed' or jsonb_typeof(data->'total') = 'number') not valid`)
  const api = await start('api', env)
  children.push(api.child)
  children.push((await start('worker', env)).child)
  const url = `http://127.0.0.1:${api.port}`

  const unique = Array.from({ length: EVENTS }, (_, n) => makeEvent(n))
  const again = unique.filter((_, n) => n % DUPLICATE_EVERY === 7)
  const malformed = Array.from({ length: REJECTED }, () => ({ source, time: new Date().toISOString(), data: {} }))
  const sent = [...unique, ...again, ...malformed]
  for (let i = sent.length - 1; i > 0; i--) {
    const j = Math.floor(Math.random() * (i + 1))
    ;[sent[i], sent[j]] = [sent[j]!, sent[i]!]
  }
  const poison = unique.filter((_, n) => n % POISON_EVERY === 0).length

  const bar = new cliProgress.SingleBar(
    { format: '{stage} {bar} {value}/{total} events', hideCursor: true, noTTYOutput: true, notTTYSchedule: 1_000 },
    cliProgress.Presets.shades_classic,
  )
  bar.start(sent.length, 0, { stage: 'sending   ' })
  const answered = await ingest(url, sent, (count) => bar.increment(count))
  const one = async (text: string, values: unknown[] = [source]) => Number((await db.query(text, values)).rows[0].n)
  const committed = () => one('select count(*) as n from events where source = $1')
  const dead = () => one(`select count(*) as n from dead_letter_audit where source = $1 and action = 'recorded'`)
  bar.start(EVENTS, 0, { stage: 'committing' })
  await until(
    async () => {
      const [rows, letters] = [await committed(), await dead()]
      bar.update(rows + letters)
      return rows + letters
    },
    (settled) => settled >= EVENTS,
  )
  bar.stop()
  const committedFirst = await committed()
  const deadLettered = await dead()

  console.log(`\nThe fix: replay the ${deadLettered} dead letters with a patch that gives their orders a sum of 12.`)
  const patch = JSON.stringify([{ op: 'replace', path: '/data/total', value: 12 }])
  const replay = spawn(
    process.execPath,
    ['src/cli.ts', 'dead-letters', 'replay', '--source', source, '--patch', patch, '--by', 'make demo'],
    { env: { ...process.env, ...env }, stdio: ['ignore', 'ignore', 'inherit'] },
  )
  const [code] = await once(replay, 'exit')
  if (code !== 0) throw new Error(`millrace dead-letters replay ended with ${code}`)
  await until(committed, (rows) => rows === EVENTS)
  const replayed = await one(
    `select count(distinct event_id) as n from dead_letter_audit where source = $1 and action = 'replayed'`,
  )
  // Rows of a batch know their commit time as soon as its line is written, a moment later.
  await until(
    () => one('select count(*) as n from events e join batches b on b.id = e.batch_id where e.source = $1'),
    (rows) => rows === EVENTS,
  )
  const { rows } = await db.query(
    `select percentile_cont(array[0.5, 0.99]) within group (
              order by extract(epoch from b.committed_at - e.received_at) * 1000) as ms
     from events e join batches b on b.id = e.batch_id
     where e.source = $1 and e.id not in (select event_id from dead_letter_audit where source = $1)`,
    [source],
  )
  const [p50, p99] = rows[0].ms as [number, number]
  const ignored = answered.accepted - committedFirst - deadLettered
  const line = (name: string, value: string | number) =>
    console.log(`  ${name.padEnd(26)} ${String(value).padStart(8)}`)
  console.log('\nRead back from the database:')
  line('accepted by the API', answered.accepted)
  line('rejected by the API', answered.rejected)
  line('committed at first', committedFirst)
  line('duplicates ignored', ignored)
  line('dead-lettered', deadLettered)
  line('replayed after the fix', replayed)
  line('rows now', await committed())
  line('queue latency p50, ms', p50.toFixed(1))
  line('queue latency p99, ms', p99.toFixed(1))

  const checks: [string, boolean][] = [
    ['every event sent was accepted or rejected', answered.accepted + answered.rejected === sent.length],
    ['exactly the malformed ones were rejected', answered.rejected === REJECTED],
    ['exactly the poison was dead-lettered', deadLettered === poison],
    ['exactly the events sent twice were ignored', ignored === again.length],
    [
      'accepted = committed + duplicates + dead-lettered',
      answered.accepted === committedFirst + ignored + deadLettered,
    ],
    ['all dead letters were replayed and committed', replayed === poison && (await committed()) === EVENTS],
  ]
  console.log('')
  for (const [name, good] of checks) console.log(`  ${good ? 'ok   ' : 'WRONG'} ${name}`)
  failed = checks.some(([, good]) => !good)
} finally {
  await db.end()
  await Promise.all(children.map(async (child) => child.kill('SIGTERM') && once(child, 'exit')))
  await Promise.all([postgres.stop(), nats.stop()])
}
process.exit(failed ? 1 : 0)
