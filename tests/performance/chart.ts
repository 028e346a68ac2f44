/** Charts as SVG text that stands in a page: no script, no library; colours are the page's CSS variables. */

import { escapeHtml, readable, withUnit } from './format.ts'

/** One of the page's colours, --c1 to --c5. */
export type Colour = 1 | 2 | 3 | 4 | 5

type Series = { name: string; colour: Colour; points: [x: number, y: number | null][]; area?: boolean }

type LineChart = {
  title: string
  says: string
  unit: string
  scale?: 'linear' | 'log'
  series: Series[]
  /** Where the axis ends, so that charts beside each other show the same moments. */
  xMax: number
  /** Where the load ended; what is right of it is the queue draining. */
  markS?: number
}

const WIDTH = 640
const HEIGHT = 250
const PLOT = { left: 58, right: 14, top: 24, bottom: 24 }
const INNER = { width: WIDTH - PLOT.left - PLOT.right, height: HEIGHT - PLOT.top - PLOT.bottom }

/** Steps of 1, 2 or 5 times a power of ten, about `count` of them. */
function niceStep(span: number, count: number): number {
  const rough = span / count
  const power = 10 ** Math.floor(Math.log10(rough))
  return power * ([1, 2, 5, 10].find((factor) => factor * power >= rough) ?? 10)
}

type Axis = { ticks: number[]; place: (value: number) => number }

function linearAxis(max: number): Axis {
  const step = niceStep(max > 0 ? max * 1.02 : 1, 4)
  const top = Math.ceil((max > 0 ? max * 1.02 : 1) / step) * step
  const ticks = Array.from({ length: Math.round(top / step) + 1 }, (_, index) => index * step)
  return { ticks, place: (value) => value / top }
}

/** From the 1-2-5 step below the smallest value to the one above the largest; every power of ten has a line. */
function logAxis(min: number, max: number): Axis {
  const steps: number[] = []
  for (let power = Math.floor(Math.log10(min)); power <= Math.ceil(Math.log10(max)); power++)
    for (const factor of [1, 2, 5]) steps.push(Number((factor * 10 ** power).toPrecision(1)))
  const bottom = steps.filter((step) => step <= min).at(-1)!
  const top = steps.find((step) => step >= max && step > bottom)!
  const inside = steps.filter((step) => step >= bottom && step <= top)
  const ticks = inside.length > 7 ? inside.filter((step) => /^0*\.?0*10*$/.test(String(step))) : inside
  const [from, to] = [Math.log10(bottom), Math.log10(top)]
  return { ticks, place: (value) => (Math.log10(Math.max(value, bottom)) - from) / (to - from) }
}

/** Lines over seconds. Hovering tells the figures of a moment. */
export function lineChart({ title, says, unit, scale = 'linear', series, xMax, markS }: LineChart): string {
  const values = series.flatMap((line) => line.points.map(([, y]) => y)).filter((y) => y !== null)
  const positive = values.filter((value) => value > 0)
  const yAxis =
    scale === 'log' && positive.length > 0
      ? logAxis(Math.min(...positive), Math.max(...positive))
      : linearAxis(Math.max(0, ...values))
  const xStep = niceStep(xMax, 6)
  const x = (value: number) => PLOT.left + (value / xMax) * INNER.width
  const y = (value: number) => PLOT.top + (1 - yAxis.place(value)) * INNER.height
  const floor = PLOT.top + INNER.height
  const grid = yAxis.ticks.map(
    (tick) =>
      `<line class="grid" x1="${PLOT.left}" x2="${WIDTH - PLOT.right}" y1="${y(tick).toFixed(1)}" y2="${y(tick).toFixed(1)}"/>` +
      `<text class="tick" x="${PLOT.left - 7}" y="${(y(tick) + 4).toFixed(1)}" text-anchor="end">${readable(tick)}</text>`,
  )
  const xTicks = Array.from({ length: Math.floor(xMax / xStep) + 1 }, (_, index) => index * xStep).map(
    (tick) =>
      `<text class="tick" x="${x(tick).toFixed(1)}" y="${floor + 17}" text-anchor="middle">${readable(tick)} s</text>`,
  )
  const mark =
    markS === undefined || markS >= xMax * 0.99
      ? ''
      : `<line class="mark" x1="${x(markS)}" x2="${x(markS)}" y1="${PLOT.top}" y2="${floor}"/>` +
        `<text class="tick" x="${x(markS) - 5}" y="${PLOT.top - 5}" text-anchor="end">load ends</text>`
  return `<figure><figcaption><b>${escapeHtml(title)}</b> <span>${escapeHtml(says)}</span></figcaption>
${legend(series)}<svg viewBox="0 0 ${WIDTH} ${HEIGHT}" role="img" aria-label="${escapeHtml(title)}">
${grid.join('')}${xTicks.join('')}<text class="unit" x="4" y="12">${escapeHtml(unit)}</text>
<line class="axis" x1="${PLOT.left}" x2="${WIDTH - PLOT.right}" y1="${floor}" y2="${floor}"/>
${series.map((line) => drawLine(line, x, y, floor)).join('\n')}
${mark}${hoverBands(series, unit, x, floor)}</svg></figure>`
}

const legend = (series: { name: string; colour: Colour }[]) =>
  `<div class="legend">${series.map(({ name, colour }) => `<span><i style="background:var(--c${colour})"></i>${escapeHtml(name)}</span>`).join('')}</div>`

