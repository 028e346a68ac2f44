/**
 * Every fault, one table row each; closes with `N passed, N failed`.
 * Usage: node tests/faults/run.ts [--only=single|cluster|links|overload|hostile] [part of a fault's name ...]
 */

import { describe } from '../../src/errors.ts'
import { CLUSTER, LINKS, SINGLE } from './faults.ts'
import { runHostile } from './hostile.ts'
import { runOverload } from './overload.ts'
import { header, print } from './print.ts'
import { type RigOptions, startRig } from './rig.ts'
import { complaints, type Fault, runFault } from './run-fault.ts'

/** `--only=cluster` and the like picks a system; what else is said picks faults by their names. */
const only = process.argv.find((word) => word.startsWith('--only='))?.slice('--only='.length)
const wanted = process.argv.slice(2).filter((word) => !word.startsWith('--'))
const picked = (faults: Fault[]) =>
  faults.filter(({ name }) => wanted.length === 0 || wanted.some((part) => name.includes(part)))

let passed = 0
const failures: string[] = []

async function runAll(title: string, options: RigOptions, faults: Fault[]): Promise<void> {
  if (faults.length === 0) return
  console.log(`\n${title}\n${header()}`)
  let rig = await startRig(options)
  for (const fault of faults) {
    try {
      const outcome = await runFault(rig, fault, { requestsPerSecond: 60, eventsPerRequest: 10, steadyEvents: 2_000 })
      print(outcome)
      const said = complaints(outcome)
      if (said.length === 0) passed++
      else failures.push(...said)
    } catch (error) {
      failures.push(`${fault.name}: ${describe(error)}`)
      console.log(failures.at(-1))
      // It left parts of the system broken.
      await rig.stop()
      rig = await startRig(options)
    }
  }
  await rig.stop()
}

const SYSTEMS: { key: string; title: string; options: RigOptions; faults: Fault[] }[] = [
  {
    key: 'single',
    title: 'One nats-server, one Postgres, 2 API and 2 worker processes',
    options: { natsNodes: 1, apis: 2, workers: 2 },
    faults: SINGLE,
  },
  {
    key: 'cluster',
    title: 'NATS cluster of three (R3), one Postgres, 2 API and 2 worker processes',
    options: { natsNodes: 3, apis: 2, workers: 2 },
    faults: CLUSTER,
  },
  {
    key: 'links',
    title: 'One nats-server, one Postgres, every link through a proxy',
    options: { natsNodes: 1, apis: 1, workers: 2, links: true },
    faults: LINKS,
  },
]
for (const { key, title, options, faults } of SYSTEMS)
  if (only === undefined || only === key) await runAll(title, options, picked(faults))

if (only === 'overload' || (only === undefined && wanted.length === 0)) {
  console.log('\nThree times what one worker commits')
  const said = await runOverload()
  if (said.length === 0) passed++
  failures.push(...said)
}

if (only === 'hostile' || (only === undefined && wanted.length === 0)) {
  console.log('\nHostile input')
  const said = await runHostile()
  if (said.length === 0) passed++
  failures.push(...said)
}

for (const failure of failures) console.log(`FAIL ${failure}`)
console.log(`\n${passed} passed, ${failures.length} failed`)
process.exit(failures.length === 0 && passed > 0 ? 0 : 1)
