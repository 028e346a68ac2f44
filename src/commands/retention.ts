/** `millrace retention ...`: how old and how large the stored events are, and taking away what shall not be kept. */

import { Command } from 'commander'
import { recordAct } from '../access/audit.ts'
import { connectDatabase } from '../db/connect.ts'
import { listGrowth, readGrowth } from '../db/growth.ts'
import { retains, runRetention } from '../retention/run.ts'
import { atTerminal, operatorConfig } from './operator-config.ts'
import { table } from './with-engine.ts'

const size = (bytes: number | null) => (bytes === null ? '' : `${(bytes / 1024 ** 2).toFixed(1)} MiB`)

export function retentionCommand(): Command {
  const command = new Command('retention')

  command
    .command('status')
    .description('partitions and archives of events, oldest first')
    .action(async () => {
      const database = connectDatabase(await operatorConfig())
      try {
        table(
          ['from', 'to', 'state', 'rows', 'size', 'file'],
          (await listGrowth(database.db)).map(({ from, to, state, rows, bytes, file }) => [
            from ?? '',
            to ?? '',
            state,
            rows === null ? '' : String(rows),
            size(bytes),
            file ?? '',
          ]),
        )
        const { eventBytes, identityBytes } = await readGrowth(database.db)
        console.log(`events ${size(eventBytes)}, identities (kept for ever) ${size(identityBytes)}`)
      } finally {
        await database.close()
      }
    })

  command
    .command('run')
    .description('archive and drop what is older than EVENTS_RETENTION_DAYS and WORKFLOW_RETENTION_DAYS, now')
    .action(async () => {
      const config = await operatorConfig()
      if (!retains(config))
        return console.log(
          'Nothing to do: EVENTS_RETENTION_DAYS and WORKFLOW_RETENTION_DAYS are 0, which keeps everything',
        )
      const stop = new AbortController()
      process.once('SIGINT', () => stop.abort())
      const outcome = await runRetention(config, stop.signal)
      if (outcome === null) return console.log('Another process is at it')
      const database = connectDatabase(config)
      try {
        await recordAct(database.db, atTerminal(), { action: 'retention.run', detail: outcome })
      } finally {
        await database.close()
      }
      for (const { from, to, archive } of outcome.events)
        console.log(
          `${from?.toISOString() ?? 'the beginning'} to ${to.toISOString()}: ${archive === null ? 'dropped' : `${archive.rows} events in ${archive.file}`}`,
        )
      console.log(
        `${outcome.events.length} partitions, ${outcome.batches} lines of batches and ${outcome.runs} workflow runs are gone`,
      )
    })

  return command
}
