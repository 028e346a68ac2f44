import { setTimeout as pause } from 'node:timers/promises'

/**
 * Asks until `met` says yes.
 * @throws when it has not within `ms`, or what `met` throws
 */
export async function waitFor(what: string, ms: number, met: () => boolean | Promise<boolean>): Promise<void> {
  const deadline = performance.now() + ms
  while (!(await met())) {
    if (performance.now() > deadline) throw new Error(`waited ${ms} ms for ${what}`)
    await pause(25)
  }
}
