/** Restate's client over its HTTP ingress. The idempotency key gives one execution per id; as a workflow's key it was no faster. */

import { connect, rpc } from '@restatedev/restate-sdk-clients'
import { takeCommands } from '../load.ts'
import type { LongRun, OrderService } from './restate-worker.ts'

const ingress = connect({ url: process.env.RESTATE_INGRESS_URL! })
const orders = ingress.serviceClient<OrderService>({ name: 'orderService' })
const longRun = ingress.serviceClient<LongRun>({ name: 'longRun' })

takeCommands({
  order: (order) => orders.run(order, rpc.opts({ idempotencyKey: order.id })),
  long: (id, steps) => longRun.run(steps, rpc.opts({ idempotencyKey: id })),
  stop: async () => {},
})
