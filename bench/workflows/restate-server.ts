/** Restate's own server as a child process on loopback, over a folder of its own. */

import { type ChildProcess, spawn } from 'node:child_process'
import { mkdirSync } from 'node:fs'
import { createRequire } from 'node:module'
import { setTimeout as pause } from 'node:timers/promises'
import { freePort } from '../../src/embedded/port.ts'
import { stopChild } from '../../src/embedded/postgres.ts'

export type RestateServer = { ingressUrl: string; adminUrl: string; process: ChildProcess; stop: () => Promise<void> }

/**
 * Default settings, which sync the log's WAL before an answer (`log-server.rocksdb-disable-wal-fsync = false`), but for
 * `partitions`.
 */
export async function startRestate(dir: string, partitions: number): Promise<RestateServer> {
  mkdirSync(dir, { recursive: true })
  const binary = createRequire(import.meta.url).resolve(
    `@restatedev/restate-server-${process.platform}-${process.arch}/bin/restate-server`,
  )
  const [ingress, admin, node] = [await freePort(), await freePort(), await freePort()]
  const child = spawn(binary, ['--base-dir', dir, '--node-name', 'bench', '--no-logo'], {
    cwd: dir,
    stdio: ['ignore', 'pipe', 'pipe'],
    env: {
      ...process.env,
      DO_NOT_TRACK: '1',
      RESTATE_DISABLE_TELEMETRY: 'true',
      RESTATE_LISTEN_MODE: 'tcp',
      RESTATE_BIND_IP: '127.0.0.1',
      RESTATE_BIND_PORT: String(node),
      RESTATE_INGRESS__BIND_PORT: String(ingress),
      RESTATE_ADMIN__BIND_PORT: String(admin),
      RESTATE_DEFAULT_NUM_PARTITIONS: String(partitions),
      RESTATE_LOG_FILTER: 'warn',
    },
  })
  let lastWords = ''
  const listen = (chunk: Buffer) => {
    lastWords = (lastWords + chunk).slice(-4_000)
  }
  child.stdout.on('data', listen)
  child.stderr.on('data', listen)
  const ingressUrl = `http://127.0.0.1:${ingress}`
  const adminUrl = `http://127.0.0.1:${admin}`
  const deadline = Date.now() + 60_000
  for (const url of [`${adminUrl}/health`, `${ingressUrl}/restate/health`])
    while (!(await answers(url))) {
      if (child.exitCode !== null || Date.now() > deadline) {
        await stopChild(child, 'SIGKILL')
        throw new Error(`restate-server did not start: ${lastWords}`)
      }
      await pause(100)
    }
  return { ingressUrl, adminUrl, process: child, stop: () => stopChild(child, 'SIGTERM') }
}

async function answers(url: string): Promise<boolean> {
  try {
    return (await fetch(url)).ok
  } catch {
    return false
  }
}

/** Tells the server where the worker listens. */
export async function registerEndpoint(server: RestateServer, port: number): Promise<void> {
  const answer = await fetch(`${server.adminUrl}/deployments`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ uri: `http://127.0.0.1:${port}` }),
  })
  if (!answer.ok) throw new Error(`restate-server refused the worker: ${answer.status} ${await answer.text()}`)
}

/** One number by SQL over Restate's own tables. */
export async function countRestate(server: RestateServer, query: string): Promise<number> {
  const answer = await fetch(`${server.adminUrl}/query`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', accept: 'application/json' },
    body: JSON.stringify({ query }),
  })
  if (!answer.ok) throw new Error(`restate-server refused the query: ${answer.status} ${await answer.text()}`)
  const { rows } = (await answer.json()) as { rows: { n: number }[] }
  return Number(rows[0]?.n)
}
