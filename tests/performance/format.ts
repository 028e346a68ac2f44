/** Numbers and tables as people read them, for the terminal and the pages. */

import { OTHER_LOAD } from './summary.ts'

/** Three significant digits where it is small, whole with thousands separators where it is large. */
export function readable(value: number): string {
  const size = Math.abs(value)
  const digits = size === 0 || size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3
  return value.toLocaleString('en-US', { maximumFractionDigits: digits })
}

export const withUnit = (value: number, unit: string) =>
  unit.startsWith('/') || unit === '' ? `${readable(value)}${unit}` : `${readable(value)} ${unit}`

/** `+12 %`, or `×3.4` where a percentage would be hard to picture. */
export function readableChange(change: number | null): string {
  if (change === null) return 'new'
  if (change >= 1) return `×${readable(change + 1)}`
  const percent = Math.round(change * 100)
  return `${percent > 0 ? '+' : percent < 0 ? '−' : '±'}${Math.abs(percent)} %`
}

/** Lines of a table for the terminal: the first column to the left, figures to the right. */
export function textTable(head: string[], rows: string[][]): string {
  const widths = head.map((_, column) => Math.max(...[head, ...rows].map((row) => (row[column] ?? '').length)))
  const line = (row: string[]) =>
    row.map((cell, column) => (column === 0 ? cell.padEnd(widths[0]!) : cell.padStart(widths[column]!))).join('  ')
  return [line(head), widths.map((width) => '─'.repeat(width)).join('  '), ...rows.map(line)].join('\n')
}

export const escapeHtml = (text: string) =>
  text.replace(/[&<>"]/g, (sign) => ({ '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;' })[sign]!)

/** A table for the page; a cell that starts with `<` is markup of ours. */
export function htmlTable(head: string[], rows: string[][]): string {
  const cell = (text: string) => (text.startsWith('<') ? text : escapeHtml(text))
  const line = (row: string[], tag: string) =>
    `<tr>${row.map((text) => `<${tag}>${cell(text)}</${tag}>`).join('')}</tr>`
  return `<div class="scroll"><table><thead>${line(head, 'th')}</thead><tbody>${rows.map((row) => line(row, 'td')).join('')}</tbody></table></div>`
}

/** Says when a run was not alone on its machine; empty when it was. */
export const busyNote = (loadBefore: number) =>
  loadBefore > OTHER_LOAD
    ? ` Other work kept the machine busy (load ${loadBefore.toFixed(1)} before the start): trust ratios, not figures.`
    : ''
