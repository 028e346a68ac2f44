/** The command line as a user has it: a worker with a module of workflows, and commands beside it. */

import { execFile, spawn } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { startServers } from '../servers.ts'
import { until } from '../service.ts'

const servers = await startServers()
const CLI = fileURLToPath(new URL('../../src/cli.ts', import.meta.url))
const MODULE = fileURLToPath(new URL('./cli-workflows.ts', import.meta.url))
const env = {
  ...process.env,
  DATABASE_URL: servers.config.DATABASE_URL,
  NATS_URL: servers.config.NATS_URL,
  WORKER_PORT: '0',
  HOST: '127.0.0.1',
  NO_COLOR: '1',
}
const worker = spawn(process.execPath, [CLI, 'worker', MODULE], { env, stdio: ['ignore', 'ignore', 'inherit'] })
process.once('exit', () => worker.kill('SIGKILL'))
test.after(async () => {
  const gone = new Promise((resolve) => worker.once('exit', resolve))
  worker.kill('SIGTERM')
  assert.is(await gone, 0, 'the worker ends in good order')
  await servers.stop()
})

const millrace = (...args: string[]): Promise<{ code: number; out: string; err: string }> =>
  new Promise((resolve) => {
    execFile(process.execPath, [CLI, ...args], { env }, (error, out, err) =>
      resolve({ code: Number(error?.code ?? 0), out: out.trim(), err }),
    )
  })

test('a run is started, signalled, waited for and shown', async () => {
  await until(async () => (await millrace('workflows', 'definitions')).out.includes('greet'))
  const { out: runId } = await millrace('workflows', 'start', 'greet', '"Ann"', '--id', 'g-1', '--attributes', 'team=a')
  assert.match(runId, /^[0-9a-f-]{36}$/)
  assert.is((await millrace('workflows', 'signal', 'g-1', 'sign', '"Bob"')).code, 0)
  const result = await millrace('workflows', 'result', 'g-1', '--wait', '30s')
  assert.is(result.out, '"Hello Ann, Bob"', result.err)
  const { out: list } = await millrace('workflows', 'list', '--status', 'completed', '--attributes', 'team=a')
  assert.match(list, new RegExp(`${runId}\\s+greet\\s+g-1\\s+completed`))
  const { out: history } = await millrace('workflows', 'history', runId)
  assert.match(history, /0\s+step\s+compose.*Hello Ann/)
  const exported = JSON.parse((await millrace('workflows', 'history', runId, '--export')).out)
  assert.equal(
    exported.lines.map((line: { kind: string }) => line.kind),
    ['step', 'signal'],
  )
})

test('a failed run exits with 1 and its own message, and is replayed', async () => {
  const failed = await millrace('workflows', 'start', 'breaks', '--id', 'b-1', '--wait')
  assert.is(failed.code, 1)
  assert.match(failed.err, /out of order/)
  assert.match((await millrace('workflows', 'replay', '--name', 'breaks', '--dry-run')).out, /would be restarted/)
  assert.match((await millrace('workflows', 'replay', '--name', 'breaks')).out, /restarted as /)
})

test('a run is cancelled, and what cannot be is said', async () => {
  await millrace('workflows', 'start', 'greet', '"Eve"', '--id', 'g-2')
  assert.is((await millrace('workflows', 'cancel', 'g-2')).code, 0)
  const result = await millrace('workflows', 'result', 'g-2', '--wait', '30s')
  assert.is(result.code, 1)
  assert.match(result.err, /cancelled/)
  assert.match((await millrace('workflows', 'show', 'nobody')).err, /There is no run nobody/)
  assert.match((await millrace('workflows', 'start', 'nothing')).err, /No worker has loaded a workflow nothing/)
  assert.match((await millrace('workflows', 'start', 'greet', 'Ann')).err, /JSON/)
})

test.run()
