import { readFileSync } from 'node:fs'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { configTable, loadConfig } from '../src/config.ts'

test('the table of variables in the README is what `millrace config` prints', () => {
  assert.ok(
    readFileSync('README.md', 'utf8').includes(configTable()),
    'put the output of `millrace config` into README.md',
  )
})

test('a wrong variable is named with what it takes', () => {
  assert.throws(
    () => loadConfig({ PORT: 'eighty', WORKER_ADAPTIVE: 'maybe' }),
    /PORT=eighty: not a number.*WORKER_ADAPTIVE=maybe: say true or false/,
  )
})

test.run()
