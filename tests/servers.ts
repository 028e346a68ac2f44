/**
 * The servers a test file owns: its own Postgres and nats-server on free ports over a temporary folder, gone when it
 * ends. Postgres is copied from a cluster that was initialised and migrated once per version of migrations/.
 */

import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, renameSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { connectBroker } from '../src/broker/connect.ts'
import { type Config, loadConfig } from '../src/config.ts'
import { connectDatabase } from '../src/db/connect.ts'
import { migrateDatabase } from '../src/db/migrate.ts'
import { startNats } from '../src/embedded/nats.ts'
import { startPostgres } from '../src/embedded/postgres.ts'

const ROOT = fileURLToPath(new URL('..', import.meta.url))

/** Root runs Postgres as `nobody`, who must be able to reach the folder. */
export function temporaryFolder(name: string): string {
  const dir = mkdtempSync(join(tmpdir(), `millrace-${name}-`))
  chmodSync(dir, 0o755)
  return dir
}

async function migratedTemplate(): Promise<string> {
  const hash = createHash('sha256')
  for (const path of [join(ROOT, 'migrations'), join(ROOT, 'src/db')])
    for (const file of readdirSync(path, { recursive: true, withFileTypes: true }))
      if (file.isFile()) hash.update(file.name).update(readFileSync(join(file.parentPath, file.name)))
  const uid = process.getuid?.() ?? 0
  const template = join(tmpdir(), `millrace-template-${uid}-${hash.digest('hex').slice(0, 16)}`)
  if (existsSync(template)) return template
  const draft = temporaryFolder('template')
  const postgres = await startPostgres(join(draft, 'pg'), { settings: { fsync: 'off' } })
  await migrateDatabase(postgres.url)
  await postgres.stop()
  try {
    renameSync(draft, template)
  } catch {
    // Another test file made it first; a rename onto a full folder fails.
    rmSync(draft, { recursive: true, force: true })
  }
  return template
}

/** A migrated Postgres over `dir`, which a test may stop, kill and start again on the same port. */
export async function startTestPostgres(dir: string, options: Parameters<typeof startPostgres>[1] = {}) {
  if (!existsSync(dir)) {
    mkdirSync(join(dir, '..'), { recursive: true })
    const from = join(await migratedTemplate(), 'pg')
    // `cp -a` keeps the owner, without which Postgres refuses the folder.
    execFileSync('cp', ['-a', from, dir])
  }
  return startPostgres(dir, options)
}

export type Servers = Awaited<ReturnType<typeof startServers>>

/**
 * Starts both servers and connects to both.
 * @param env  variables over the defaults of src/config.ts
 */
export async function startServers(env: Record<string, string> = {}) {
  const dir = temporaryFolder('test')
  process.once('exit', () => rmSync(dir, { recursive: true, force: true }))
  const [postgres, nats] = await Promise.all([startTestPostgres(join(dir, 'pg')), startNats(join(dir, 'nats'))])
  // A test that dies leaves no server behind.
  process.once('exit', () => {
    postgres.process.kill('SIGKILL')
    nats.process.kill('SIGKILL')
  })
  const config: Config = loadConfig({
    PORT: '0',
    API_KEYS: 'off',
    HOST: '127.0.0.1',
    LOG_LEVEL: 'silent',
    ...env,
    DATABASE_URL: postgres.url,
    NATS_URL: nats.url,
  })
  const database = connectDatabase(config)
  const broker = await connectBroker(config, 'test')
  return {
    dir,
    config,
    postgres,
    nats,
    database,
    db: database.db,
    broker,
    stop: async () => {
      await broker.close()
      await database.close()
      await Promise.all([postgres.stop(), nats.stop()])
    },
  }
}
