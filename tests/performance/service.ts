/**
 * A Millrace of the benchmark's own: Postgres and nats-server over a folder of the checkout (the disk that matters, not a
 * temporary one in memory), fsync on, API and worker as processes of their own, all gone when the benchmark ends.
 */

import { type ChildProcess, spawn } from 'node:child_process'
import { chmodSync, mkdirSync, openSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as pause } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import pg from 'pg'
import { migrateDatabase } from '../../src/db/migrate.ts'
import { startNats } from '../../src/embedded/nats.ts'
import { freePort } from '../../src/embedded/port.ts'
import { startPostgres, stopChild } from '../../src/embedded/postgres.ts'

const ROOT = fileURLToPath(new URL('../..', import.meta.url))

/** Ctrl-C ends us by `exit`, so that the exit handlers below run. */
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => process.exit(1))

/** A folder for servers' data under .millrace/, removed when this process exits. */
export function dataFolder(): string {
  const dir = join(ROOT, '.millrace', `benchmark-${process.pid}`)
  mkdirSync(dir, { recursive: true })
  // Root runs Postgres as `nobody`, who must be able to reach the folder.
  chmodSync(dir, 0o755)
  process.once('exit', () => rmSync(dir, { recursive: true, force: true }))
  return dir
}

const started = new Set<ChildProcess>()
process.once('exit', () => {
  for (const child of started) child.kill('SIGKILL')
})

function killAtExit<T extends { process: ChildProcess }>(server: T): T {
  started.add(server.process)
  server.process.once('exit', () => started.delete(server.process))
  return server
}

/** Postgres, migrated, whose database `millrace` may serve as a template. */
export async function ownPostgres(dir: string) {
  const postgres = killAtExit(await startPostgres(join(dir, 'postgres'), { detached: true }))
  await migrateDatabase(postgres.url)
  return postgres
}

/** nats-server with an empty store, and the port of its monitoring pages. */
export async function ownNats(dir: string) {
  const monitorPort = await freePort()
  const more = `http: "127.0.0.1:${monitorPort}"`
  return { ...killAtExit(await startNats(dir, { more, detached: true })), monitor: `http://127.0.0.1:${monitorPort}` }
}

/** Runs one statement. */
export async function once(
  databaseUrl: string,
  statement: string,
  values: unknown[] = [],
): Promise<pg.QueryResultRow[]> {
  const client = new pg.Client({ connectionString: databaseUrl })
  await client.connect()
  try {
    return (await client.query(statement, values)).rows
  } finally {
    await client.end()
  }
}

/**
 * Starts `millrace api` or `millrace worker`; what it logs goes to `logFile`. If it ends by itself so do we.
 * @returns `stop`, which waits until it has finished what it had in hand
 */
export function ownProcess(command: 'api' | 'worker', env: Record<string, string>, logFile: string) {
  const log = openSync(logFile, 'a')
  const child = spawn(process.execPath, [join(ROOT, 'src/cli.ts'), command], {
    cwd: ROOT,
    env: { ...process.env, LOG_LEVEL: 'warn', HOST: '127.0.0.1', WORKER_PORT: '0', API_KEYS: 'off', ...env },
    stdio: ['ignore', log, log],
    detached: true,
  })
  let stopping = false
  child.once('exit', (code) => {
    if (stopping) return
    console.error(`millrace ${command} ended with ${code}: see ${logFile}`)
    process.exit(1)
  })
  const stop = () => {
    stopping = true
    return stopChild(child, 'SIGTERM')
  }
  return { ...killAtExit({ process: child }), stop }
}

/** @throws Error when it does not answer within 30 s */
async function untilHealthy(url: string): Promise<void> {
  const deadline = Date.now() + 30_000
  for (;;) {
    const answer = await fetch(`${url}/readyz`).catch(() => undefined)
    if (answer?.ok) return
    if (Date.now() > deadline) throw new Error(`${url}/readyz does not answer`)
    await pause(50)
  }
}

/** As a rule that the owner of a database might add: what breaks it becomes a dead letter. */
const addPoisonRule = `alter table events add constraint no_poison check (type <> 'benchmark.poison')`

export type Service = { url: string; databaseUrl: string; natsUrl: string; own: boolean; stop: () => Promise<void> }

/** Starts the whole service over `dir`, with its logs in `logFolder`. */
export async function ownService(dir: string, logFolder: string): Promise<Service> {
  const [postgres, nats, port] = await Promise.all([ownPostgres(dir), ownNats(join(dir, 'nats')), freePort()])
  await once(postgres.url, addPoisonRule)
  const env = { DATABASE_URL: postgres.url, NATS_URL: nats.url, PORT: String(port) }
  const api = ownProcess('api', env, join(logFolder, 'api.log'))
  const worker = ownProcess('worker', env, join(logFolder, 'worker.log'))
  const url = `http://127.0.0.1:${port}`
  await untilHealthy(url)
  return {
    url,
    databaseUrl: postgres.url,
    natsUrl: nats.url,
    own: true,
    stop: async () => {
      await Promise.all([api.stop(), worker.stop()])
      await Promise.all([nats.stop(), postgres.stop()])
    },
  }
}
