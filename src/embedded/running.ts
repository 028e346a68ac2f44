/**
 * Where the servers of a running `millrace dev` are, so that `millrace trace` and the like, started beside it without
 * any variable set, ask the same ones.
 */

import { readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

export type RunningServers = { DATABASE_URL: string; NATS_URL: string }

const file = (folder: string) => join(folder, 'running.json')

/** @returns what forgets it again */
export function announceServers(folder: string, servers: RunningServers): () => void {
  writeFileSync(file(folder), JSON.stringify({ ...servers, pid: process.pid }))
  return () => rmSync(file(folder), { force: true })
}

/** The servers announced in `folder`, if the process that did so still runs. */
export function findServers(folder: string): RunningServers | undefined {
  try {
    const { pid, ...servers } = JSON.parse(readFileSync(file(folder), 'utf8')) as RunningServers & { pid: number }
    process.kill(pid, 0)
    return servers
  } catch {
    // There is none, or it was killed.
    return undefined
  }
}
