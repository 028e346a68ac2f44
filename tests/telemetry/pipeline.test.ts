import { sql } from 'drizzle-orm'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { LATENCY_BOUNDS_SECONDS } from '../../src/telemetry/latency.ts'
import { startServers } from '../servers.ts'
import { startService, until } from '../service.ts'

const servers = await startServers({ WORKER_POOL_SIZE: '3' })
const service = await startService(servers)
test.after(async () => {
  await service.stop()
  await servers.stop()
})

const event = (id: string, type = 'order.placed') => ({ id, type, source: 'test', data: { id } })

/** Reads one sample of /metrics; 0 when there is none. */
async function metric(line: string): Promise<number> {
  const { body } = await service.get('/metrics')
  const found = (body as string).split('\n').find((each) => each.startsWith(`${line} `))
  return found === undefined ? 0 : Number(found.slice(line.length + 1))
}

const settled = (rows: number) =>
  until(async () => {
    const { rows: found } = await servers.db.execute<{ count: string }>(sql`
      select count(*) from events join batches on batches.id = events.batch_id`)
    return Number(found[0]!.count) === rows
  })

/** The bucket a value falls in, by its number. */
const bucketOf = (ms: number) => {
  const at = LATENCY_BOUNDS_SECONDS.findIndex((bound) => ms / 1_000 <= bound)
  return at < 0 ? LATENCY_BOUNDS_SECONDS.length : at
}

async function bucketAtQuantile(name: string, quantile: number): Promise<number> {
  const { body } = await service.get('/metrics')
  const counts = (body as string)
    .split('\n')
    .filter((line) => line.startsWith(`${name}_bucket`))
    .map((line) => Number(line.split(' ').at(-1)))
  return counts.findIndex((count) => count >= quantile * counts.at(-1)!)
}

test('the histograms over every event and SQL over every row agree', async () => {
  const events = Array.from({ length: 2_000 }, (_, index) => event(`agree-${index}`))
  for (let at = 0; at < events.length; at += 250) {
    const { status } = await service.post(events.slice(at, at + 250))
    assert.is(status, 202)
  }
  await settled(2_000)
  const { status, body } = await service.get('/v1/stats/latency')
  assert.is(status, 200)
  assert.is(body.count, 2_000)
  assert.is(await metric('millrace_event_latency_seconds_count'), 2_000)
  assert.is(await metric('millrace_queue_latency_seconds_count'), 2_000)
  for (const [name, latency] of [
    ['millrace_event_latency_seconds', body.event],
    ['millrace_queue_latency_seconds', body.queue],
  ])
    for (const [quantile, ms] of [
      [0.5, latency.p50],
      [0.9, latency.p90],
      [0.99, latency.p99],
      [1, latency.max],
    ]) {
      assert.ok(ms >= 0)
      // Postgres keeps microseconds and JavaScript a double, so a value on a bound may fall on either side of it.
      assert.ok(
        Math.abs((await bucketAtQuantile(name, quantile)) - bucketOf(ms)) <= 1,
        `${name} at ${quantile}: SQL says ${ms} ms`,
      )
    }
  const { rows } = await servers.db.execute<{ sum: number }>(sql`
    select sum(extract(epoch from batches.committed_at - events.received_at))::float8 as sum
    from events join batches on batches.id = events.batch_id`)
  assert.ok(Math.abs((await metric('millrace_event_latency_seconds_sum')) - rows[0]!.sum) < 0.05)
})

test('latency is told by type and time, and a wrong time is refused', async () => {
  await service.post([event('typed-1', 'parcel.sent'), event('typed-2', 'parcel.sent')])
  await settled(2_002)
  assert.is((await service.get('/v1/stats/latency?type=parcel.sent')).body.count, 2)
  const before = await service.get('/v1/stats/latency?from=2001-01-01T00:00:00Z&to=2001-01-02T00:00:00Z')
  assert.is(before.body.count, 0)
  assert.is(before.body.event.p50, null)
  const wrong = await service.get('/v1/stats/latency?from=yesterday')
  assert.is(wrong.status, 400)
  assert.match(wrong.body.message, 'Parameter from must match')
  assert.is((await service.get('/v1/stats/latency?from=2016-12-31T23:59:60Z')).status, 400)
})

