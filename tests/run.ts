/**
 * Runs every test file in a process of its own, with an outer time limit, and closes with `N passed, N failed`.
 * Usage: node tests/run.ts [part of a path ...]
 */

import { spawn } from 'node:child_process'
import { globSync } from 'node:fs'
import { availableParallelism } from 'node:os'

/** An open handle would hang for ever, so a file that takes longer than this has failed. */
const FILE_MS_MAX = Number(process.env.TEST_FILE_MS_MAX ?? 300_000)

const wanted = process.argv.slice(2)
const files = globSync('tests/**/*.test.ts')
  .filter((file) =>
    wanted.length === 0 ? !file.startsWith('tests/faults/') : wanted.some((part) => file.includes(part)),
  )
  .sort()

let passed = 0
let failed = 0

function runFile(file: string): Promise<void> {
  return new Promise((resolve) => {
    const startedAt = Date.now()
    // Its own group, so that a time-out also ends the servers it started.
    const child = spawn(process.execPath, ['--conditions=millrace-source', '--import=./tests/uvu-details.ts', file], {
      stdio: ['ignore', 'pipe', 'pipe'],
      detached: true,
    })
    let output = ''
    child.stdout.on('data', (chunk) => (output += chunk))
    child.stderr.on('data', (chunk) => (output += chunk))
    let late = false
    const timer = setTimeout(() => {
      late = true
      process.kill(-child.pid!, 'SIGKILL')
    }, FILE_MS_MAX)
    child.on('close', (code) => {
      clearTimeout(timer)
      const total = Number(/^\s*Total:\s+(\d+)/m.exec(output)?.[1] ?? 0)
      const good = Number(/^\s*Passed:\s+(\d+)/m.exec(output)?.[1] ?? 0)
      const whole = code === 0 && total > 0
      passed += good
      failed += Math.max(total - good, whole ? 0 : 1)
      const seconds = ((Date.now() - startedAt) / 1000).toFixed(1)
      console.log(`${whole ? 'ok  ' : 'FAIL'} ${file} ${good}/${total} in ${seconds} s`)
      if (!whole)
        console.log(
          late
            ? `${output}\n${file} took longer than ${FILE_MS_MAX} ms`
            : total === 0
              ? `${output}\n${file} ran no test: is test.run() missing?`
              : output,
        )
      resolve()
    })
  })
}

const queue = [...files]
await Promise.all(
  Array.from({ length: Math.max(1, Math.min(availableParallelism(), 4)) }, async () => {
    for (let file = queue.shift(); file !== undefined; file = queue.shift()) await runFile(file)
  }),
)
console.log(`${passed} passed, ${failed} failed`)
process.exit(failed === 0 && passed > 0 ? 0 : 1)
