/** `millrace schedules ...`: workflows at set times, from a terminal. */

import { Command, Option } from 'commander'
import {
  backfillSchedule,
  getSchedule,
  listSchedules,
  pauseSchedule,
  removeSchedule,
  type ScheduleSpec,
  setSchedule,
  triggerSchedule,
} from '../workflow/schedules.ts'
import { instant, json, spanOf, table, timeOf, withEngine } from './with-engine.ts'

type SetOptions = Omit<ScheduleSpec, 'workflow' | 'input' | 'version'> & { code?: string }

export function schedulesCommand(): Command {
  const command = new Command('schedules')

  command
    .command('list')
    .description('all schedules')
    .action(() =>
      withEngine(async (engine) => {
        const schedules = await listSchedules(engine)
        table(
          ['schedule', 'workflow', 'when', 'overlap', 'next', 'last', 'started', 'skipped'],
          schedules.map((each) => [
            each.name,
            each.workflow,
            each.cron === null ? `every ${spanOf(each.everyMs!)}` : `${each.cron} ${each.timezone}`,
            each.overlap,
            each.paused ? 'paused' : timeOf(each.nextAt),
            timeOf(each.lastAt),
            String(each.started),
            String(each.skipped),
          ]),
        )
      }),
    )

  command
    .command('set <schedule> <workflow> [input]')
    .description('creates or changes a schedule; the input is JSON, or @file')
    .option('--cron <expression>', 'such as "0 9 * * 1-5", or an RFC 5545 rule')
    .option('--every <time>', 'instead: such as 15m')
    .option('--timezone <zone>', 'of the cron expression, such as Europe/Berlin')
    .addOption(
      new Option('--overlap <what>', 'where the run before is still open (default skip)').choices([
        'skip',
        'buffer',
        'allow',
        'cancel',
        'terminate',
      ]),
    )
    .option('--catch-up <time>', 'how late a time may still start its run (default 1m)')
    .option('--code <version>', 'version of the code; default: the newest at each start')
    .action((name: string, workflow: string, input: string | undefined, { code, ...given }: SetOptions) =>
      withEngine(async (engine) => {
        const spec = { ...given, workflow, version: code, ...(input === undefined ? {} : { input: json(input) }) }
        console.log(`next at ${(await setSchedule(engine, name, spec)).nextAt.toISOString()}`)
      }),
    )

  command
    .command('show <schedule>')
    .description('one schedule whole, as JSON')
    .action((name: string) =>
      withEngine(async (engine) => console.log(JSON.stringify(await getSchedule(engine, name), null, 2))),
    )

  command
    .command('pause <schedule>')
    .description('times that pass meanwhile start nothing')
    .action((name: string) => withEngine(async (engine) => void (await pauseSchedule(engine, name, true))))

  command
    .command('resume <schedule>')
    .description('goes on with the next time')
    .action((name: string) =>
      withEngine(async (engine) =>
        console.log(`next at ${(await pauseSchedule(engine, name, false)).nextAt.toISOString()}`),
      ),
    )

  command
    .command('trigger <schedule>')
    .description('starts a run now, whatever runs')
    .action((name: string) => withEngine(async (engine) => console.log(await triggerSchedule(engine, name))))

  command
    .command('backfill <schedule> <from> <to>')
    .description('starts the runs of past times; those that had their run are left out')
    .action((name: string, from: string, to: string) =>
      withEngine(async (engine) => {
        const runs = await backfillSchedule(engine, name, new Date(instant(from)), new Date(instant(to)))
        table(
          ['time', 'run', ''],
          runs.map((run) => [timeOf(run.at), run.runId, run.outcome]),
        )
      }),
    )

  command
    .command('remove <schedule>')
    .description('its runs go on')
    .action((name: string) => withEngine((engine) => removeSchedule(engine, name)))

  return command
}
