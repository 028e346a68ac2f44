import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { approveExpense } from '../../examples/approval/workflows.ts'
import { findRun } from '../../src/index.ts'
import { startServers } from '../servers.ts'
import { startService } from '../service.ts'
import { enginesOf, until } from '../workflow/engine.ts'
import { startNeighbour } from './neighbour.ts'

const webhook = await startNeighbour(() => ({ status: 200, body: {} }))
process.env.WEBHOOK_URL = `${webhook.url}/notify`

const servers = await startServers()
const service = await startService(servers)
const engines = enginesOf(servers)
const engine = await engines.start([approveExpense])
test.after(async () => {
  await engines.stop()
  await service.stop()
  await servers.stop()
  await webhook.stop()
})

const submit = (expenseId: string, amount: number, remindAfter: string) =>
  service.post({
    source: 'office',
    type: 'expense.submitted',
    data: { expenseId, employee: 'clerk', approver: 'chief', amount, remindAfter },
  })
const runOf = (expenseId: string) => until(() => findRun(engine, `approve-expense:${expenseId}`).catch(() => null))
const told = (expenseId: string) =>
  webhook.calls
    .filter(({ body }) => String(body.text).includes(expenseId))
    .map(({ body }) => `${body.to}: ${body.text}`)

test('a small expense needs nobody', async () => {
  await submit('small', 20, '1d')
  assert.equal(await (await runOf('small')).result(), { approved: true, by: 'the rule for small amounts' })
  assert.equal(told('small'), [])
})

test('a decision ends the wait, and both are told', async () => {
  await submit('lunch', 80, '1d')
  const run = await runOf('lunch')
  await until(async () => ((await run.status()).state as { waitingFor?: string } | null)?.waitingFor === 'chief')
  await run.signal('decision', { approved: true, by: 'chief' })
  assert.equal(await run.result(), { approved: true, by: 'chief' })
  assert.equal((await run.status()).state, { outcome: 'approved' })
  assert.equal(told('lunch'), ['chief: clerk asks for 80 (lunch)', 'clerk: Your expense lunch was approved by chief'])
})

test('silence brings two reminders, then no', async () => {
  await submit('yacht', 9_000, '50ms')
  assert.equal(await (await runOf('yacht')).result(), {
    approved: false,
    by: 'nobody',
    reason: 'no decision after 2 reminders',
  })
  assert.equal(told('yacht'), [
    'chief: clerk asks for 9000 (yacht)',
    'chief: clerk still waits for a decision on 9000 (yacht)',
    'chief: clerk still waits for a decision on 9000 (yacht)',
    'clerk: Your expense yacht was declined by nobody',
  ])
})

test.run()
