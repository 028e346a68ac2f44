/** The client of a program that runs no workflow itself. */

import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { connect, workflow } from '../../src/index.ts'
import { replayHistory } from '../../src/workflow/testing.ts'
import { startServers } from '../servers.ts'
import { enginesOf } from './engine.ts'

const servers = await startServers()
const engines = enginesOf(servers)
const lengths = workflow('lengths', async (run, text: string) => ({
  length: await run.step('count', () => text.length),
}))
await engines.start([lengths])
const urls = { databaseUrl: servers.config.DATABASE_URL, natsUrl: servers.config.NATS_URL }
test.after(async () => {
  await engines.stop()
  await servers.stop()
})

test('a typed client starts, finds, lists, and exports what replays', async () => {
  const client = await connect(urls)
  const run = await client.start(lengths, 'four', { id: 'l-1', attributes: { tenant: 'acme' } })
  const { length } = await run.result()
  assert.is(length, 4)
  assert.is((await (await client.find(lengths, 'l-1')).result()).length, 4)
  const { runs } = await client.list({ attributes: { tenant: 'acme' } })
  assert.equal(
    runs.map(({ runId, status }) => [runId, status]),
    [[run.runId, 'completed']],
  )
  await replayHistory(lengths, JSON.parse(JSON.stringify(await client.history('l-1'))))
  await client.close()
})

test('without NATS it works, only later, and a rolled back start never was', async () => {
  const client = await connect({ ...urls, natsUrl: null })
  const { db } = servers
  await db
    .transaction(async (tx) => {
      await client.startIn(tx, lengths, 'gone', { id: 'l-2' })
      tx.rollback()
    })
    .catch(() => {})
  const run = await db.transaction((tx) => client.startIn(tx, lengths, 'seven__', { id: 'l-3' }))
  assert.is((await run.result()).length, 7)
  assert.is((await client.list({ id: 'l-2' })).runs.length, 0)
  await client.close()
})

test.run()
