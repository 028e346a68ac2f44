/**
 * A run's part in the trace that started it: one span for each stay of the run in a process, one for each attempt of a
 * step below it, and its children's below it too. Only a sampled trace is continued: the others cost one comparison.
 */

import { context, type Span, SpanKind, SpanStatusCode, type Tracer, trace } from '@opentelemetry/api'
import { formatTraceparent, parseTraceparent } from '../telemetry/traceparent.ts'

type Traced = { runId: string; name: string; epoch: number; traceparent: string | null }

/** @returns null in a trace that is not sampled, or where traces are off */
export function startRunSpan(tracer: Tracer | undefined, run: Traced): Span | null {
  if (tracer === undefined || !run.traceparent?.endsWith('01')) return null
  const parent = parseTraceparent(run.traceparent)
  if (parent === undefined) return null
  return tracer.startSpan(
    `workflow ${run.name}`,
    {
      kind: SpanKind.CONSUMER,
      attributes: { 'millrace.run.id': run.runId, 'millrace.workflow': run.name, 'millrace.run.epoch': run.epoch },
    },
    trace.setSpanContext(context.active(), parent),
  )
}

/** @param outcome  how the run left: completed, failed, parked, lost ... */
export function endRunSpan(span: Span | null, outcome: string): void {
  if (span === null) return
  span.setAttribute('millrace.run.outcome', outcome)
  if (outcome === 'failed' || outcome === 'stuck') span.setStatus({ code: SpanStatusCode.ERROR })
  span.end()
}

/** Runs an attempt under a span of its own, active for what the user's code traces itself. */
export async function inStepSpan<T>(
  tracer: Tracer | undefined,
  run: Span,
  step: { name: string; attempt: number },
  work: (traceparent: string) => T | Promise<T>,
): Promise<T> {
  if (tracer === undefined) return work(formatTraceparent(run.spanContext()))
  const span = tracer.startSpan(
    `step ${step.name}`,
    { attributes: { 'millrace.step.attempt': step.attempt } },
    trace.setSpan(context.active(), run),
  )
  try {
    return await context.with(trace.setSpan(context.active(), span), () => work(formatTraceparent(span.spanContext())))
  } catch (error) {
    span.recordException(error instanceof Error ? error : String(error))
    span.setStatus({ code: SpanStatusCode.ERROR })
    throw error
  } finally {
    span.end()
  }
}

/** What a child or a call outside continues. */
export const traceparentOf = (span: Span | null, own: string | null): string | null =>
  span === null ? own : formatTraceparent(span.spanContext())

/** The trace of whoever starts a run, where the process keeps an active span. */
export function activeTraceparent(): string | null {
  const span = trace.getActiveSpan()
  return span === undefined ? null : formatTraceparent(span.spanContext())
}
