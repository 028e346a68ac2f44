/** Restate's service endpoint, which its server calls over HTTP/2: the worker. */

import * as restate from '@restatedev/restate-sdk'
import { charge, longStep, type Order, receiptOf, reserve, ship } from '../task.ts'

const orderService = restate.service({
  name: 'orderService',
  handlers: {
    run: async (ctx: restate.Context, order: Order) => {
      const held = await ctx.run('reserve', () => reserve(order))
      const paid = await ctx.run('charge', () => charge(held))
      const sent = await ctx.run('ship', () => ship(paid))
      return receiptOf(held, paid, sent)
    },
  },
})

const longRun = restate.service({
  name: 'longRun',
  handlers: {
    run: async (ctx: restate.Context, steps: number) => {
      let sum = 0
      const marks: number[] = []
      for (let n = 1; n <= steps; n++) {
        const made = await ctx.run('step', () => longStep(n))
        sum += made.n
        if (made.at > 0) marks.push(made.at)
      }
      return { steps, sum, marks }
    },
  },
})

export type OrderService = typeof orderService
export type LongRun = typeof longRun

await restate.serve({ services: [orderService, longRun], port: Number(process.env.RESTATE_ENDPOINT_PORT) })
process.on('message', (command: { kind: string }) => {
  if (command.kind === 'stop') process.exit(0)
})
process.send!({ result: 'ready' })
