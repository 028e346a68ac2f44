/** The page and the terminal text of one run of `make benchmark`. */

import { type Colour, lineChart } from './chart.ts'
import { busyNote, escapeHtml, htmlTable, readable, readableChange, textTable, withUnit } from './format.ts'
import { htmlPage, tiles } from './page.ts'
import type { Bin, Move, Percentiles, Summary } from './summary.ts'

/** The run that this one is compared with. */
export type Earlier = { startedAt: string; differs: string[]; moves: Move[] }

const ms = (value: number | undefined) => (value === undefined ? '–' : `${readable(value)} ms`)
const when = (iso: string) => `${iso.slice(0, 16).replace('T', ' ')} UTC`

function headline({ requests, events, apiMs, queueMs, uncommittedMax, batch }: Summary) {
  const spread = (of: Percentiles) => `p50 · p90 ${ms(of.p90)} · p99 ${ms(of.p99)} · max ${ms(of.max)}`
  return [
    {
      name: 'Requests',
      figure: withUnit(requests.perS, '/s'),
      says: `${readable(requests.count)} sent · ${requests.failed} failed`,
    },
    {
      name: 'Events accepted',
      figure: withUnit(events.acceptedPerS, '/s'),
      says: `${readable(events.accepted)} answered as on disk`,
    },
    {
      name: 'Events committed',
      figure: withUnit(events.committedPerS, '/s'),
      says: `${readable(events.committed)} rows in Postgres`,
    },
    { name: 'API latency', figure: ms(apiMs.p50), says: spread(apiMs) },
    { name: 'Queue latency', figure: ms(queueMs.p50), says: spread(queueMs) },
    { name: 'Deepest queue', figure: readable(uncommittedMax), says: 'events stored and not yet committed' },
    {
      name: 'Batch size',
      figure: readable(batch.p50),
      says: `p50 · max ${readable(batch.max)} · of ${readable(batch.count)} batches`,
    },
  ]
}

const kindRows = (summary: Summary) =>
  summary.kinds.map(({ kind, requests, events, apiMs, queueMs }) => [
    kind,
    readable(requests),
    readable(events),
    ms(apiMs.p50),
    ms(apiMs.p99),
    ms(queueMs?.p50),
    ms(queueMs?.p99),
  ])
const KIND_HEAD = ['request', 'requests', 'events', 'API p50', 'API p99', 'queue p50', 'queue p99']

const moveCells = ({ says, unit, before, now, change, verdict }: Move) => [
  says,
  withUnit(before, unit),
  withUnit(now, unit),
  verdict === 'same' && change === null ? '' : readableChange(change),
  verdict,
]
const MOVE_HEAD = ['', 'before', 'now', 'change', '']

function charts({ timeline: { binS, bins, depth, uncommitted }, run }: Summary): string {
  // Until the queue is all but empty: a poison event stays unacknowledged through its attempts.
  const deepest = Math.max(0, ...depth.map(({ unacknowledged }) => unacknowledged))
  const drainedS = depth.findLast(({ unacknowledged }) => unacknowledged > 0.02 * deepest)?.atS ?? 0
  const xMax = Math.max(bins.length * binS, Math.min(drainedS, run.seconds * 1.5))
  const depths = <T extends { atS: number }>(all: T[], of: (one: T) => number): [number, number][] =>
    all.filter(({ atS }) => atS <= xMax).map((one) => [one.atS, of(one)])
  const over = (of: (bin: Bin) => number | null | undefined): [number, number | null][] =>
    bins.map((bin) => [bin.atS + binS / 2, of(bin) ?? null])
  const line = (name: string, colour: Colour, of: (bin: Bin) => number | null | undefined, area = false) => ({
    name,
    colour,
    points: over(of),
    area,
  })
  const spread = (of: (bin: Bin) => Percentiles | null) => [
    line('p50', 1, (bin) => of(bin)?.p50),
    line('p90', 2, (bin) => of(bin)?.p90),
    line('p99', 3, (bin) => of(bin)?.p99),
  ]
  const markS = run.seconds
  return `<div class="charts">${[
    lineChart({
      title: 'Throughput',
      says: 'events accepted by the API and committed to Postgres',
      unit: 'events/s',
      series: [line('accepted', 1, (bin) => bin.acceptedPerS), line('committed', 3, (bin) => bin.committedPerS)],
      xMax,
      markS,
    }),
    lineChart({
      title: 'Requests',
      says: 'answered by the API',
      unit: 'requests/s',
      series: [line('requests', 1, (bin) => bin.requestsPerS, true)],
      xMax,
      markS,
    }),
    lineChart({
      title: 'API latency',
      says: 'from sending a request to its answer, as the client saw it',
      unit: 'ms',
      scale: 'log',
      series: spread((bin) => bin.apiMs),
      xMax,
      markS,
    }),
    lineChart({
      title: 'Queue latency',
      says: 'from arrival at the API to the committed row',
      unit: 'ms',
      scale: 'log',
      series: spread((bin) => bin.queueMs),
      xMax,
      markS,
    }),
    lineChart({
      title: 'Queue depth',
      says: 'exactly by the database, and as JetStream tells it',
      unit: 'events',
      series: [
        { name: 'stored, not committed', colour: 1, points: depths(uncommitted, ({ events }) => events), area: true },
        { name: 'not delivered', colour: 3, points: depths(depth, ({ waiting }) => waiting) },
        { name: 'not acknowledged', colour: 5, points: depths(depth, ({ unacknowledged }) => unacknowledged) },
      ],
      xMax,
      markS,
    }),
    lineChart({
      title: 'Adaptive batch size',
      says: 'events per transaction',
      unit: 'events',
      series: [line('p50', 1, (bin) => bin.batch?.p50), line('largest', 4, (bin) => bin.batch?.max)],
      xMax,
      markS,
    }),
  ].join('')}</div>`
}

