/** How each contestant is started, which processes it burns CPU in, and how its rows are counted. */

import { join } from 'node:path'
import pg from 'pg'
import { migrateDatabase } from '../../../src/db/migrate.ts'
import { startNats } from '../../../src/embedded/nats.ts'
import { freePort } from '../../../src/embedded/port.ts'
import { startPostgres } from '../../../src/embedded/postgres.ts'
import { type Child, startChild } from '../processes.ts'
import { countRestate, registerEndpoint, startRestate } from '../restate-server.ts'

export type Contestant = {
  name: string
  /** How it was run, for the report. */
  says: string
  starter: Child
  /** Whose CPU counts, by kind of process. */
  pids: Record<string, number>
  /** Where its tables are, if in Postgres. */
  databaseUrl?: string
  /** Finished three-step workflows, and the steps recorded for them. */
  count: () => Promise<{ runs: number; steps: number }>
  stop: () => Promise<void>
}

/** Brings up a contestant with servers of its own, over an empty folder. */
export type Start = (dir: string) => Promise<Contestant>

const file = (name: string) => new URL(name, import.meta.url)

const MILLRACE_COUNT = `
  select (select count(*) from workflow_runs where name = 'fulfil' and status = 'completed') as runs,
         (select count(*) from workflow_steps join workflow_runs using (run_id)
          where workflow_runs.name = 'fulfil') as steps`

/** A starter process and a worker process, as Restate has them. */
export async function startMillrace(dir: string): Promise<Contestant> {
  const postgres = await startPostgres(join(dir, 'pg'))
  await migrateDatabase(postgres.url)
  const nats = await startNats(join(dir, 'nats'))
  const env = { DATABASE_URL: postgres.url, NATS_URL: nats.url }
  const worker = await startChild(file('millrace.ts'), { ...env, MILLRACE_MODE: 'worker' })
  const starter = await startChild(file('millrace.ts'), { ...env, MILLRACE_MODE: 'starter' })
  return {
    name: 'Millrace',
    says: 'this checkout, starter and worker apart',
    starter,
    databaseUrl: postgres.url,
    pids: { starter: starter.pid, worker: worker.pid, postgres: postgres.process.pid!, server: nats.process.pid! },
    count: () => countRows(postgres.url, MILLRACE_COUNT),
    stop: async () => {
      await starter.stop()
      await worker.stop()
      await Promise.all([nats.stop(), postgres.stop()])
    },
  }
}

/** Starting and running in one process, as DBOS does. */
export async function startMillraceInOne(dir: string): Promise<Contestant> {
  const postgres = await startPostgres(join(dir, 'pg'))
  await migrateDatabase(postgres.url)
  const nats = await startNats(join(dir, 'nats'))
  const starter = await startChild(file('millrace.ts'), {
    DATABASE_URL: postgres.url,
    NATS_URL: nats.url,
    MILLRACE_MODE: 'both',
  })
  return {
    name: 'Millrace in one process',
    says: 'this checkout, started in the process that runs it',
    starter,
    pids: { worker: starter.pid, postgres: postgres.process.pid!, server: nats.process.pid! },
    count: () => countRows(postgres.url, MILLRACE_COUNT),
    stop: async () => {
      await starter.stop()
      await Promise.all([nats.stop(), postgres.stop()])
    },
  }
}

/** More changed nothing when tried: on two cores Postgres is what it waits for. */
const DBOS_POOL_SIZE = 20

/**
 * Its two ways were tried side by side, pools of 10, 20 and 40 too: starting and running in one process was 2 to 3
 * times as fast as a queue between two processes, even with the polls at 10 ms.
 */
export async function startDbos(dir: string): Promise<Contestant> {
  const postgres = await startPostgres(join(dir, 'pg'))
  const url = new URL(postgres.url)
  url.pathname = '/dbos'
  const starter = await startChild(file('dbos.ts'), {
    DBOS_SYSTEM_DATABASE_URL: url.href,
    DBOS_POOL_SIZE: String(DBOS_POOL_SIZE),
  })
  return {
    name: 'DBOS',
    says: `@dbos-inc/dbos-sdk 5.3.0, started directly in the process that runs it, pool of ${DBOS_POOL_SIZE}, on Postgres set up as Millrace's`,
    starter,
    pids: { worker: starter.pid, postgres: postgres.process.pid! },
    count: () =>
      countRows(
        url.href,
        `select (select count(*) from dbos.workflow_status where name = 'fulfil' and status = 'SUCCESS') as runs,
                (select count(*) from dbos.operation_outputs join dbos.workflow_status using (workflow_uuid)
                 where name = 'fulfil') as steps`,
      ),
    stop: async () => {
      await starter.stop()
      await postgres.stop()
    },
  }
}

/** 1, 2, 4, 8 and the default 24 partitions were tried: fewer share more syncs, and 2 was the fastest on two cores. */
const RESTATE_PARTITIONS = 2

export async function startRestateContestant(dir: string): Promise<Contestant> {
  const server = await startRestate(join(dir, 'restate'), RESTATE_PARTITIONS)
  const port = await freePort()
  const env = { RESTATE_LOGGING: 'ERROR', NODE_ENV: 'production' }
  const worker = await startChild(file('restate-worker.ts'), { ...env, RESTATE_ENDPOINT_PORT: String(port) })
  await registerEndpoint(server, port)
  const starter = await startChild(file('restate-starter.ts'), { ...env, RESTATE_INGRESS_URL: server.ingressUrl })
  const count = (table: string, filter: string) =>
    countRestate(server, `select count(*) as n from ${table} where ${filter}`)
  const orders = `target_service_name = 'orderService' and status = 'completed'`
  return {
    name: 'Restate',
    says: `restate-server 1.7.12 with ${RESTATE_PARTITIONS} partitions, every log write synced (its default); worker and client on its SDK 1.17.2`,
    starter,
    pids: { starter: starter.pid, worker: worker.pid, server: server.process.pid! },
    count: async () => ({
      runs: await count('sys_invocation', orders),
      steps: await count(
        'sys_journal',
        `entry_type = 'Command: Run' and id in (select id from sys_invocation where ${orders})`,
      ),
    }),
    stop: async () => {
      await starter.stop()
      await worker.stop()
      await server.stop()
    },
  }
}

export async function countRows(url: string, query: string): Promise<{ runs: number; steps: number }> {
  const client = new pg.Client({ connectionString: url })
  await client.connect()
  const { rows } = await client.query<{ runs: string; steps: string }>(query)
  await client.end()
  return { runs: Number(rows[0]!.runs), steps: Number(rows[0]!.steps) }
}
