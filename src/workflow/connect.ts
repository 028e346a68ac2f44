/** The typed client of a user's program: over Postgres directly, so a start can be part of the program's transaction. */

import { type Broker, connectBroker } from '../broker/connect.ts'
import { loadConfig } from '../config.ts'
import { connectDatabase, type Transaction } from '../db/connect.ts'
import { startJobs } from '../db/jobs.ts'
import { findRun, type Handle, startRun, startRunIn } from './client.ts'
import type { Workflow } from './define.ts'
import { type Engine, startEngine } from './engine.ts'
import { type ExportedHistory, exportHistory, listRuns, type RunFilter, type RunSummary } from './runs.ts'
import type { StartOptions } from './start.ts'

/**
 * @property databaseUrl  default: DATABASE_URL
 * @property natsUrl      default: NATS_URL; null for none: runs then begin within a sweep (half a second)
 * @property workflows    run in this process too; none: workers run them
 * @property tenant       whose runs and schedules it starts and finds; default: WORKFLOW_TENANT
 * @property onError      hears of what fails in the background and is tried again; default: a line on stderr
 */
export type ConnectOptions = {
  databaseUrl?: string
  natsUrl?: string | null
  workflows?: Workflow[]
  tenant?: string
  onError?: (error: unknown, doing: string) => void
}

export type Client = {
  /** For the functions of this library that take an engine: schedules, limits. */
  engine: Engine
  /**
   * Starts a run; resolves when it is durable.
   * @throws MillraceError `conflict` where the options say so
   */
  start: <I, O>(workflow: Workflow<I, O>, input: I, options?: StartOptions) => Promise<Handle<O>>
  /** Starts a run in a Drizzle transaction of the caller's: it exists if and only if that commits. */
  startIn: <I, O>(
    tx: Transaction,
    workflow: Workflow<I, O>,
    input: I,
    options?: Omit<StartOptions, 'onConflict' | 'reuse'>,
  ) => Promise<Handle<O>>
  /** A handle on a run, by its own id or the id it was started under. @throws MillraceError `not_found` */
  find: <I, O>(workflow: Workflow<I, O>, id: string) => Promise<Handle<O>>
  list: (filter: RunFilter) => Promise<{ runs: RunSummary[]; next: string | null }>
  /** A run whole, for `replayHistory` of millrace/testing. */
  history: (id: string) => Promise<ExportedHistory>
  close: () => Promise<void>
}

/** @throws MillraceError `unavailable` where NATS does not answer, and what Postgres says where it does not */
export async function connect(options: ConnectOptions = {}): Promise<Client> {
  const given = loadConfig()
  const config = { ...given, DATABASE_URL: options.databaseUrl ?? given.DATABASE_URL }
  const onError = options.onError ?? ((error, doing) => console.error(`millrace: ${doing}:`, error))
  const broker: Broker | null =
    options.natsUrl === null
      ? null
      : await connectBroker({ ...given, NATS_URL: options.natsUrl ?? given.NATS_URL }, 'client')
  const database = connectDatabase(config, (error) => onError(error, 'lost a connection to Postgres'))
  const jobs = await startJobs(config.DATABASE_URL, { onError: (error) => onError(error, 'pg-boss') })
  const { workflows = [] } = options
  const engine = await startEngine(
    { database, databaseUrl: config.DATABASE_URL, broker, jobs, onError },
    { workflows, tenant: options.tenant ?? given.WORKFLOW_TENANT },
  )
  return {
    engine,
    start: (workflow, input, more) => startRun(engine, workflow, input, more),
    startIn: (tx, workflow, input, more) => startRunIn(engine, tx, workflow, input, more),
    find: <I, O>(_: Workflow<I, O>, id: string) => findRun<O>(engine, id),
    list: (filter) => listRuns(engine.control, filter),
    history: (id) => exportHistory(engine.control, id),
    async close() {
      await engine.stop()
      await jobs.stop()
      await broker?.close()
      await database.close()
    },
  }
}