/** The page, whole. */
export function benchmarkPage(summary: Summary, earlier: Earlier | null): string {
  const { run, checks } = summary
  const service = run.url ?? 'a service of its own (API and worker processes, fsync on)'
  const lead = `${run.users} concurrent users for ${readable(run.seconds)} s against ${service}; ${when(run.startedAt)}. Queue latency is read from the database by the trace id of every request: batches.committed_at − events.received_at.${busyNote(run.loadBefore)}`
  return htmlPage(
    `Millrace benchmark ${when(run.startedAt)}`,
    `<h1>Millrace benchmark</h1><p class="soft">${escapeHtml(lead)}</p>
${tiles(headline(summary))}${charts(summary)}
<h2>By kind of request</h2>${htmlTable(KIND_HEAD, kindRows(summary))}
<h2>Do the sums agree?</h2>${htmlTable(
      ['', 'left', 'right', ''],
      checks.map(({ says, left, right, holds }) => [
        says,
        readable(left),
        readable(right),
        holds ? '<span class="good">✓ agrees</span>' : '<span class="bad">✗ differs</span>',
      ]),
    )}
<h2>What moved</h2>${earlierSection(earlier)}
<h2>Where it ran</h2><p class="soft">${escapeHtml(`${run.cores} cores shared by clients, servers and service; Node ${run.node}; Postgres ${run.postgres}; nats-server ${run.nats}. The clients' own CPU time is part of API latency.`)}</p>`,
  )
}

function earlierSection(earlier: Earlier | null): string {
  if (earlier === null) return '<p class="soft">This is the first report here; the next one is compared with it.</p>'
  const { startedAt, differs, moves } = earlier
  const warning = differs.length > 0 ? ` <span class="bad">Not alike:</span> ${escapeHtml(differs.join('; '))}.` : ''
  const rows = moves.map((move) => {
    const [says, before, now, change, verdict] = moveCells(move)
    const colour = move.verdict === 'better' ? 'good' : move.verdict === 'worse' ? 'bad' : 'soft'
    return [says!, before!, now!, change!, `<span class="${colour}">${verdict}</span>`]
  })
  return `<p class="soft">Against the run of ${when(startedAt)}; within 15 % counts as the same.${warning}</p>${htmlTable(MOVE_HEAD, rows)}`
}

/** The same for the terminal. */
export function benchmarkText(summary: Summary, earlier: Earlier | null): string {
  const parts = [
    textTable(
      ['', 'figure', ''],
      headline(summary).map(({ name, figure, says }) => [name, figure, says]),
    ),
    textTable(KIND_HEAD, kindRows(summary)),
    summary.checks
      .map(({ says, left, right, holds }) =>
        holds ? `✓ ${says} (${readable(left)})` : `✗ ${says}: ${readable(left)} and ${readable(right)}`,
      )
      .join('\n'),
  ]
  if (busyNote(summary.run.loadBefore) !== '') parts.push(busyNote(summary.run.loadBefore).trim())
  if (earlier !== null) {
    const { startedAt, differs, moves } = earlier
    parts.push(
      [
        `Against the run of ${when(startedAt)} (within 15 % counts as the same)`,
        ...differs.map((difference) => `  not alike: ${difference}`),
        textTable(MOVE_HEAD, moves.map(moveCells)),
      ].join('\n'),
    )
  }
  return parts.join('\n\n')
}
