/** Processes of a benchmark: started, metered from /proc, stopped. */

import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { readdirSync, readFileSync } from 'node:fs'
import { createInterface } from 'node:readline'

/** Linux counts CPU time in ticks of 10 ms for every process. */
export const TICK_MS = 10

export type Meter = { cpuMs: () => number; memoryPeakBytes: () => number }

/** Meters a process with its children, the ended ones too: a Postgres connection is one. */
export function meter(pid: number): Meter {
  return {
    cpuMs: () => {
      const own = stat(pid)
      if (own === undefined) return 0
      const children = readdirSync('/proc').filter((name) => /^\d+$/.test(name))
      const living = children.map((child) => stat(Number(child))).filter((child) => child?.parent === pid)
      return living.reduce((sum, child) => sum + child!.cpuMs, own.cpuMs + own.endedChildrenMs)
    },
    memoryPeakBytes: () => Number(/VmHWM:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1] ?? 0) * 1024,
  }
}

/** See proc_pid_stat(5): fields 4 (ppid), 14-17 (utime, stime, cutime, cstime), counted here behind the name's `)`. */
function stat(pid: number): { parent: number; cpuMs: number; endedChildrenMs: number } | undefined {
  try {
    const fields = readFileSync(`/proc/${pid}/stat`, 'utf8')
      .replace(/^.*\) /, '')
      .split(' ')
      .map(Number)
    return {
      parent: fields[1]!,
      cpuMs: (fields[11]! + fields[12]!) * TICK_MS,
      endedChildrenMs: (fields[13]! + fields[14]!) * TICK_MS,
    }
  } catch {
    return undefined
  }
}

/** Starts a TypeScript file under the same Node. */
export function startNode(args: string[], env: Record<string, string> = {}): ChildProcess {
  return spawn(process.execPath, args, { env: { ...process.env, ...env }, stdio: ['ignore', 'pipe', 'inherit'] })
}

/** Runs a TypeScript file to its end and reads its last line as JSON. */
export async function runNode<T>(args: string[], env: Record<string, string> = {}): Promise<T> {
  const child = startNode(args, env)
  let output = ''
  child.stdout!.on('data', (chunk) => (output += chunk))
  const [code] = await once(child, 'close')
  if (code !== 0) throw new Error(`${args[0]} ended with ${code}: ${output}`)
  return JSON.parse(output.trim().split('\n').at(-1)!) as T
}

/** The first line of a child's output that matches. */
export async function line(child: ChildProcess, pattern: RegExp): Promise<RegExpExecArray> {
  for await (const text of createInterface({ input: child.stdout! })) {
    const found = pattern.exec(text)
    if (found) {
      child.stdout!.resume()
      return found
    }
  }
  throw new Error(`a process ended before it said ${pattern}`)
}

export async function stopNode(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null) return
  const exit = once(child, 'exit')
  child.kill('SIGTERM')
  await exit
}
