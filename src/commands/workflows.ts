/** `millrace workflows ...`: start, look, steer, from a terminal. */

import { Command } from 'commander'
import { recordActOn } from '../access/audit.ts'
import { milliseconds } from '../durations.ts'
import { startDefined } from '../workflow/client.ts'
import { cancelRuns, resumeRun, signalRun, terminateRun } from '../workflow/control.ts'
import { findDefinition, listDefinitions } from '../workflow/definitions.ts'
import { listLimits, type QueueLimits, removeLimits, setLimits } from '../workflow/limits.ts'
import { replayRuns, restartFrom } from '../workflow/replay.ts'
import { exportHistory, getRun, type HistoryLine, listRuns, type RunFilter, readHistory } from '../workflow/runs.ts'
import type { StartOptions } from '../workflow/start.ts'
import {
  brief,
  coloured,
  instant,
  json,
  pair,
  printJson,
  printResult,
  spanOf,
  step,
  table,
  timeOf,
  whole,
  withEngine,
} from './with-engine.ts'

type ListOptions = Omit<RunFilter, 'status'> & { status?: string; json?: boolean }

export function workflowsCommand(): Command {
  const command = new Command('workflows')
  lookCommands(command)
  startCommand(command)
  steerCommands(command)
  queueCommands(command)
  return command
}

function lookCommands(command: Command): void {
  command
    .command('definitions')
    .description('the workflows that workers have loaded')
    .action(() =>
      withEngine(async (engine) => {
        const found = await listDefinitions(engine.control.pool)
        table(
          ['name', 'version', 'queue', 'since'],
          found.map((each) => [each.name, each.version || '-', each.queue, timeOf(each.firstSeenAt)]),
        )
      }),
    )

  filtered(command.command('list').description('runs, newest first'))
    .option('--status <statuses>', 'such as running or failed,stuck')
    .option('--id <id>', 'started under this id')
    .option('--key <key>', 'with this concurrency key')
    .option('--queue <queue>', 'in this queue')
    .option('--limit <n>', 'so many at most', whole, 50)
    .option('--cursor <run>', 'continue after the last run of an earlier listing')
    .option('--json', 'one JSON document a line')
    .action(async ({ status, json: asJson, ...filter }: ListOptions) =>
      withEngine(async (engine) => {
        const statuses = status === undefined ? {} : { status: status.split(',') }
        const { runs, next } = await listRuns(engine.control, { ...filter, ...statuses })
        if (asJson) return runs.forEach(printJson)
        table(
          ['run', 'workflow', 'id', 'status', 'started', 'took', ''],
          runs.map((run) => [
            run.runId,
            run.name + (run.version === '' ? '' : `@${run.version}`),
            brief(run.id, 40),
            coloured(run.status),
            timeOf(run.createdAt),
            spanOf((run.finishedAt?.getTime() ?? Date.now()) - run.createdAt.getTime()),
            brief(run.error?.message),
          ]),
        )
        if (next !== null) console.log(`more: --cursor ${next}`)
      }),
    )

  command
    .command('show <run>')
    .description('one run whole, as JSON; by its own id or the id it was started under')
    .action((id: string) =>
      withEngine(async (engine) => console.log(JSON.stringify(await getRun(engine.control, id), null, 2))),
    )

  command
    .command('history <run>')
    .description('what each call of a run came to')
    .option('--export', 'the whole history as JSON, for replayHistory of millrace/testing')
    .action((id: string, options: { export?: boolean }) =>
      withEngine(async (engine) => {
        const { pool } = engine.control
        if (options.export) return console.log(JSON.stringify(await exportHistory(engine.control, id), null, 2))
        const run = await getRun(engine.control, id)
        console.log(`${run.name} ${run.id ?? run.runId} ${coloured(run.status)}`)
        const rows: string[][] = []
        for (let after: number | null = -2; after !== null; ) {
          const page = await readHistory(pool, run.runId, { after })
          rows.push(...page.lines.map(historyRow))
          after = page.next
        }
        table(['pos', 'kind', 'name', 'at', 'took', 'attempt', 'came to'], rows)
        if (run.error !== null) console.log(`${run.error.name}: ${run.error.message}`)
      }),
    )

  command
    .command('result <run>')
    .description('waits for the end and prints the result; exits with 1 if the run failed')
    .option('--wait <time>', 'at most so long, such as 30s', milliseconds)
    .action((id: string, { wait }: { wait?: number }) =>
      withEngine(async (engine) => printResult(engine, (await getRun(engine.control, id)).runId, wait ?? null)),
    )
}

const filtered = (command: Command): Command =>
  command
    .option('--name <workflow>', 'only this workflow')
    .option('--from <time>', 'created since, ISO 8601', instant)
    .option('--to <time>', 'created before, ISO 8601', instant)
    .option('--attributes <name=value>', 'with this attribute; may be given again', pair)

function historyRow(line: HistoryLine): string[] {
  const open = line.dueAt === null ? 'open' : `open, due ${timeOf(line.dueAt)}`
  const cameTo =
    line.error !== null ? `${line.error.name}: ${line.error.message}` : line.ord === null ? open : line.output
  return [
    String(line.pos),
    line.kind,
    line.name,
    timeOf(line.at),
    line.ms === null ? '' : spanOf(line.ms),
    line.attempt > 1 ? String(line.attempt) : '',
    brief(cameTo, 80),
  ]
}

