import { join } from 'node:path'
import { sql } from 'drizzle-orm'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { connectDatabase, inTransaction, sqlStateOf } from '../../src/db/connect.ts'
import { stopChild } from '../../src/embedded/postgres.ts'
import { startTestPostgres, temporaryFolder } from '../servers.ts'

const dir = join(temporaryFolder('connect'), 'pg')
let postgres = await startTestPostgres(dir)
const lost: string[] = []
const database = connectDatabase({ DATABASE_URL: postgres.url, DATABASE_POOL_SIZE: 2 }, (error) =>
  lost.push(error.message),
)
process.once('exit', () => postgres.process.kill('SIGKILL'))
test.after(async () => {
  await database.close()
  await postgres.stop()
})

const works = () => inTransaction(database.db, async (tx) => (await tx.execute(sql`select 1 as one`)).rows)
const failure = (work: Promise<unknown>) =>
  work.then(
    () => assert.unreachable(),
    (error: unknown) => error,
  )

test('a refusal by Postgres rolls back, keeps the connection and says its SQLSTATE', async () => {
  await works()
  const error = await failure(inTransaction(database.db, (tx) => tx.execute(sql`select 1 / 0`)))
  assert.is(sqlStateOf(error), '22012')
  assert.is(database.pool.totalCount, 1)
  assert.is(database.pool.idleCount, 1)
})

test('Postgres lost in the middle of a transaction fails that transaction and nothing else', async () => {
  const error = await failure(
    inTransaction(database.db, async (tx) => {
      await tx.execute(sql`select 1`)
      await stopChild(postgres.process, 'SIGQUIT')
      while (lost.length === 0) await new Promise((resolve) => setTimeout(resolve, 10))
      await tx.execute(sql`select 2`)
    }),
  )
  assert.is(sqlStateOf(error), undefined)
  postgres = await startTestPostgres(dir, { port: postgres.port })
  assert.equal(await works(), [{ one: 1 }])
})

test('connections that die before BEGIN cost the pool nothing', async () => {
  for (let i = 0; i < 3; i++) {
    const client = await database.pool.connect()
    client.release()
    // Postgres ends the session; the pool learns of it only after it has handed the client out again.
    const { stream } = (client as unknown as { connection: { stream: { destroy: () => void } } }).connection
    stream.destroy()
    await failure(works())
  }
  assert.equal(await works(), [{ one: 1 }])
})

test.run()
