/** Schedules: times, overlap, pause, backfill; rung by hand where a test must not wait for the clock. */

import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { workflow } from '../../src/index.ts'
import { terminateRun } from '../../src/workflow/control.ts'
import {
  backfillSchedule,
  getSchedule,
  pauseSchedule,
  ring,
  type ScheduleSpec,
  setSchedule,
  triggerSchedule,
  watchSchedules,
} from '../../src/workflow/schedules.ts'
import { startServers } from '../servers.ts'
import { codeOf, enginesOf, until } from './engine.ts'

const servers = await startServers()
const engines = enginesOf(servers)
const { pool } = servers.database
const ticks = workflow('ticks', async (run, n: number) => run.step('tick', () => n))
const lasts = workflow('lasts', async (run) => {
  try {
    await run.signal('end')
  } finally {
    await run.step('cleanup', () => 1)
  }
})
const engine = await engines.start([ticks, lasts])
test.after(async () => {
  await engines.stop()
  await servers.stop()
})

/** Makes the next time of a schedule come `count` times, without waiting. */
const come = async (name: string, count = 1) => {
  for (let n = 0; n < count; n++) {
    const { rows } = await pool.query(
      `update workflow_schedules set next_at = date_trunc('milliseconds', clock_timestamp()) - interval '1 ms'
       where name = $1 returning revision`,
      [name],
    )
    // The ring that would come by itself is at work while it rings: it is no longer in the queue.
    await pool.query(`delete from pgboss.job where name = 'schedule-rings' and data->>'name' = $1`, [name])
    await ring(engine, { name, revision: rows[0].revision })
  }
  return getSchedule(engine, name)
}
const runsOf = async (name: string) =>
  (await pool.query('select run_id, id, status from workflow_runs where id like $1 order by id', [`${name}/%`])).rows
const hourly = (workflow: string, overlap?: ScheduleSpec['overlap']): ScheduleSpec => ({
  workflow,
  every: '1h',
  ...(overlap === undefined ? {} : { overlap }),
})

test('an interval schedule starts runs by itself, one for each time', async () => {
  await setSchedule(engine, 'seconds', { workflow: 'ticks', input: 7, every: '1s' })
  const stop = await watchSchedules(engine)
  await until(async () => (await runsOf('seconds')).filter(({ status }) => status === 'completed').length >= 3)
  await stop()
  const ids = (await runsOf('seconds')).map(({ id }) => id)
  assert.is(new Set(ids).size, ids.length)
  for (const id of ids) assert.match(id, /^seconds\/.*:\d\d\.000Z$/)
})

test('a cron schedule knows its next time in its zone, and a bad one is refused', async () => {
  const { nextAt } = await setSchedule(engine, 'noon', {
    workflow: 'ticks',
    cron: '0 12 * * *',
    timezone: 'Asia/Tokyo',
  })
  assert.is(nextAt.toISOString().slice(11), '03:00:00.000Z')
  assert.is(await codeOf(setSchedule(engine, 'bad', { workflow: 'ticks', cron: 'every day' })), 'invalid_request')
  assert.is(await codeOf(setSchedule(engine, 'bad', { workflow: 'nobody', every: '1h' })), 'not_found')
  assert.is(await codeOf(getSchedule(engine, 'bad')), 'not_found')
})

test('setting a schedule again as it is keeps its phase', async () => {
  await setSchedule(engine, 'again', hourly('ticks'))
  await pool.query(`update workflow_schedules set next_at = next_at - interval '1 minute' where name = 'again'`)
  const { nextAt } = await getSchedule(engine, 'again')
  assert.equal((await setSchedule(engine, 'again', hourly('ticks'))).nextAt, nextAt)
  assert.is.not((await setSchedule(engine, 'again', { ...hourly('ticks'), every: '2h' })).nextAt, nextAt)
})

test('skip leaves out a time while a run is open', async () => {
  await setSchedule(engine, 'skip', hourly('lasts'))
  const { started, skipped } = await come('skip', 3)
  assert.equal([started, skipped], [1, 2])
})

test('allow starts them side by side', async () => {
  await setSchedule(engine, 'allow', hourly('lasts', 'allow'))
  assert.is((await come('allow', 3)).started, 3)
})

test('buffer starts one more when the open run has ended', async () => {
  await setSchedule(engine, 'buffer', hourly('lasts', 'buffer'))
  const { started, skipped, bufferedAt, lastRunId } = await come('buffer', 3)
  assert.equal([started, skipped, bufferedAt !== null], [1, 1, true])
  await terminateRun(engine.control, lastRunId!)
  const { rows } = await pool.query(`select revision from workflow_schedules where name = 'buffer'`)
  await ring(engine, { name: 'buffer', revision: rows[0].revision })
  const after = await getSchedule(engine, 'buffer')
  assert.equal([after.started, after.bufferedAt], [2, null])
})

test('cancel lets the open run clean up, terminate does not wait', async () => {
  await setSchedule(engine, 'cancel', hourly('lasts', 'cancel'))
  const first = (await come('cancel')).lastRunId
  await come('cancel')
  const stop = await watchSchedules(engine)
  await until(async () => (await getSchedule(engine, 'cancel')).started === 2)
  await stop()
  const { rows } = await pool.query('select status from workflow_runs where run_id = $1', [first])
  assert.is(rows[0].status, 'cancelled')

  await setSchedule(engine, 'terminate', hourly('lasts', 'terminate'))
  await come('terminate', 2)
  assert.equal(
    (await runsOf('terminate')).map(({ status }) => status === 'terminated'),
    [true, false],
  )
})

test('a paused schedule starts nothing; resumed, it goes on with the next time', async () => {
  await setSchedule(engine, 'pause', hourly('ticks'))
  await pauseSchedule(engine, 'pause', true)
  assert.is((await come('pause')).started, 0)
  const resumed = await pauseSchedule(engine, 'pause', false)
  assert.ok(resumed.nextAt.getTime() > Date.now())
})

test('times missed by longer than the catch-up are passed over', async () => {
  await setSchedule(engine, 'late', { workflow: 'ticks', every: '1m', catchUp: '150s', overlap: 'allow' })
  const { rows } = await pool.query(
    `update workflow_schedules set next_at = date_trunc('minute', clock_timestamp()) - interval '1 day'
     where name = 'late' returning revision`,
  )
  await ring(engine, { name: 'late', revision: rows[0].revision })
  const { started } = await getSchedule(engine, 'late')
  assert.ok(started >= 2 && started <= 3, String(started))
})

test('backfill starts past times once, trigger starts one now', async () => {
  await setSchedule(engine, 'back', { workflow: 'ticks', cron: '0 * * * *' })
  const [from, to] = [new Date('2024-02-28T22:30:00Z'), new Date('2024-02-29T02:00:00Z')]
  const first = await backfillSchedule(engine, 'back', from, to)
  assert.equal(
    first.map(({ at, outcome }) => [at.toISOString(), outcome]),
    ['2024-02-28T23', '2024-02-29T00', '2024-02-29T01'].map((hour) => [`${hour}:00:00.000Z`, 'started']),
  )
  const again = await backfillSchedule(engine, 'back', from, to)
  assert.equal(
    again.map(({ outcome }) => outcome),
    ['had run', 'had run', 'had run'],
  )
  const long = backfillSchedule(engine, 'back', new Date('2000-01-01'), new Date('2020-01-01'))
  assert.is(await codeOf(long), 'invalid_request')
  const runId = await triggerSchedule(engine, 'back')
  await engine.results.wait(runId)
})

test.run()
