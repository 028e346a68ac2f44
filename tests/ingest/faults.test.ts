/** The faults of the promises, short; tests/faults/ holds them longer and on a cluster (`make test-faults`). */

import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { QUICK } from '../faults/faults.ts'
import { startRig } from '../faults/rig.ts'
import { complaints, runFault } from '../faults/run-fault.ts'

const rig = await startRig({ natsNodes: 1, apis: 2, workers: 2 })
test.after(rig.stop)

for (const fault of QUICK)
  test(`${fault.name}: what was answered is stored, and once`, async () => {
    assert.equal(complaints(await runFault(rig, fault)), [])
  })

test.run()
