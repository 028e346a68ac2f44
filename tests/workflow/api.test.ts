/** The workflow API over HTTP, and events that start and wake runs through the whole pipeline. */

import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { workflow } from '../../src/index.ts'
import { startServers } from '../servers.ts'
import { startService, until } from '../service.ts'

const servers = await startServers()

const doubles = workflow('doubles', async (run, n: number) => run.step('double', () => n * 2))
const approval = workflow('approval', async (run, what: string) => {
  run.setState({ asking: what })
  const yes = await run.signal('answer')
  return { what, yes }
})
let cardWorks = false
let charged = 0
const pays = workflow('pays', async (run) => {
  await run.step('reserve', () => 'reserved')
  await run.step(
    'charge',
    () => {
      charged += 1
      if (!cardWorks) throw new Error('card declined')
      return 'paid'
    },
    { retry: { attempts: 1 } },
  )
  return 'done'
})
const fulfil = workflow('fulfil', { on: { event: 'order.placed', key: (e) => e.data.orderId } }, async (run, order) => {
  const shipped = await run.waitFor('parcel.shipped', { key: order.orderId, timeout: '1h' })
  return { order: order.orderId, parcel: shipped?.id }
})

const service = await startService(servers, {}, [doubles, approval, pays, fulfil])
test.after(async () => {
  await service.stop()
  await servers.stop()
})

const call = async (method: string, path: string, body?: unknown, headers: Record<string, string> = {}) => {
  const response = await fetch(`${service.url}${path}`, {
    method,
    headers: { 'content-type': 'application/json', ...headers },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  })
  return { status: response.status, headers: response.headers, body: (await response.json()) as any }
}
const start = (name: string, body: object = {}) => call('POST', `/v1/workflows/${name}/runs`, body)

test('a run is started, waited for and shown with its history', async () => {
  const traceId = '4bf92f3577b34da6a3ce929d0e0e4736'
  const started = await call(
    'POST',
    '/v1/workflows/doubles/runs',
    { input: 21, attributes: { tenant: 'acme', attempt: 2 } },
    { traceparent: `00-${traceId}-00f067aa0ba902b7-01` },
  )
  assert.is(started.status, 201)
  const { runId } = started.body
  assert.is(started.headers.get('location'), `/v1/runs/${runId}`)
  const result = await call('GET', `/v1/runs/${runId}/result?wait=20`)
  assert.is(result.status, 200)
  assert.equal(result.body, { runId, status: 'completed', output: 42 })
  const { body: run } = await call('GET', `/v1/runs/${runId}`)
  assert.is(run.status, 'completed')
  assert.is(run.input, 21)
  assert.is(run.traceId, traceId)
  assert.is(run.steps, 1)
  const { body: history } = await call('GET', `/v1/runs/${runId}/history`)
  assert.equal(
    history.lines.map((line: { kind: string; name: string; output: unknown }) => [line.kind, line.name, line.output]),
    [['step', 'double', 42]],
  )
  const found = await call('GET', '/v1/runs?attributes=tenant:acme,attempt:2')
  assert.equal(
    found.body.runs.map((each: { runId: string }) => each.runId),
    [runId],
  )
})

test('a start is idempotent by id, and conflicts go by the policies asked for', async () => {
  const id = 'orders/7'
  const first = await start('approval', { input: 'a', id })
  assert.is((await start('approval', { input: 'b', id })).body.runId, first.body.runId)
  const refused = await start('approval', { id, onConflict: 'fail' })
  assert.is(refused.status, 409)
  assert.is(refused.body.runId, first.body.runId)
  const other = await start('approval', { input: 'c', id, onConflict: 'terminate' })
  assert.is.not(other.body.runId, first.body.runId)
  assert.is((await call('GET', `/v1/runs/${first.body.runId}`)).body.status, 'terminated')
  assert.is((await call('GET', `/v1/runs/${encodeURIComponent(id)}`)).body.runId, other.body.runId)
})

test('state is shown, a signal arrives, a long poll says what is known at its end', async () => {
  const { runId } = (await start('approval', { input: 'ship it' })).body
  const state = await until(async () => {
    const { body } = await call('GET', `/v1/runs/${runId}/state`)
    return body.state !== null && body
  })
  assert.equal(state.state, { asking: 'ship it' })
  const early = await call('GET', `/v1/runs/${runId}/result?wait=0.05`)
  assert.is(early.status, 202)
  assert.is((await call('POST', `/v1/runs/${runId}/signals/answer`, { by: 'ann' })).status, 202)
  const { body } = await call('GET', `/v1/runs/${runId}/result?wait=20`)
  assert.equal(body.output, { what: 'ship it', yes: { by: 'ann' } })
  assert.is((await call('POST', `/v1/runs/${runId}/signals/answer`)).status, 409)
})

test('a run is cancelled and terminated', async () => {
  const cancelled = (await start('approval')).body.runId
  assert.is((await call('POST', `/v1/runs/${cancelled}/cancel`)).status, 202)
  const { body } = await call('GET', `/v1/runs/${cancelled}/result?wait=20`)
  assert.is(body.status, 'cancelled')
  assert.is((await call('POST', `/v1/runs/${cancelled}/cancel`)).status, 409)
  const terminated = (await start('approval')).body.runId
  assert.is((await call('POST', `/v1/runs/${terminated}/terminate`)).status, 200)
  assert.is((await call('GET', `/v1/runs/${terminated}/result?wait=20`)).body.status, 'terminated')
})

