#!/usr/bin/env -S node --max-semi-space-size=8
/**
 * `millrace`: parses, calls, prints. Its young generation is kept to 8 MB a half, as V8's own 16 grow a process by a third
 * (measured) without making it faster. What a command needs is loaded when it is meant: everything takes a second.
 */

import { resolve } from 'node:path'
import { Command } from 'commander'
import { configTable, loadConfig } from './config.ts'
import { describe } from './errors.ts'

const program = new Command('millrace').description('Durable events and workflows on NATS JetStream and Postgres')

const service = () => import('./service.ts')

/** The first signal asks for an orderly end; a second one ends at once, which loses nothing. */
function stopSignal(): AbortSignal {
  const controller = new AbortController()
  for (const name of ['SIGTERM', 'SIGINT'] as const)
    process.on(name, () => (controller.signal.aborted ? process.exit(1) : controller.abort()))
  return controller.signal
}

program
  .command('api')
  .description('serve the HTTP API against NATS_URL and DATABASE_URL')
  .action(async () => (await service()).serveApi(loadConfig(), stopSignal()))

program
  .command('worker')
  .description('run the pull workers, and the workflows of modules, against NATS_URL and DATABASE_URL')
  .argument('[modules...]', 'such as ./workflows.ts')
  .action(async (modules: string[]) => (await service()).serveWorker(loadConfig(), modules, stopSignal()))

program
  .command('migrate')
  .description(
    'make the tables and the stream, or bring them to this version; api and worker do so themselves where they may',
  )
  .action(async () => (await service()).migrate(loadConfig(), stopSignal()))

program
  .command('dev')
  .description('the whole service with embedded Postgres and nats-server')
  .argument('[modules...]', 'whose workflows to run, such as ./workflows.ts')
  .option('--data <folder>', 'where the servers keep their data', '.millrace')
  .action(async (modules: string[], { data }: { data: string }) =>
    (await service()).serveDev(
      loadConfig(undefined, { API_KEYS: 'off', HOST: '127.0.0.1' }),
      resolve(data),
      modules,
      stopSignal(),
    ),
  )

program
  .command('config')
  .description('print every environment variable with its default, as a Markdown table')
  .action(() => console.log(configTable()))

program
  .command('trace')
  .description('draw what happened to the events of one trace, from Jaeger and Postgres')
  .argument('<trace-id>', '32 hexadecimal digits, or the traceparent that the API returned')
  .action(async (traceId: string) => {
    const { traceCommand } = await import('./commands/trace.ts')
    await traceCommand(traceId)
  })

/** Commands with commands of their own; `millrace help` needs only their descriptions. */
const groups = {
  'dead-letters': {
    says: 'events that were refused too often: look, fix, replay',
    load: async () => (await import('./commands/dead-letters.ts')).deadLettersCommand(),
  },
  workflows: {
    says: 'durable workflows: start them, look at their runs, steer them',
    load: async () => (await import('./commands/workflows.ts')).workflowsCommand(),
  },
  schedules: {
    says: 'workflows at set times',
    load: async () => (await import('./commands/schedules.ts')).schedulesCommand(),
  },
  keys: {
    says: 'who may use the API: make, list, rotate and revoke keys',
    load: async () => (await import('./commands/keys.ts')).keysCommand(),
  },
  retention: {
    says: 'stored events: how old, how large, archive and drop',
    load: async () => (await import('./commands/retention.ts')).retentionCommand(),
  },
  audit: {
    says: 'who did what: every act of an operator',
    load: async () => (await import('./commands/audit.ts')).auditCommand(),
  },
}
// Also as `millrace help workflows`.
for (const [name, { says, load }] of Object.entries(groups))
  program.addCommand((process.argv.slice(2, 4).includes(name) ? await load() : new Command(name)).description(says))

program.parseAsync().catch(async (error) => {
  const { databaseRefused, isOutage } = await import('./db/connect.ts')
  console.error(
    `millrace: ${isOutage(error) ? 'Postgres does not answer: start `millrace dev`, or set DATABASE_URL' : describe(databaseRefused(error) ?? error)}`,
  )
  process.exit(1)
})
