/** The page and the terminal text of `make benchmark-compare`. */

import { type Colour, dotChart, lineChart, median } from './chart.ts'
import { busyNote, escapeHtml, htmlTable, readable, textTable } from './format.ts'
import { type Comparison, type Gain, gainsOf, type Measured, STAGES } from './gains.ts'
import { htmlPage } from './page.ts'

const middle = (rounds: Measured[], of: (one: Measured) => number) => readable(median(rounds.map(of)))

const STAGE_HEAD = [
  'stage',
  'events/s',
  'batch',
  'inserts',
  'transactions',
  'pull requests',
  'NATS messages',
  'light p50',
  'light p99',
]
const stageRows = ({ measured }: Comparison) =>
  STAGES.map(({ name }, index) => {
    const rounds = measured[index]!
    return [
      name,
      middle(rounds, (one) => one.eventsPerS),
      middle(rounds, (one) => one.batchSize),
      middle(rounds, (one) => one.insertsPer1000),
      middle(rounds, (one) => one.commitsPer1000),
      middle(rounds, (one) => one.pullsPer1000),
      middle(rounds, (one) => one.messagesPer1000),
      `${middle(rounds, (one) => one.lightMs.p50)} ms`,
      `${middle(rounds, (one) => one.lightMs.p99)} ms`,
    ]
  })

const expectation = ({ expected }: Gain) =>
  expected === null ? '–' : expected[0] === expected[1] ? `${expected[0]}×` : `${expected[0]}–${expected[1]}×`
const measure = ({ factor, low, high }: Gain) =>
  low === high ? `${readable(factor)}×` : `${readable(factor)}× (${readable(low)}–${readable(high)})`
const verdict = ({ verdict: of, agreed }: Gain) => (agreed ? of : `${of}; rounds disagree`)
const GAIN_HEAD = ['gain', 'expected', 'measured', '']

const lead = ({ startedAt, rounds, backlog, lightEventsPerS, cores, loadBefore }: Comparison) =>
  `${rounds === 1 ? 'One round' : `${rounds} rounds in alternating order`} on ${cores} cores, ${startedAt.slice(0, 16).replace('T', ' ')} UTC. Each stage of each round has a database and a nats-server of its own, fsync on: first ${lightEventsPerS} single events/s, then a worker process drains a backlog of ${readable(backlog)} events for a few seconds. Figures are medians of the rounds; a gain is the median of the ratios within each round.${busyNote(loadBefore)}`

/** The page, whole. */
export function stagesPage(comparison: Comparison): string {
  const { measured } = comparison
  const rows = (dots: { name: string; colour: Colour; of: (one: Measured) => number }[]) =>
    STAGES.map(({ name }, index) => ({
      name,
      dots: dots.map((dot) => ({ name: dot.name, colour: dot.colour, values: measured[index]!.map(dot.of) })),
    }))
  const curves = STAGES.map(({ name }, index) => {
    const byRate = measured[index]!.toSorted((a, b) => a.eventsPerS - b.eventsPerS)
    return { name, colour: (index + 1) as Colour, points: byRate[(byRate.length - 1) >> 1]!.curve }
  })
  const charts = [
    dotChart({
      title: 'Throughput',
      says: 'draining the backlog',
      unit: 'events/s',
      rows: rows([{ name: 'events/s', colour: 1, of: (one) => one.eventsPerS }]),
    }),
    dotChart({
      title: 'Queue latency under a light load',
      says: 'from the event to its committed row',
      unit: 'ms',
      rows: rows([
        { name: 'p50', colour: 1, of: (one) => one.lightMs.p50 },
        { name: 'p99', colour: 3, of: (one) => one.lightMs.p99 },
      ]),
    }),
    dotChart({
      title: 'Database',
      says: 'transactions per 1,000 events',
      unit: 'per 1,000',
      rows: rows([
        { name: 'inserts', colour: 4, of: (one) => one.insertsPer1000 },
        { name: 'all transactions', colour: 5, of: (one) => one.commitsPer1000 },
      ]),
    }),
    dotChart({
      title: 'NATS',
      says: 'messages from the worker per 1,000 events',
      unit: 'per 1,000',
      rows: rows([
        { name: 'pull requests', colour: 4, of: (one) => one.pullsPer1000 },
        { name: 'all, acknowledgements included', colour: 5, of: (one) => one.messagesPer1000 },
      ]),
    }),
    dotChart({
      title: 'Batch size',
      says: 'events per transaction while draining, on average',
      unit: 'events',
      rows: rows([{ name: 'events', colour: 1, of: (one) => one.batchSize }]),
    }),
    lineChart({
      title: 'Draining the backlog',
      says: 'events committed since the first batch; each stage in its median round',
      unit: 'events',
      series: curves,
      xMax: Math.max(...curves.flatMap(({ points }) => points.map(([at]) => at))),
    }),
  ]
  const gains = gainsOf(comparison).map((gain) => {
    const colour = gain.verdict === 'less than expected' ? 'bad' : gain.expected === null ? 'soft' : 'good'
    return [
      gain.says,
      expectation(gain),
      measure(gain),
      `<span class="${colour}">${gain.verdict}</span>${gain.agreed ? '' : '<br><small class="soft">rounds disagree</small>'}`,
      gain.why,
    ]
  })
  const figures = stageRows(comparison).map(([name, ...cells], index) => [
    `<span>${name}<br><small class="soft">${escapeHtml(STAGES[index]!.says)}</small></span>`,
    ...cells,
  ])
  return htmlPage(
    'Millrace benchmark: the stages compared',
    `<h1>The stages of tuning, side by side</h1><p class="soft">${escapeHtml(lead(comparison))}</p>
<h2>Measured against what was expected</h2><div class="prose">${htmlTable([...GAIN_HEAD, 'why'], gains)}</div>
<h2>Stage by stage</h2><div class="charts">${charts.join('')}</div>
<h2>The figures</h2>${htmlTable(STAGE_HEAD, figures)}
<p class="soft">Inserts, transactions, pull requests and messages are per 1,000 committed events.</p>`,
  )
}

/** The same for the terminal. */
export const stagesText = (comparison: Comparison): string =>
  [
    `Medians of ${comparison.rounds} rounds.${busyNote(comparison.loadBefore)}`,
    textTable(STAGE_HEAD, stageRows(comparison)),
    textTable(
      GAIN_HEAD,
      gainsOf(comparison).map((gain) => [gain.says, expectation(gain), measure(gain), verdict(gain)]),
    ),
  ].join('\n\n')