function startCommand(command: Command): void {
  command
    .command('start <workflow> [input]')
    .description('starts a run; the input is JSON, or @file')
    .option('--id <id>', 'makes the start idempotent')
    .option('--on-conflict <what>', 'where a run of this id is open: use, fail or terminate')
    .option('--reuse <what>', 'where its last run has ended: use, again, again-if-failed or fail')
    .option('--code <version>', 'version of the code; default: the newest')
    .option('--queue <queue>', 'other than the workflow’s')
    .option('--priority <n>', 'lower is sooner', whole)
    .option('--concurrency-key <key>', 'shares the limit of the queue with others of this key')
    .option('--delay <time>', 'before it begins, such as 10m')
    .option('--timeout <time>', 'of the whole run')
    .option('--attributes <name=value>', 'to filter runs by; may be given again', pair)
    .option('--wait', 'wait for the result and print it')
    .action(async (name: string, input: string | undefined, given: StartOptions & { code?: string; wait?: boolean }) =>
      withEngine(async (engine) => {
        const { code, wait, ...options } = given
        const definition = await findDefinition(engine.control.pool, name, code ?? null)
        const run = await startDefined(engine, definition, input === undefined ? undefined : json(input), options)
        const detail = { workflow: name, id: run.id }
        await recordActOn(engine.control.pool, engine.control.by, { action: 'run.start', target: run.runId, detail })
        if (wait) return printResult(engine, run.runId, null)
        console.log(run.runId)
      }),
    )
}

function steerCommands(command: Command): void {
  const steer = (words: string, description: string, act: (deps: Control, runId: string) => Promise<unknown>) =>
    command
      .command(words)
      .description(description)
      .action((id: string) =>
        withEngine(async ({ control }) => {
          const { runId } = await getRun(control, id)
          console.log((await act(control, runId)) ?? runId)
        }),
      )

  command
    .command('signal <run> <name> [payload]')
    .description('sends a signal; the payload is JSON, or @file')
    .action((id: string, name: string, payload: string | undefined) =>
      withEngine(async ({ control }) => {
        const { runId } = await getRun(control, id)
        await signalRun(control, runId, name, payload === undefined ? undefined : json(payload))
      }),
    )

  steer('cancel <run>', 'asks a run to end: its cleanup and compensations run', async (control, runId) =>
    (await cancelRuns(control, [runId])).length === 0 ? `${runId} had ended` : undefined,
  )
  steer('terminate <run>', 'ends a run at once, without cleanup', terminateRun)
  steer('resume <run>', 'lets a stuck run go on with the code that is loaded now', resumeRun)

  command
    .command('restart <run>')
    .description('runs an ended run again from a step, as a new run under the same id')
    .option('--from <step>', 'name or position of the first step to run again, or `failure`', step, 0)
    .option('--code <version>', 'version of the code')
    .action((id: string, { from, code }: { from: number | string; code?: string }) =>
      withEngine(async ({ control }) => {
        const { runId } = await getRun(control, id)
        console.log(await restartFrom(control, runId, { from, version: code }))
      }),
    )

  filtered(command.command('replay').description('runs dead runs (failed, or stuck) again from the step that failed'))
    .option('--step <step>', 'from this step instead', step)
    .option('--code <version>', 'version of the code')
    .option('--limit <n>', 'so many at most', whole, 100)
    .option('--dry-run', 'only say which')
    .action((options: RunFilter & { step?: number | string; code?: string; dryRun?: boolean }) =>
      withEngine(async ({ control }) => {
        const { code, ...rest } = options
        const { runs, next } = await replayRuns(control, { ...rest, version: code })
        table(
          ['run', 'workflow', 'id', 'outcome', 'error'],
          runs.map((run) => [
            run.runId,
            run.name,
            brief(run.id, 40),
            run.newRunId === undefined ? run.outcome : `${run.outcome} as ${run.newRunId}`,
            brief(run.reason ?? run.error),
          ]),
        )
        if (next !== null) console.log('there are more: run it again, or with a larger --limit')
      }),
    )
}

function queueCommands(command: Command): void {
  command
    .command('queues')
    .description('the queues that have limits')
    .action(() =>
      withEngine(async ({ control }) => {
        const queues = await listLimits(control.pool)
        table(
          ['queue', 'concurrency', 'per key', 'rate', 'holding', 'queued'],
          queues.map(({ queue, limits: { concurrency, perKey, rate }, holding, queued }) => [
            queue,
            String(concurrency ?? '-'),
            String(perKey ?? '-'),
            rate === undefined ? '-' : `${rate.runs} per ${spanOf(Number(rate.per))}`,
            String(holding),
            queued > 10_000 ? 'over 10000' : String(queued),
          ]),
        )
      }),
    )

  command
    .command('limit <queue>')
    .description('limits a queue; without options, removes its limits')
    .option('--concurrency <n>', 'runs begun and not ended in the whole queue', whole)
    .option('--per-key <n>', 'the same, of one concurrency key', whole)
    .option('--rate <runs/time>', 'such as 100/1m: so many runs begin in each minute, on average', rate)
    .action((queue: string, limits: QueueLimits) =>
      withEngine(async ({ control }) =>
        Object.keys(limits).length === 0
          ? removeLimits(control.pool, queue, control.by)
          : setLimits(control.pool, queue, limits, control.by),
      ),
    )
}

function rate(text: string): QueueLimits['rate'] {
  const [runs = '', per] = text.split('/')
  return { runs: whole(runs), per: milliseconds(per ?? '') }
}

type Control = Parameters<typeof terminateRun>[0]
