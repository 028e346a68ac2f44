import { InMemorySpanExporter, SimpleSpanProcessor, TracerProvider } from '@opentelemetry/sdk-trace'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { startRun, workflow } from '../../src/index.ts'
import { startServers } from '../servers.ts'
import { enginesOf } from './engine.ts'

const servers = await startServers()
const exporter = new InMemorySpanExporter()
const provider = new TracerProvider({ spanProcessors: [new SimpleSpanProcessor({ exporter })] })
const counts: string[] = []
const waits: number[] = []
const metrics = {
  runEnded: (status: string) => counts.push(`ended ${status}`),
  stepAttempted: (outcome: string) => counts.push(`step ${outcome}`),
  runBegun: (seconds: number) => {
    waits.push(seconds)
    counts.push(seconds >= 0 ? 'begun' : 'begun before it was due')
  },
  leaseLost: () => {},
  observeRuns: () => {},
}
const engines = enginesOf(servers, { tracing: { tracer: provider.getTracer('test') }, metrics })
test.after(async () => {
  await engines.stop()
  await servers.stop()
})

const traceId = '0af7651916cd43dd8448eb211c80319c'
const leaf = workflow('leaf', async (run) => run.step('work', (tools) => tools.traceparent))
const root = workflow('root', async (run) => {
  await run.step('flaky', ({ attempt }) => (attempt === 1 ? Promise.reject(new Error('once')) : null), {
    retry: { first: 1 },
  })
  return run.child(leaf, null)
})

test('the trace of the starter goes through every attempt and child run', async () => {
  const engine = await engines.start([root, leaf])
  const handle = await startRun(engine, root, null, { traceparent: `00-${traceId}-b7ad6b7169203331-01` })
  const inner = (await handle.result()) as string
  await engines.stop()
  const spans = exporter.getFinishedSpans()
  const named = (name: string) => spans.filter((span) => span.name === name)
  const idOf = (name: string) => named(name)[0]!.spanContext().spanId
  assert.equal([...new Set(spans.map((span) => span.spanContext().traceId))], [traceId])
  assert.is(named('workflow root')[0]!.parentSpanContext?.spanId, 'b7ad6b7169203331')
  assert.equal(
    named('step flaky').map((span) => [span.parentSpanContext?.spanId, span.attributes['millrace.step.attempt']]),
    [
      [idOf('workflow root'), 1],
      [idOf('workflow root'), 2],
    ],
  )
  assert.is(named('workflow leaf')[0]!.parentSpanContext?.spanId, idOf('workflow root'))
  assert.is(named('step work')[0]!.parentSpanContext?.spanId, idOf('workflow leaf'))
  assert.is(inner, `00-${traceId}-${idOf('step work')}-01`)
  assert.equal(counts.toSorted(), [
    'begun',
    'begun',
    'ended completed',
    'ended completed',
    'step completed',
    'step completed',
    'step failed',
  ])
})

test('a run outside a sampled trace makes no span', async () => {
  exporter.reset()
  const engine = await engines.start([leaf])
  await (await startRun(engine, leaf, null)).result()
  await (await startRun(engine, leaf, null, { traceparent: `00-${traceId}-b7ad6b7169203331-00` })).result()
  assert.is(exporter.getFinishedSpans().length, 0)
})

test('the time until a start counts from the start, or from when a delayed run is due', async () => {
  // Those of the tests before would take the run at once.
  await engines.stop()
  const { pool } = servers.database
  const starter = await engines.start([])
  const queued = await startRun(starter, leaf, null)
  await pool.query(`update workflow_runs set created_at = created_at - interval '1 hour' where run_id = $1`, [
    queued.runId,
  ])
  waits.length = 0
  await engines.start([leaf])
  await queued.result()
  assert.is(waits.length, 1)
  assert.ok(waits[0]! >= 3_590, String(waits[0]))
  const delayed = await startRun(starter, leaf, null, { delay: '2h' })
  await pool.query(
    `update workflow_runs set created_at = created_at - interval '2 hours', due_at = due_at - interval '3 hours' where run_id = $1`,
    [delayed.runId],
  )
  await delayed.result()
  assert.is(waits.length, 2)
  assert.ok(waits[1]! >= 3_590 && waits[1]! < 7_000, String(waits[1]))
})

test.run()
