/**
 * An order: reserve stock, take the money, ship. What was done is undone, newest first, when a later step fails for
 * good or somebody cancels the run.
 */

import { workflow } from 'millrace'
import { charge, type Order, refund, releaseStock, reserveStock, ship } from './services.ts'

const PATIENT = { retry: { attempts: 5, first: '200ms' }, timeout: '10s' } as const

export const fulfilOrder = workflow(
  'fulfil-order',
  { on: { event: 'order.placed', key: (event) => event.data.orderId } },
  async (run, order: Order) => {
    run.setState('reserving stock')
    const { reservation } = await run.step('reserve stock', (tools) => reserveStock(order, tools), PATIENT)
    run.compensate('release stock', (tools) => releaseStock(reservation, tools), PATIENT)

    run.setState('charging')
    const { payment } = await run.step('charge', (tools) => charge(order, tools), PATIENT)
    run.compensate('refund', (tools) => refund(payment, tools), PATIENT)

    run.setState('shipping')
    const { parcel } = await run.step('ship', (tools) => ship(order, tools), PATIENT)
    run.setState('shipped')
    return { orderId: order.orderId, payment, parcel }
  },
)
