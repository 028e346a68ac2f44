/** A trace as a picture in the terminal: who called whom, when, for how long, beside what the rows themselves measured. */

import type { StoredSpan } from './jaeger.ts'

/** A row of the trace, as Postgres has it. Latencies are null until the batch's commit time is written down. */
export type TracedRow = {
  source: string
  id: string
  type: string
  streamSeq: string
  worker: string | null
  eventMs: number | null
  queueMs: number | null
}

const LINES_MAX = 200
const BAR_CHARS_MIN = 20

/**
 * Draws spans as a tree on one time axis, then the rows.
 * @param spans    of the trace and of the batches it links to, in the order they should stand
 * @param columns  width of the terminal
 */
export function drawWaterfall(spans: StoredSpan[], rows: TracedRow[], columns: number): string {
  const lines: string[] = []
  if (spans.length > 0) {
    const nodes = arrange(spans)
    const nameWidth = Math.max(...nodes.map(({ span, depth }) => 2 * depth + span.name.length))
    const serviceWidth = Math.max(...nodes.map(({ span }) => span.service.length))
    const barWidth = Math.max(BAR_CHARS_MIN, columns - nameWidth - serviceWidth - 14)
    const startUs = Math.min(...spans.map((span) => span.startUs))
    const endUs = Math.max(...spans.map((span) => span.startUs + span.durationUs))
    const scale = barWidth / Math.max(1, endUs - startUs)
    let trace = ''
    for (const { span, depth } of nodes.slice(0, LINES_MAX)) {
      if (span.traceId !== trace) lines.push(...(trace === '' ? [] : ['']), `trace ${span.traceId}`)
      trace = span.traceId
      const name = `${'  '.repeat(depth)}${span.name}`.padEnd(nameWidth)
      const left = Math.min(barWidth - 1, Math.floor((span.startUs - startUs) * scale))
      const length = Math.max(1, Math.min(barWidth - left, Math.round(span.durationUs * scale)))
      const bar = `${' '.repeat(left)}${'█'.repeat(length)}`.padEnd(barWidth)
      lines.push(`${name}  ${span.service.padEnd(serviceWidth)}  ${bar} ${milliseconds(span.durationUs / 1_000)}`)
      const said = facts(span)
      if (said !== '') lines.push(`${'  '.repeat(depth + 1)}${said}`)
    }
    if (nodes.length > LINES_MAX) lines.push(`... and ${nodes.length - LINES_MAX} more spans`)
  }
  for (const row of rows) {
    lines.push(
      '',
      `row ${row.source} ${row.id} (${row.type}), stream sequence ${row.streamSeq}, ${row.worker ?? 'worker not known yet'}`,
      row.eventMs === null || row.queueMs === null
        ? '  its commit time is not written down yet'
        : `  measured: request to commit ${milliseconds(row.eventMs)}, stored to commit ${milliseconds(row.queueMs)}`,
    )
  }
  return lines.join('\n')
}

/** Spans depth first, children by start time; a span whose parent is not there stands at the top. */
function arrange(spans: StoredSpan[]): { span: StoredSpan; depth: number }[] {
  const present = new Set(spans.map((span) => span.spanId))
  const children = Map.groupBy(spans, (span) =>
    span.parentId !== undefined && present.has(span.parentId) ? span.parentId : 'top',
  )
  const arranged: { span: StoredSpan; depth: number }[] = []
  const visit = (parent: string, depth: number) => {
    for (const span of children.get(parent) ?? []) {
      arranged.push({ span, depth })
      visit(span.spanId, depth + 1)
    }
  }
  visit('top', 0)
  return arranged
}

/** What is worth knowing of a span beside its length. */
function facts({ tags }: StoredSpan): string {
  const said: string[] = []
  const number = (key: string) => milliseconds(Number(tags.get(key)))
  if (tags.has('millrace.outcome')) {
    said.push(`${tags.get('millrace.outcome')} at delivery ${tags.get('millrace.delivery_count')}`)
    said.push(`queue ${number('millrace.queue_wait_ms')}`)
    said.push(`batch ${number('millrace.batch_wait_ms')}`)
    said.push(`insert ${number('millrace.insert_ms')}`)
  }
  const count = tags.get('messaging.batch.message_count')
  if (count !== undefined) said.push(count === 1 ? '1 event' : `${count} events`)
  if (tags.has('millrace.dead_letter.id')) said.push(`dead letter ${tags.get('millrace.dead_letter.id')}`)
  if (tags.has('error.type')) said.push(`error ${tags.get('error.type')}: ${tags.get('otel.status_description') ?? ''}`)
  return said.join(', ')
}

const milliseconds = (ms: number) => `${ms < 10 ? ms.toFixed(2) : ms.toFixed(1)} ms`
