import { sql } from 'drizzle-orm'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { fetchSpans, type StoredSpan } from '../../src/telemetry/jaeger.ts'
import { showTrace } from '../../src/telemetry/show-trace.ts'
import { startServers } from '../servers.ts'
import { startService, until } from '../service.ts'
import { jaegerIsBuilt, startJaeger } from './jaeger.ts'

if (!jaegerIsBuilt()) {
  if (process.env.CI) throw new Error('CI builds Jaeger: make .venv/bin/jaeger')
  console.log('skipped: there is no Jaeger; `make .venv/bin/jaeger` builds it where Go is installed')
  test('skipped without Jaeger', () => {})
} else {
  const [servers, jaeger] = await Promise.all([startServers(), startJaeger()])
  const config = { ...servers.config, JAEGER_QUERY_URL: jaeger.queryUrl }
  const service = await startService(servers, {
    OTEL_EXPORTER_OTLP_ENDPOINT: jaeger.otlpUrl,
    // Nothing but what the caller samples.
    OTEL_TRACES_SAMPLER_ARG: 0,
    RETRY_DELAY_MS: 10,
  })
  test.after(async () => {
    await service.stop()
    await servers.stop()
    await jaeger.stop()
  })

  let traces = 0
  const newTrace = () => (++traces).toString(16).padStart(32, 'ab')
  const sampledBy = (traceId: string) => ({ traceparent: `00-${traceId}-00f067aa0ba902b7-01` })
  const spansOf = (traceId: string, enough: (spans: StoredSpan[]) => boolean) =>
    until(async () => {
      const spans = await fetchSpans(jaeger.queryUrl, traceId)
      return enough(spans) && spans
    })
  const named = (spans: StoredSpan[], name: string) => spans.filter((span) => span.name === name)
  const committed = (traceId: string, count: number) =>
    until(async () => {
      const { rows } = await servers.db.execute(sql`
        select 1 from events join batches on batches.id = events.batch_id where trace_id = ${traceId}::uuid`)
      return rows.length === count
    })

  test('one event is one trace, from the request to the commit, linked to its batch and back', async () => {
    const traceId = newTrace()
    await service.post({ id: 'a', source: 'test', type: 'order.placed' }, sampledBy(traceId))
    const spans = await spansOf(traceId, (found) => found.length === 3)
    const [server, send, process] = ['POST /v1/events', 'send EVENTS', 'process EVENTS'].map(
      (name) => named(spans, name)[0]!,
    )
    assert.is(server!.tags.get('span.kind'), 'server')
    assert.is(server!.tags.get('http.response.status_code'), 202)
    assert.is(send!.parentId, server!.spanId)
    assert.is(send!.tags.get('span.kind'), 'producer')
    assert.is(send!.tags.get('messaging.operation.type'), 'send')
    assert.is(process!.parentId, send!.spanId)
    assert.is(process!.tags.get('span.kind'), 'consumer')
    assert.is(process!.tags.get('messaging.destination.name'), 'EVENTS')
    assert.is(process!.tags.get('cloudevents.event_id'), 'a')
    assert.is(process!.tags.get('millrace.outcome'), 'inserted')
    assert.is(process!.tags.get('millrace.delivery_count'), 1)
    const waits = ['queue_wait', 'batch_wait', 'insert'].map((name) => Number(process!.tags.get(`millrace.${name}_ms`)))
    // The first is the difference of two processes' clocks.
    assert.ok(Math.abs(waits.reduce((sum, ms) => sum + ms, 0) - process!.durationUs / 1_000) < 3)

    const [batchTrace] = process!.linkedTraceIds
    const batch = await spansOf(batchTrace!, (found) => found.length === 4)
    const root = named(batch, 'batch ingest_workers')[0]!
    assert.equal(root.linkedTraceIds, [traceId])
    for (const name of ['receive EVENTS', 'INSERT events', 'ack EVENTS'])
      assert.is(named(batch, name)[0]!.parentId, root.spanId, name)
    const insert = named(batch, 'INSERT events')[0]!
    assert.is(insert.tags.get('db.system.name'), 'postgresql')
    assert.ok(String(insert.tags.get('db.query.text')).length <= 512)

    await committed(traceId, 1)
    const { rows } = await servers.db.execute<{ start: number; end: number }>(sql`
      select (extract(epoch from published_at) * 1e6)::float8 as start, (extract(epoch from committed_at) * 1e6)::float8 as end
      from events join batches on batches.id = batch_id where trace_id = ${traceId}::uuid`)
    assert.ok(Math.abs(process!.startUs - rows[0]!.start) < 10)
    assert.ok(Math.abs(process!.startUs + process!.durationUs - rows[0]!.end) < 10)
  })

  test('what the caller does not sample has a trace id in its row and no span', async () => {
    const quiet = newTrace()
    await service.post({ id: 'quiet', source: 'test', type: 't' }, { traceparent: `00-${quiet}-00f067aa0ba902b7-00` })
    await committed(quiet, 1)
    // A later sampled trace has arrived, so an earlier one would have.
    const loud = newTrace()
    await service.post({ id: 'loud', source: 'test', type: 't' }, sampledBy(loud))
    await spansOf(loud, (found) => found.length === 3)
    assert.equal(await fetchSpans(jaeger.queryUrl, quiet), [])
  })

  test('a duplicate says so, and a large request is bounded', async () => {
    const traceId = newTrace()
    const events = Array.from({ length: 300 }, (_, index) => ({ id: `many-${index}`, source: 'test', type: 't' }))
    await service.post([{ id: 'a', source: 'test', type: 't' }, ...events], sampledBy(traceId))
    const spans = await spansOf(traceId, (found) => named(found, 'process EVENTS').length === 128)
    assert.is(spans.length, 130)
    const outcomes = named(spans, 'process EVENTS').map((span) => span.tags.get('millrace.outcome'))
    assert.is(outcomes.filter((outcome) => outcome === 'duplicate').length, 1)
    await committed(traceId, 300)
  })

  test('a dead letter and its replay are in the trace of the event, although it was not sampled', async () => {
    const traceId = newTrace()
    await servers.db.execute(sql`
      alter table events add constraint no_poison check (type <> 'poison') not valid`)
    const seen = newTrace()
    await service.post({ id: 'seen', source: 'test', type: 'poison' }, sampledBy(seen))
    const attempts = await spansOf(seen, (found) => named(found, 'dead-letter EVENTS').length === 1)
    assert.equal(
      named(attempts, 'process EVENTS').map(({ tags }) => [
        tags.get('millrace.delivery_count'),
        tags.get('millrace.outcome'),
        tags.get('error.type'),
      ]),
      [1, 2, 3].map((delivery) => [delivery, 'poison', '23514']),
    )

    await service.post(
      { id: 'poison', source: 'test', type: 'poison' },
      { traceparent: `00-${traceId}-00f067aa0ba902b7-00` },
    )
    const dead = await spansOf(traceId, (found) => found.length === 1)
    const letter = named(dead, 'dead-letter EVENTS')[0]!
    assert.is(letter.tags.get('error.type'), '23514')
    assert.is(letter.tags.get('cloudevents.event_id'), 'poison')

    await servers.db.execute(sql`alter table events drop constraint no_poison`)
    const operator = newTrace()
    await fetch(`${service.url}/v1/dead-letters/actions/replay`, {
      method: 'POST',
      headers: { 'content-type': 'application/json', ...sampledBy(operator) },
      body: JSON.stringify({ type: 'poison', ids: ['poison'] }),
    })
    const spans = await spansOf(traceId, (found) => found.length === 3)
    const replay = named(spans, 'replay EVENTS')[0]!
    assert.is(replay.parentId, letter.spanId)
    assert.is(replay.tags.get('millrace.dead_letter.id'), letter.tags.get('millrace.dead_letter.id'))
    assert.equal(replay.linkedTraceIds, [operator])
    const process = named(spans, 'process EVENTS')[0]!
    assert.is(process.parentId, replay.spanId)
    assert.is(process.tags.get('millrace.outcome'), 'inserted')
    await committed(traceId, 1)
  })

  test('millrace trace draws the spans beside what the row measured', async () => {
    const traceId = newTrace()
    const { headers } = await service.post({ id: 'drawn', source: 'test', type: 't' }, sampledBy(traceId))
    await spansOf(traceId, (found) => found.length === 3)
    await committed(traceId, 1)
    const picture = await showTrace(servers, config, headers.get('traceparent')!, 120)
    for (const line of [
      /^POST \/v1\/events +millrace-test +█+ +[\d.]+ ms$/m,
      /^ {2}send EVENTS +millrace-test/m,
      /^ {4}process EVENTS +millrace-test/m,
      /inserted at delivery 1, queue [\d.]+ ms, batch [\d.]+ ms, insert [\d.]+ ms/,
      /^ {2}INSERT events/m,
      /^row test drawn \(t\), stream sequence \d+/m,
      /measured: request to commit [\d.]+ ms, stored to commit [\d.]+ ms/,
    ])
      assert.match(picture, line)
  })

  test('without Jaeger the row is still shown, and an unknown trace is said to be unknown', async () => {
    const traceId = newTrace()
    await service.post({ id: 'alone', source: 'test', type: 't' }, sampledBy(traceId))
    await committed(traceId, 1)
    const away = { JAEGER_QUERY_URL: 'http://127.0.0.1:9' }
    const picture = await showTrace(servers, away, traceId, 120)
    assert.match(picture, 'row test alone')
    assert.match(picture, 'No Jaeger answers at http://127.0.0.1:9')
    await showTrace(servers, config, 'f'.repeat(32), 120).then(
      () => assert.unreachable(),
      (error) => assert.is(error.code, 'not_found'),
    )
    await showTrace(servers, config, 'nonsense', 120).then(
      () => assert.unreachable(),
      (error) => assert.is(error.code, 'invalid_request'),
    )
  })
}

test.run()