/** A null breaks the line: nothing was measured there. */
function drawLine({ points, colour, area }: Series, x: (v: number) => number, y: (v: number) => number, floor: number) {
  const runs: [number, number][][] = [[]]
  for (const [px, py] of points) {
    if (py === null) runs.push([])
    else runs.at(-1)!.push([x(px), y(py)])
  }
  return runs
    .filter((run) => run.length > 0)
    .map((run) => {
      const path = run.map(([px, py]) => `${px.toFixed(1)},${py.toFixed(1)}`).join(' ')
      if (run.length === 1) return `<circle cx="${run[0]![0]}" cy="${run[0]![1]}" r="2.5" fill="var(--c${colour})"/>`
      const below = area
        ? `<polygon points="${run[0]![0].toFixed(1)},${floor} ${path} ${run.at(-1)![0].toFixed(1)},${floor}" fill="var(--c${colour})" fill-opacity="0.14"/>`
        : ''
      return `${below}<polyline points="${path}" fill="none" stroke="var(--c${colour})" stroke-width="1.8" stroke-linejoin="round"/>`
    })
    .join('')
}

/** Invisible columns whose title the browser shows. */
function hoverBands(series: Series[], unit: string, x: (value: number) => number, floor: number): string {
  const moments = new Map<number, string[]>()
  for (const { name, points } of series)
    for (const [at, value] of points)
      if (value !== null) moments.set(at, [...(moments.get(at) ?? []), `${name}: ${withUnit(value, unit)}`])
  const ats = [...moments.keys()].sort((a, b) => a - b)
  return ats
    .map((at, index) => {
      const left = index === 0 ? x(at) : (x(ats[index - 1]!) + x(at)) / 2
      const right = index === ats.length - 1 ? x(at) : (x(at) + x(ats[index + 1]!)) / 2
      return `<rect class="band" x="${left.toFixed(1)}" y="${PLOT.top}" width="${Math.max(1, right - left).toFixed(1)}" height="${floor - PLOT.top}"><title>${readable(at)} s\n${escapeHtml(moments.get(at)!.join('\n'))}</title></rect>`
    })
    .join('')
}

type DotChart = {
  title: string
  says: string
  unit: string
  rows: { name: string; dots: { name: string; colour: Colour; values: number[] }[] }[]
}

const ROW = 46
const LABEL = 178
/** Where the medians stand, right of the dots. */
const MEDIAN = 74

/** One row per stage on a logarithmic axis: a dot for every round, a bar and a figure for their median. */
export function dotChart({ title, says, unit, rows }: DotChart): string {
  const values = rows.flatMap((row) => row.dots.flatMap((dot) => dot.values)).filter((value) => value > 0)
  const axis = logAxis(Math.min(...values), Math.max(...values))
  const height = rows.length * ROW + 40
  const x = (value: number) => LABEL + axis.place(value) * (WIDTH - LABEL - MEDIAN - 8)
  const floor = rows.length * ROW + 8
  const grid = axis.ticks.map(
    (tick) =>
      `<line class="grid" x1="${x(tick).toFixed(1)}" x2="${x(tick).toFixed(1)}" y1="8" y2="${floor}"/>` +
      `<text class="tick" x="${x(tick).toFixed(1)}" y="${floor + 17}" text-anchor="middle">${readable(tick)}</text>`,
  )
  const lines = rows.map((row, index) => {
    const middle = 8 + (index + 0.5) * ROW
    const dots = row.dots.map(({ name, colour, values: all }, at) => {
      const y = middle + (at - (row.dots.length - 1) / 2) * 17
      const centre = median(all)
      const marks = all
        .map(
          (value) =>
            `<circle cx="${x(value).toFixed(1)}" cy="${y}" r="4" fill="var(--c${colour})" fill-opacity="0.45"/>`,
        )
        .join('')
      return `<g><title>${escapeHtml(`${row.name}, ${name}: ${all.map((value) => withUnit(value, unit)).join(', ')}`)}</title>${marks}
<line x1="${x(centre).toFixed(1)}" x2="${x(centre).toFixed(1)}" y1="${y - 8}" y2="${y + 8}" stroke="var(--c${colour})" stroke-width="2.5"/>
<text class="value" x="${WIDTH - 4}" y="${y + 4}" text-anchor="end" style="fill: var(--c${colour})">${readable(centre)}</text></g>`
    })
    return `<text class="label" x="${LABEL - 14}" y="${middle + 4}" text-anchor="end">${escapeHtml(row.name)}</text>${dots.join('')}`
  })
  const names = rows[0]!.dots
  return `<figure><figcaption><b>${escapeHtml(title)}</b> <span>${escapeHtml(says)}</span></figcaption>
${names.length > 1 ? legend(names) : ''}<svg viewBox="0 0 ${WIDTH} ${height}" role="img" aria-label="${escapeHtml(title)}">
<text class="unit" x="${WIDTH - 4}" y="${floor + 17}" text-anchor="end">median</text>
${grid.join('')}<line class="axis" x1="${LABEL}" x2="${WIDTH - MEDIAN}" y1="${floor}" y2="${floor}"/>
<text class="unit" x="${LABEL - 14}" y="${floor + 17}" text-anchor="end">${escapeHtml(unit)}</text>${lines.join('\n')}</svg></figure>`
}

/** The middle value; of an even number the lower of the two. */
export function median(values: number[]): number {
  const sorted = values.toSorted((a, b) => a - b)
  return sorted[(sorted.length - 1) >> 1]!
}