test('what happens is counted: accepted, rejected by code, committed, duplicates', async () => {
  const acceptedBefore = await metric('millrace_events_accepted_total')
  await service.post([event('typed-1', 'parcel.sent'), event('new-1'), { source: 'test' }])
  await settled(2_003)
  await until(async () => (await metric('millrace_events_duplicate_total')) === 1)
  assert.is(await metric('millrace_events_accepted_total'), acceptedBefore + 2)
  assert.is(await metric('millrace_events_rejected_total{code="invalid_event"}'), 1)
  assert.is(await metric('millrace_events_committed_total'), 2_003)
  assert.ok((await metric('millrace_publish_batches_total{outcome="stored"}')) >= 3)
  assert.ok((await metric('millrace_batches_total{outcome="committed"}')) >= 3)
  await until(async () => (await metric('millrace_queue_depth')) === 0)
  assert.is(await metric('millrace_queue_lag_seconds'), 0)
  await until(async () => (await metric('millrace_workers{state="pulling"}')) === 3)
  assert.ok((await metric('millrace_batch_target_events')) > 0)
  assert.ok((await metric('process_resident_memory_bytes')) > 1e6)
  assert.ok((await metric('process_cpu_seconds_total{mode="user"}')) > 0)
})

test('routes are labels, paths and ids are not', async () => {
  await service.get('/v1/nothing/of-the-kind-no-such-place')
  const { body } = await service.get('/metrics')
  assert.not.match(body, 'no-such-place')
  assert.match(body, /http_server_request_duration_seconds_count\{[^}]*http_route="\/v1\/events"/)
})

test('every event has a trace id, and it is the one that was answered', async () => {
  const given = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00'
  const traced = await service.post(event('traced-1'), { traceparent: given })
  assert.is(traced.headers.get('traceparent')!.split('-')[1], '0af7651916cd43dd8448eb211c80319c')
  const fresh = await service.post(event('traced-2'))
  await settled(2_005)
  const { rows } = await servers.db.execute<{ id: string; trace: string }>(sql`
    select id, replace(trace_id::text, '-', '') as trace from events where id like 'traced-%' order by id`)
  assert.equal(rows, [
    { id: 'traced-1', trace: '0af7651916cd43dd8448eb211c80319c' },
    { id: 'traced-2', trace: fresh.headers.get('traceparent')!.split('-')[1] },
  ])
})

test('each worker of the pool reports itself', async () => {
  const pools = await until(async () => {
    const { body } = await service.get('/v1/workers')
    const workers = body.processes.length === 1 ? body.processes[0].workers : []
    const idle = workers.every((each: any) => each.state === 'pulling' && each.inFlight === 0)
    return idle && workers.some((each: any) => each.committed > 0) && body
  })
  const [pool] = pools.processes
  assert.is(pool.silent, false)
  assert.equal(
    pool.workers.map((worker: any) => [worker.worker, worker.state, worker.inFlight, worker.stuck]),
    [
      [0, 'pulling', 0, false],
      [1, 'pulling', 0, false],
      [2, 'pulling', 0, false],
    ],
  )
})

test('a worker that dies of a defect is started again, and its events are committed by then', async () => {
  const { metrics } = service.telemetry
  const { eventsCommitted } = metrics
  let deaths = 0
  metrics.eventsCommitted = (...times) => {
    if (deaths++ === 0) throw new Error('a defect')
    eventsCommitted(...times)
  }
  await service.post(event('deadly-1'))
  await until(async () => {
    const { body } = await service.get('/v1/workers')
    return body.processes[0].workers.some((each: any) => each.restarts === 1 && each.lastError === 'a defect')
  })
  await service.post(Array.from({ length: 500 }, (_, index) => event(`after-${index}`)))
  await until(async () => {
    const { rows } = await servers.db.execute<{ count: string }>(
      sql`select count(*) from events where id like 'after-%'`,
    )
    return Number(rows[0]!.count) === 500
  })
  await until(async () => {
    const { body } = await service.get('/v1/workers')
    return body.processes[0].workers.every((each: any) => each.state === 'pulling')
  })
  metrics.eventsCommitted = eventsCommitted
})

test('a process is ready by what it needs, and says what is missing', async () => {
  const ready = await service.get('/readyz')
  assert.equal(ready, {
    status: 200,
    body: { ready: true, checks: { jetstream: 'ok', postgres: 'ok', workers: 'ok' } },
  })
})

test.run()
