/** A real nats-server with JetStream as a child process, for `millrace dev`, the tests and the benchmarks. */

import { spawn } from 'node:child_process'
import { existsSync, mkdirSync, writeFileSync } from 'node:fs'
import { connect } from 'node:net'
import { join } from 'node:path'
import { setTimeout as pause } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { MillraceError } from '../errors.ts'
import { freePort } from './port.ts'
import { type EmbeddedServer, stopChild } from './postgres.ts'

/** Where `make` installs the server. */
const LOCAL = fileURLToPath(new URL('../../.venv/bin/nats-server', import.meta.url))

/**
 * Starts nats-server on loopback over `dir`. `sync_interval: always` makes it fsync before it acknowledges, which
 * promise 1 rests on.
 * @param detached as in startPostgres
 * @param more  further lines for its configuration file: a cluster, limits
 * @throws MillraceError `unavailable` with the server's own last words
 */
export async function startNats(
  dir: string,
  { port, more = '', detached = false }: { port?: number; more?: string; detached?: boolean } = {},
): Promise<EmbeddedServer> {
  mkdirSync(dir, { recursive: true })
  const chosen = port ?? (await freePort())
  const file = join(dir, 'nats.conf')
  writeFileSync(
    file,
    `listen: "127.0.0.1:${chosen}"
max_payload: 8MB
jetstream { store_dir: "${join(dir, 'jetstream')}", sync_interval: always, max_file_store: 1TB, max_memory_store: 1GB }
${more}
`,
  )
  const child = spawn(existsSync(LOCAL) ? LOCAL : 'nats-server', ['-c', file], {
    stdio: ['ignore', 'ignore', 'pipe'],
    detached,
  })
  let lastWords = ''
  let failed: Error | undefined
  child.on('error', (error) => {
    failed = error
  })
  child.stderr.on('data', (chunk) => {
    lastWords = (lastWords + chunk).slice(-4_000)
  })
  const url = `nats://127.0.0.1:${chosen}`
  const deadline = Date.now() + 30_000
  for (;;) {
    if (failed || child.exitCode !== null || child.signalCode !== null || Date.now() > deadline)
      throw new MillraceError(
        'unavailable',
        `nats-server did not start (make install gets it): ${failed?.message ?? lastWords}`,
      )
    if (await greets(chosen)) break
    await pause(15)
  }
  return { url, port: chosen, process: child, stop: () => stopChild(child, 'SIGINT') }
}

/** Whether a server greets with its INFO, which it does before it asks for TLS or credentials. */
function greets(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(port, '127.0.0.1')
    const end = (greeted: boolean) => {
      socket.destroy()
      resolve(greeted)
    }
    socket.setTimeout(2_000, () => end(false))
    socket.once('data', (bytes) => end(bytes.toString().startsWith('INFO ')))
    socket.once('error', () => end(false))
    socket.once('close', () => end(false))
  })
}
