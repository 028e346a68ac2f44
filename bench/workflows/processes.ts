/** Child processes of the benchmark: how they are started and asked, and the CPU time they used (Linux's /proc). */

import { type ChildProcess, execFileSync, fork } from 'node:child_process'
import { readdirSync, readFileSync } from 'node:fs'
import type { Command } from './load.ts'

export type Child = {
  pid: number
  process: ChildProcess
  ask: <T>(command: Command) => Promise<T>
  stop: () => Promise<void>
}

/** Forks `file` with `env` added; resolves when it says that it is ready. A child that dies rejects what was asked. */
export async function startChild(file: URL, env: Record<string, string> = {}): Promise<Child> {
  const child = fork(file, { env: { ...process.env, ...env }, stdio: ['ignore', 'inherit', 'inherit', 'ipc'] })
  const exited = new Promise<void>((resolve) => child.once('exit', () => resolve()))
  const next = <T>() =>
    new Promise<T>((resolve, reject) => {
      const died = (code: number | null) => reject(new Error(`${file.pathname} ended early with ${code}`))
      child.once('exit', died)
      child.once('message', (message: { result: T; error?: string }) => {
        child.off('exit', died)
        if (message.error === undefined) resolve(message.result)
        else reject(new Error(message.error))
      })
    })
  await next()
  const ask = <T>(command: Command) => {
    const answer = next<T>()
    child.send(command)
    return answer
  }
  return {
    pid: child.pid!,
    process: child,
    ask,
    stop: async () => {
      if (child.connected) child.send({ kind: 'stop' })
      const late = setTimeout(() => child.kill('SIGKILL'), 15_000)
      await exited
      clearTimeout(late)
    },
  }
}

const ticksPerSecond = Number(execFileSync('getconf', ['CLK_TCK'], { encoding: 'utf8' }))

/** CPU seconds (user and system) that `pid` and its living children used, and those of children it has reaped. */
export function cpuSeconds(pid: number): number {
  const parentOf = new Map<number, number>()
  const ticksOf = new Map<number, number>()
  for (const name of readdirSync('/proc')) {
    if (!/^\d+$/.test(name)) continue
    try {
      const stat = readFileSync(`/proc/${name}/stat`, 'utf8')
      // The command name may hold spaces: fields are counted from its closing bracket (proc(5)).
      const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
      parentOf.set(Number(name), Number(fields[1]))
      ticksOf.set(Number(name), Number(fields[11]) + Number(fields[12]) + Number(fields[13]) + Number(fields[14]))
    } catch {
      // It ended between the two reads.
    }
  }
  let ticks = ticksOf.get(pid) ?? 0
  for (const [child, parent] of parentOf) if (parent === pid) ticks += ticksOf.get(child) ?? 0
  return ticks / ticksPerSecond
}

export function residentMiB(pid: number): number {
  const kib = /^VmRSS:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]
  return Number(kib) / 1024
}
