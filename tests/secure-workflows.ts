/** What the worker of secure.test.ts runs. */

import { workflow } from '../src/index.ts'

export const bill = workflow(
  'bill',
  { on: { event: 'order.placed', key: (event) => event.data.orderId } },
  async (run, order: { orderId: string; amount: number }) => run.step('charge', () => `charged ${order.amount}`),
)
