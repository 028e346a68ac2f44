/** Millrace's three workflows of the benchmark, loaded by its worker and named by its starter. */

import { workflow } from '../../../src/index.ts'
import { charge, longStep, type Order, type Receipt, receiptOf, reserve, type StepTimes, ship } from '../task.ts'

export const fulfil = workflow('fulfil', async (run, order: Order): Promise<Receipt> => {
  const held = await run.step('reserve', () => reserve(order))
  const paid = await run.step('charge', () => charge(held))
  const sent = await run.step('ship', () => ship(paid))
  return receiptOf(held, paid, sent)
})

export const long = workflow('long', async (run, steps: number): Promise<StepTimes> => {
  let sum = 0
  const marks: number[] = []
  for (let n = 1; n <= steps; n++) {
    const made = await run.step('step', () => longStep(n))
    sum += made.n
    if (made.at > 0) marks.push(made.at)
  }
  return { steps, sum, marks }
})

/** @returns how many ms late it woke, by the machine's clock that the starter used too */
export const sleeper = workflow('sleeper', async (run, dueAt: number): Promise<number> => {
  await run.sleepUntil(dueAt)
  return Date.now() - dueAt
})
