/**
 * Every fault, one table row each; closes with `N passed, N failed`.
 * Usage: node tests/faults/run.ts [part of a fault's name ...]
 */

import * as single from './faults.ts'
import { header, row } from './print.ts'
import { type RigOptions, startRig } from './rig.ts'
import { complaints, type Fault, runFault } from './run-fault.ts'

const wanted = process.argv.slice(2)
const picked = (faults: object) =>
  (Object.values(faults) as Fault[]).filter(
    ({ name }) => wanted.length === 0 || wanted.some((part) => name.includes(part)),
  )

let passed = 0
const failures: string[] = []

async function runAll(title: string, options: RigOptions, faults: Fault[]): Promise<void> {
  if (faults.length === 0) return
  console.log(`\n${title}\n${header()}`)
  const rig = await startRig(options)
  try {
    for (const fault of faults) {
      const outcome = await runFault(rig, fault, { requestsPerSecond: 60, eventsPerRequest: 10, steadyEvents: 2_000 })
      console.log(row(outcome))
      const said = complaints(outcome)
      if (said.length === 0) passed++
      else failures.push(...said)
    }
  } finally {
    await rig.stop()
  }
}

await runAll('One nats-server, one Postgres', { natsNodes: 1, apis: 2, workers: 2 }, picked(single))

for (const failure of failures) console.log(`FAIL ${failure}`)
console.log(`\n${passed} passed, ${failures.length} failed`)
process.exit(failures.length === 0 && passed > 0 ? 0 : 1)
