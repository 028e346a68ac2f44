/** The table of `make test-faults`. */

import type { Outcome } from './run-fault.ts'

const COLUMNS: [title: string, width: number, cell: (outcome: Outcome) => string | number][] = [
  ['load/s', 7, ({ loadHeld }) => Math.round(loadHeld)],
  ['answered', 9, ({ answered }) => answered],
  ['committed', 10, ({ committed }) => committed],
  ['dead', 5, ({ deadLettered }) => deadLettered],
  ['lost', 5, ({ lost }) => lost.length],
  ['doubled', 8, ({ duplicated }) => duplicated.length],
  ['wrong', 6, ({ wrong }) => wrong.length],
  ['refused', 8, ({ refused }) => refused],
  ['silence s', 10, ({ silenceMs }) => (silenceMs / 1_000).toFixed(2)],
  ['recovery s', 11, ({ recoveryMs }) => (recoveryMs / 1_000).toFixed(2)],
]
const NAME_WIDTH = 62

export const header = () => 'fault'.padEnd(NAME_WIDTH) + COLUMNS.map(([title, width]) => title.padStart(width)).join('')

/** A row, and beneath it why requests were refused, most frequent first. */
export function print(outcome: Outcome): void {
  console.log(row(outcome))
  const reasons = Map.groupBy(outcome.record.refused, ({ status, why }) => `${status} ${why.replace(/\d+ ms/, 'n ms')}`)
  for (const [reason, all] of [...reasons].toSorted(([, a], [, b]) => b.length - a.length).slice(0, 3))
    console.log(`    refused: ${all.length} x ${reason.slice(0, 120)}`)
}

const row = (outcome: Outcome) =>
  outcome.name.padEnd(NAME_WIDTH) + COLUMNS.map(([, width, cell]) => String(cell(outcome)).padStart(width)).join('')
