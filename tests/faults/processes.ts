/** Millrace processes as a test sees them: real children, run from source, which can be killed, paused and stopped. */

import { type ChildProcess, spawn } from 'node:child_process'
import { readdirSync, readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { freePort } from '../../src/embedded/port.ts'
import { waitFor } from './wait.ts'

const CLI = fileURLToPath(new URL('../../src/cli.ts', import.meta.url))
const LOG_CHARS_MAX = 20_000

type Exit = { code: number | null; signal: NodeJS.Signals | null }

export type Child = {
  pid: number
  process: ChildProcess
  /** The end of what it printed. */
  log: () => string
  exited: Promise<Exit>
  running: () => boolean
  signal: (name: NodeJS.Signals) => void
}

/** Every child of this test, so that none outlives it. */
const children = new Set<ChildProcess>()
process.once('exit', () => {
  for (const child of children) child.kill('SIGKILL')
})

export function startChild(file: string, args: string[], env: Record<string, string>): Child {
  const child = spawn(process.execPath, [file, ...args], {
    env: { PATH: process.env.PATH, ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  children.add(child)
  let log = ''
  const keep = (chunk: Buffer) => {
    log = (log + chunk).slice(-LOG_CHARS_MAX)
  }
  child.stdout.on('data', keep)
  child.stderr.on('data', keep)
  const exited = new Promise<Exit>((resolve) =>
    child.once('exit', (code, signal) => {
      children.delete(child)
      resolve({ code, signal })
    }),
  )
  return {
    pid: child.pid!,
    process: child,
    log: () => log,
    exited,
    running: () => child.exitCode === null && child.signalCode === null,
    signal: (name) => void child.kill(name),
  }
}

export type Service = {
  name: string
  url: string
  child: () => Child
  start: () => Promise<void>
  kill: () => Promise<void>
  signal: (name: NodeJS.Signals) => void
}

/** `millrace api` on a port that it keeps over restarts, or `millrace worker`. `start` returns once it serves. */
export async function createService(command: 'api' | 'worker', env: Record<string, string>): Promise<Service> {
  const port = command === 'api' ? await freePort() : 0
  const url = `http://127.0.0.1:${port}`
  let child: Child | undefined
  const current = () => {
    if (!child) throw new Error(`${command} was never started`)
    return child
  }

  async function start(): Promise<void> {
    child = startChild(CLI, [command], {
      ...env,
      PORT: String(port),
      WORKER_PORT: '0',
      API_KEYS: env.API_KEYS ?? 'off',
      HOST: '127.0.0.1',
      LOG_LEVEL: 'info',
    })
    const started = child
    const ready = command === 'api' ? 'listening' : 'pulling'
    await waitFor(`${command} to start`, 60_000, () => {
      if (!started.running()) throw new Error(`${command} ended at its start: ${started.log()}`)
      return started.log().includes(`"${ready}"`)
    })
  }

  return {
    name: command,
    url,
    child: current,
    start,
    signal: (name) => current().signal(name),
    kill: async () => {
      current().signal('SIGKILL')
      await current().exited
    },
  }
}

/** Processes whose parent is `pid`: the backends of a postmaster. */
export function childrenOf(pid: number): number[] {
  return readdirSync('/proc').flatMap((name) => {
    if (!/^\d+$/.test(name)) return []
    try {
      // The command in parentheses may hold spaces; the fields after it are state and parent.
      const stat = readFileSync(`/proc/${name}/stat`, 'utf8')
      const parent = Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[1])
      return parent === pid ? [Number(name)] : []
    } catch {
      return []
    }
  })
}

/** Resident memory in MB and open file descriptors of a process. */
export function footprint(pid: number): { memoryMb: number; files: number } {
  const status = readFileSync(`/proc/${pid}/status`, 'utf8')
  return {
    memoryMb: Number(/^VmRSS:\s+(\d+)/m.exec(status)?.[1] ?? 0) / 1_024,
    files: readdirSync(`/proc/${pid}/fd`).length,
  }
}
