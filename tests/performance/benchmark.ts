/**
 * `make benchmark`: Locust's users against a Millrace, then the figures from the database.
 * 1. the service: the one at BENCHMARK_URL, or one started here
 * 2. Locust, headless, while the queue's depth is sampled
 * 3. when the queue is empty, the sums and latencies (measure.ts)
 * 4. summary.json, report.html, the terminal; what moved since the report before
 * Exits 1 where a request failed or the sums differ.
 */

import { spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { existsSync, mkdirSync, openSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { availableParallelism, loadavg } from 'node:os'
import { join, relative } from 'node:path'
import { setTimeout as pause } from 'node:timers/promises'
import { fileURLToPath, pathToFileURL } from 'node:url'
import pg from 'pg'
import { type Broker, connectBroker } from '../../src/broker/connect.ts'
import { CONSUMER, STREAM } from '../../src/broker/streams.ts'
import { operatorConfig } from '../../src/commands/operator-config.ts'
import { benchmarkPage, benchmarkText, type Earlier } from './benchmark-page.ts'
import { positive } from './environment.ts'
import { readable } from './format.ts'
import { loadLedger, measure } from './measure.ts'
import { dataFolder, ownService, type Service } from './service.ts'
import { compareRuns, type DepthSample, differences, type Summary } from './summary.ts'

const here = (path: string) => fileURLToPath(new URL(path, import.meta.url))
const SAMPLE_MS = 250
/** A queue that has not emptied this long after the load is reported as it is. */
const DRAIN_MS_MAX = 60_000

const users = positive('BENCHMARK_USERS', 50)
const seconds = positive('BENCHMARK_SECONDS', 60)
const reports = process.env.BENCHMARK_REPORTS ?? here('../reports')

/** The running service that BENCHMARK_URL names, whose servers are those of the environment or of `millrace dev`; or a fresh one. */
async function findService(logFolder: string): Promise<Service> {
  const url = process.env.BENCHMARK_URL
  if (!url) return ownService(dataFolder(), logFolder)
  const { DATABASE_URL: databaseUrl, NATS_URL: natsUrl } = await operatorConfig()
  return { url: url.replace(/\/$/, ''), databaseUrl, natsUrl, own: false, stop: async () => {} }
}

async function readDepth({ jsm }: Broker): Promise<Omit<DepthSample, 'atS'>> {
  const { num_pending, num_ack_pending } = await jsm.consumers.info(STREAM, CONSUMER)
  return { waiting: num_pending, unacknowledged: num_ack_pending }
}

/** Samples until the signal; times are s since 1970. A server too busy to answer in time leaves a gap. */
async function sampleDepth(broker: Broker, signal: AbortSignal): Promise<DepthSample[]> {
  const samples: DepthSample[] = []
  while (!signal.aborted) {
    const depth = await readDepth(broker).catch(() => undefined)
    if (depth !== undefined) samples.push({ atS: Date.now() / 1_000, ...depth })
    await pause(SAMPLE_MS, undefined, { signal }).catch(() => {})
  }
  return samples
}

async function untilDrained(broker: Broker): Promise<void> {
  const deadline = Date.now() + DRAIN_MS_MAX
  for (;;) {
    const { waiting, unacknowledged } = await readDepth(broker)
    if (waiting + unacknowledged === 0) return
    if (Date.now() > deadline) return console.log(`The queue still holds ${readable(waiting + unacknowledged)} events`)
    await pause(SAMPLE_MS)
  }
}

/** Locust exits 1 for failed requests; those are in the ledger. */
async function runLocust({ url, own }: Service, folder: string, runId: string): Promise<void> {
  const log = openSync(join(folder, 'locust.log'), 'w')
  const flags = ['--headless', '--users', `${users}`, '--spawn-rate', `${users}`, '--run-time', `${seconds}s`]
  const files = ['--html', join(folder, 'locust.html'), '--csv', join(folder, 'locust'), '--csv-full-history']
  const child = spawn(
    here('../../.venv/bin/locust'),
    ['-f', here('locustfile.py'), '--host', url, ...flags, '--stop-timeout', '10', '--only-summary', ...files],
    {
      stdio: ['ignore', log, log],
      env: {
        BENCHMARK_POISON: String(own),
        ...process.env,
        BENCHMARK_LEDGER: join(folder, 'ledger.jsonl'),
        BENCHMARK_RUN_ID: runId,
      },
    },
  )
  process.once('exit', () => child.kill('SIGKILL'))
  const code = await new Promise<number | null>((resolve, reject) => child.once('error', reject).once('exit', resolve))
  if (code !== 0 && code !== 1) throw new Error(`Locust ended with ${code}: see ${join(folder, 'locust.log')}`)
}

/** The newest summary among the reports, preferring one of the same users and length. */
function findEarlier(now: Summary): Earlier | null {
  const all = readdirSync(reports)
    .filter((name) => name.startsWith('benchmark-') && existsSync(join(reports, name, 'summary.json')))
    .sort()
    .map((name): Summary => JSON.parse(readFileSync(join(reports, name, 'summary.json'), 'utf8')))
  const alike = all.findLast(({ run }) => run.users === now.run.users && run.seconds === now.run.seconds)
  const before = alike ?? all.at(-1)
  if (before === undefined) return null
  return { startedAt: before.run.startedAt, differs: differences(before, now), moves: compareRuns(before, now) }
}

async function main(): Promise<void> {
  const runId = randomBytes(6).toString('hex')
  const loadBefore = loadavg()[0]!
  const startedAt = new Date().toISOString()
  const folder = join(reports, `benchmark-${startedAt.slice(0, 19).replace(/[-:]/g, '').replace('T', '-')}`)
  mkdirSync(folder, { recursive: true })
  const service = await findService(folder)
  const broker = await connectBroker({ NATS_URL: service.natsUrl }, 'benchmark')
  console.log(`${users} users for ${seconds} s on ${service.url}`)
  const sampling = new AbortController()
  const sampled = sampleDepth(broker, sampling.signal)
  await runLocust(service, folder, runId)
  await untilDrained(broker)
  sampling.abort()
  const client = new pg.Client({ connectionString: service.databaseUrl, application_name: 'millrace benchmark' })
  await client.connect()
  await loadLedger(client, join(folder, 'ledger.jsonl'))
  const { startS, ...measured } = await measure(client, runId)
  const depth = (await sampled).map((sample) => ({ ...sample, atS: sample.atS - startS })).filter(({ atS }) => atS >= 0)
  const version = await client.query('show server_version')
  const summary: Summary = {
    run: {
      id: runId,
      startedAt,
      seconds,
      users,
      url: process.env.BENCHMARK_URL || null,
      cores: availableParallelism(),
      loadBefore,
      node: process.versions.node,
      postgres: version.rows[0].server_version,
      nats: broker.nc.info!.version,
    },
    ...measured,
    timeline: { ...measured.timeline, depth },
  }
  await client.end()
  await broker.close()
  await service.stop()

  const earlier = findEarlier(summary)
  writeFileSync(join(folder, 'summary.json'), `${JSON.stringify(summary, null, 1)}\n`)
  writeFileSync(join(folder, 'report.html'), benchmarkPage(summary, earlier))
  console.log(`\n${benchmarkText(summary, earlier)}\n`)
  console.log(
    `Report: ${pathToFileURL(join(folder, 'report.html'))}, with Locust's own files in ${relative('.', folder)}`,
  )
  process.exit(summary.checks.every(({ holds }) => holds) ? 0 : 1)
}

await main()
