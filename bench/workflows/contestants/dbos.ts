/** DBOS as its documentation shows it: the library inside the application, results awaited in memory. */

import { DBOS } from '@dbos-inc/dbos-sdk'
import { takeCommands } from '../load.ts'
import { charge, longStep, type Order, receiptOf, reserve, ship } from '../task.ts'

const fulfil = DBOS.registerWorkflow(
  async (order: Order) => {
    const held = await DBOS.runStep(() => reserve(order), { name: 'reserve' })
    const paid = await DBOS.runStep(() => charge(held), { name: 'charge' })
    const sent = await DBOS.runStep(() => ship(paid), { name: 'ship' })
    return receiptOf(held, paid, sent)
  },
  { name: 'fulfil' },
)

const long = DBOS.registerWorkflow(
  async (steps: number) => {
    let sum = 0
    const marks: number[] = []
    for (let n = 1; n <= steps; n++) {
      const made = await DBOS.runStep(() => longStep(n), { name: 'step' })
      sum += made.n
      if (made.at > 0) marks.push(made.at)
    }
    return { steps, sum, marks }
  },
  { name: 'long' },
)

DBOS.setConfig({
  name: 'bench-workflows',
  systemDatabaseUrl: process.env.DBOS_SYSTEM_DATABASE_URL!,
  systemDatabasePoolSize: Number(process.env.DBOS_POOL_SIZE),
  logLevel: 'error',
})
await DBOS.launch()
takeCommands({
  order: async (order) => (await DBOS.startWorkflow(fulfil, { workflowID: order.id })(order)).getResult(),
  long: async (id, steps) => (await DBOS.startWorkflow(long, { workflowID: id })(steps)).getResult(),
  stop: () => DBOS.shutdown(),
})
