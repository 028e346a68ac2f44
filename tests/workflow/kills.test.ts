import { type ChildProcess, fork } from 'node:child_process'
import { readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as pause } from 'node:timers/promises'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { type Handle, startRun } from '../../src/index.ts'
import { startServers } from '../servers.ts'
import { enginesOf, until } from './engine.ts'
import { ledgered } from './ledger.ts'

const servers = await startServers()
const engines = enginesOf(servers)
const workers = new Set<ChildProcess>()
test.after(async () => {
  for (const worker of workers) worker.kill('SIGKILL')
  await engines.stop()
  await servers.stop()
})

async function spawnWorker(ledger: string, nats = servers.config.NATS_URL): Promise<ChildProcess> {
  const worker = fork(join(import.meta.dirname, 'ledger.ts'), [servers.config.DATABASE_URL, nats, ledger])
  workers.add(worker)
  worker.once('exit', () => workers.delete(worker))
  await new Promise((resolve) => worker.once('message', resolve))
  return worker
}

/** What the ledger and the journal must agree on, whatever was killed. */
async function judge(ledger: string, runs: { runId: string }[]): Promise<{ executions: number; recorded: number }> {
  const executions = new Map<string, string[]>()
  let count = 0
  for (const line of readFileSync(ledger, 'utf8').trim().split('\n')) {
    const [runId, ...rest] = line.split(' ')
    const token = rest.pop()!
    const step = `${runId} ${rest.join(' ')}`
    executions.set(step, [...(executions.get(step) ?? []), token])
    count += 1
  }
  const { rows: steps } = await servers.database.pool.query(
    `select run_id, name, output from workflow_steps where kind = 'step'`,
  )
  for (const { run_id, name, output } of steps) {
    const tokens = executions.get(`${run_id} ${name}`)!
    assert.is(tokens.at(-1), output, `step ${name} of ${run_id} ran again after it was recorded`)
  }
  const { rows } = await servers.database.pool.query(
    `select run_id, status, output->>'n' as n from workflow_runs where name = 'ledgered'`,
  )
  assert.is(rows.length, runs.length)
  assert.is(rows.filter((row) => row.status === 'completed').length, runs.length)
  assert.is(new Set(rows.map((row) => row.n)).size, runs.length)
  return { executions: count, recorded: steps.length }
}

test('1,000 runs complete while their workers are killed at random points', async () => {
  const ledger = join(servers.dir, 'ledger')
  writeFileSync(ledger, '')
  const starter = await engines.start([])
  const pool = await Promise.all([spawnWorker(ledger), spawnWorker(ledger), spawnWorker(ledger)])
  const definition = ledgered(ledger)
  const handles: Handle<{ n: number }>[] = []
  const spawning: Promise<unknown>[] = []
  for (let wave = 0; wave < 10; wave += 1) {
    const written = statSync(ledger).size
    const started = Array.from({ length: 100 }, (_, n) => startRun(starter, definition, wave * 100 + n))
    // Once they are at work, at any point of it.
    await until(() => statSync(ledger).size > written && pool.length > 0)
    await pause(Math.random() * 100)
    const [victim] = pool.splice(Math.floor(Math.random() * pool.length), 1)
    victim!.kill('SIGKILL')
    spawning.push(spawnWorker(ledger).then((worker) => pool.push(worker)))
    handles.push(...((await Promise.all(started)) as Handle<{ n: number }>[]))
  }
  await Promise.all(spawning)
  const results = await Promise.all(handles.map((handle) => handle.result()))
  assert.equal(
    results.map((result) => result.n),
    handles.map((_, n) => n),
  )
  const { executions, recorded } = await judge(ledger, handles)
  console.log(`${executions} executions for ${recorded} recorded steps`)
  // Else the kills met nothing at work.
  assert.ok(executions > recorded)
  for (const worker of workers) worker.kill('SIGKILL')
})

test('a paused worker that wakes after its lease can record nothing', async () => {
  const ledger = join(servers.dir, 'ledger-2')
  writeFileSync(ledger, '')
  await servers.database.pool.query(`delete from workflow_runs; delete from workflow_steps`)
  const starter = await engines.start([])
  const paused = await spawnWorker(ledger)
  const definition = ledgered(ledger)
  const handles: Handle<unknown>[] = []
  const open = async () => {
    const { rows } = await servers.database.pool.query(
      `select count(*)::int as n from workflow_runs where name = 'ledgered' and status = 'running'`,
    )
    return rows[0].n > 0
  }
  for (;;) {
    const written = statSync(ledger).size
    handles.push(...(await Promise.all(Array.from({ length: 100 }, (_, n) => startRun(starter, definition, n)))))
    await until(() => statSync(ledger).size > written)
    paused.kill('SIGSTOP')
    // Else it was through before it was paused.
    if (await open()) break
    paused.kill('SIGCONT')
  }
  await spawnWorker(ledger)
  // The second worker has ended the first one's lease once it runs one of its runs.
  await until(async () => {
    const { rows } = await servers.database.pool.query(
      `select 1 from workflow_runs where name = 'ledgered' and epoch > 1 limit 1`,
    )
    return rows.length === 1
  })
  paused.kill('SIGCONT')
  await Promise.all(handles.map((handle) => handle.result()))
  // Executions of the paused worker may come after the record, since it did not know; its records may not.
  const { rows } = await servers.database.pool.query(
    `select count(*)::int as n, count(distinct (run_id, pos))::int as places from workflow_steps where kind = 'step'`,
  )
  assert.is(rows[0].n, rows[0].places)
  const ended = await servers.database.pool.query(
    `select count(*)::int as n from workflow_runs where name = 'ledgered' and status = 'completed'`,
  )
  assert.is(ended.rows[0].n, handles.length)
  for (const worker of workers) worker.kill('SIGKILL')
})

test.run()