test('a dead run is replayed from the step that failed, once', async () => {
  const { runId } = (await start('pays', { id: 'pay-1' })).body
  const { body: dead } = await call('GET', `/v1/runs/${runId}/result?wait=20`)
  assert.is(dead.status, 'failed')
  assert.is(dead.error.message, 'card declined')
  const dry = await call('POST', '/v1/dead-runs/replay', { name: 'pays', dryRun: true })
  assert.equal(
    dry.body.runs.map((each: { outcome: string }) => each.outcome),
    ['would be restarted'],
  )
  cardWorks = true
  const { body } = await call('POST', '/v1/dead-runs/replay', { name: 'pays' })
  assert.is(body.runs[0].outcome, 'restarted')
  const again = body.runs[0].newRunId
  assert.is((await call('GET', `/v1/runs/${again}/result?wait=20`)).body.output, 'done')
  assert.is(charged, 2)
  const { lines } = (await call('GET', `/v1/runs/${again}/history`)).body
  const reserved = (await call('GET', `/v1/runs/${runId}/history`)).body.lines[0]
  // Taken over, not run again.
  assert.equal(lines[0], reserved)
  const twice = await call('POST', '/v1/dead-runs/replay', { name: 'pays' })
  assert.is(twice.body.runs[0].outcome, 'refused')
})

test('a run is restarted from a named step', async () => {
  const { runId } = (await start('pays')).body
  await call('GET', `/v1/runs/${runId}/result?wait=20`)
  const before = charged
  const { status, body } = await call('POST', `/v1/runs/${runId}/restart`, { from: 'charge' })
  assert.is(status, 201)
  assert.is((await call('GET', `/v1/runs/${body.runId}/result?wait=20`)).body.output, 'done')
  assert.is(charged, before + 1)
  assert.is((await call('POST', `/v1/runs/${runId}/restart`, { from: 'nothing' })).status, 404)
})

test('runs are listed by name, status and time, page by page', async () => {
  const ids: string[] = []
  for (let n = 0; n < 5; n++) ids.push((await start('doubles', { input: n })).body.runId)
  for (const id of ids) await call('GET', `/v1/runs/${id}/result?wait=20`)
  const seen: string[] = []
  let cursor = ''
  do {
    const { body } = await call('GET', `/v1/runs?name=doubles&status=completed&limit=2${cursor}`)
    seen.push(...body.runs.map((run: { runId: string }) => run.runId))
    cursor = body.next === null ? '' : `&cursor=${body.next}`
  } while (cursor !== '')
  assert.equal(seen.slice(0, 5), ids.toReversed())
  assert.is((await call('GET', `/v1/runs?name=doubles&to=2001-01-01T00:00:00Z`)).body.runs.length, 0)
})

test('what is wrong with a request is said', async () => {
  for (const [method, path, body, status, says] of [
    ['POST', '/v1/workflows/nobody/runs', {}, 404, /No worker has loaded/],
    ['POST', '/v1/workflows/doubles/runs', { inptu: 1 }, 400, /'inptu'.*known: input/],
    ['POST', '/v1/workflows/doubles/runs', { delay: 'soon' }, 400, /'30s'/],
    ['POST', '/v1/workflows/doubles/runs', { attributes: { a: '\u0000' } }, 400, /NUL/],
    ['POST', '/v1/workflows/doubles/runs', { version: '9' }, 404, /of version 9/],
    ['GET', '/v1/runs?status=done', undefined, 400, /status/],
    ['GET', '/v1/runs/no-such-run', undefined, 404, /no-such-run/],
    ['GET', '/v1/runs?attributes=x', undefined, 400, /attributes/],
  ] as const) {
    const answer = await call(method, path, body)
    assert.is(answer.status, status, path)
    assert.match(answer.body.message, says)
  }
  const deep = `${'['.repeat(5_000)}${']'.repeat(5_000)}`
  const response = await fetch(`${service.url}/v1/workflows/doubles/runs`, {
    method: 'POST',
    body: `{"input":${deep}}`,
  })
  assert.is(response.status, 400)
})

test('an ingested event starts a run once per key, and another wakes it', async () => {
  const source = '/shop'
  const placed = { source, type: 'order.placed', data: { orderId: 'o-1' } }
  await service.post([placed, { ...placed, id: 'again' }])
  const run = await until(async () => {
    const { status, body } = await call('GET', '/v1/runs/fulfil%3Ao-1')
    return status === 200 && body
  })
  await service.post({ source, id: 'parcel-9', type: 'parcel.shipped', subject: 'o-1' })
  const { body } = await call('GET', `/v1/runs/${run.runId}/result?wait=20`)
  assert.equal(body.output, { order: 'o-1', parcel: 'parcel-9' })
  const { body: all } = await call('GET', '/v1/runs?name=fulfil')
  assert.is(all.runs.length, 1)
})

test('runs, steps and the time until a start are counted', async () => {
  const { body } = await service.get('/metrics')
  for (const sample of [
    /^millrace_workflow_runs_ended_total\{status="completed"\} [1-9]/m,
    /^millrace_workflow_runs_ended_total\{status="failed"\} [1-9]/m,
    /^millrace_workflow_step_attempts_total\{outcome="[a-z]+"\} [1-9]/m,
    /^millrace_workflow_schedule_to_start_seconds_count\S* [1-9]/m,
  ])
    assert.match(body, sample)
})

test.run()
