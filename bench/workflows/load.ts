/**
 * The starter's half of the benchmark: runs in the starter process of each contestant and takes orders over IPC.
 *
 * A closed loop: `concurrency` callers, each starts a workflow under a new id, awaits its result, checks it, and goes on.
 */

import { checkReceipt, type Order, type Receipt, type StepTimes } from './task.ts'

export type Command =
  | { kind: 'load'; round: string; concurrency: number; ms: number }
  | { kind: 'long'; id: string; steps: number }
  | { kind: 'sleepers'; round: string; count: number; firstDueAt: number; spreadMs: number }
  | { kind: 'stop' }

export type LoadResult = { done: number; elapsedMs: number; latenciesMs: number[] }
export type LongResult = { elapsedMs: number; marks: number[] }
export type SleepersResult = { startedMs: number }

type Starter = {
  /** Starts the three-step workflow under this id and waits for its result. */
  order: (order: Order) => Promise<Receipt>
  /** Runs one workflow of so many steps, one after another. */
  long: (id: string, steps: number) => Promise<StepTimes>
  /** Starts a workflow that sleeps until `dueAt` and returns the time it woke. */
  sleeper?: (id: string, dueAt: number) => Promise<void>
  stop: () => Promise<void>
}

async function load(starter: Starter, round: string, concurrency: number, ms: number): Promise<LoadResult> {
  const latenciesMs: number[] = []
  const startedAt = performance.now()
  let next = 0
  await Promise.all(
    Array.from({ length: concurrency }, async () => {
      while (performance.now() - startedAt < ms) {
        const n = next++
        const order = { id: `${round}-${n}`, amount: n }
        const from = performance.now()
        const receipt = await starter.order(order)
        latenciesMs.push(performance.now() - from)
        checkReceipt(order, receipt)
      }
    }),
  )
  return { done: latenciesMs.length, elapsedMs: performance.now() - startedAt, latenciesMs }
}

async function long(starter: Starter, id: string, steps: number): Promise<LongResult> {
  const from = performance.now()
  const result = await starter.long(id, steps)
  const elapsedMs = performance.now() - from
  const expected = (steps * (steps + 1)) / 2
  if (result.steps !== steps || result.sum !== expected)
    throw new Error(`the long run counted ${result.steps} steps and ${result.sum}, not ${steps} and ${expected}`)
  return { elapsedMs, marks: result.marks }
}

async function sleepers(
  starter: Starter,
  { round, count, firstDueAt, spreadMs }: Extract<Command, { kind: 'sleepers' }>,
): Promise<SleepersResult> {
  const { sleeper } = starter
  if (!sleeper) throw new Error('this contestant is not asked to sleep')
  const from = performance.now()
  let next = 0
  await Promise.all(
    Array.from({ length: 1_024 }, async () => {
      while (next < count) {
        const n = next++
        await sleeper(`${round}-${n}`, firstDueAt + Math.floor((n * spreadMs) / count))
      }
    }),
  )
  return { startedMs: performance.now() - from }
}

/** Answers commands one at a time until `stop`. */
export function takeCommands(starter: Starter): void {
  const answer = async (command: Command): Promise<unknown> => {
    switch (command.kind) {
      case 'load':
        return load(starter, command.round, command.concurrency, command.ms)
      case 'long':
        return long(starter, command.id, command.steps)
      case 'sleepers':
        return sleepers(starter, command)
      case 'stop':
        await starter.stop()
        return null
    }
  }
  process.on('message', (command: Command) => {
    answer(command).then(
      (result) => {
        process.send!({ result })
        if (command.kind === 'stop') process.disconnect?.()
      },
      (error) => process.send!({ error: String((error as Error).stack ?? error) }),
    )
  })
  process.send!({ result: 'ready' })
}
