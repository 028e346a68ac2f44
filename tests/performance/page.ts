/** The frame of the reports: one HTML file that needs nothing else, in the reader's light or dark. */

import { escapeHtml } from './format.ts'

const STYLE = `
:root { color-scheme: light dark; --bg: #fbfbfa; --card: #fff; --line: #e3e3df; --ink: #1d1d1b; --soft: #63635e;
  --c1: #0072b2; --c2: #009e73; --c3: #d55e00; --c4: #8a5fbf; --c5: #b8860b; --good: #00734f; --bad: #b3410a }
@media (prefers-color-scheme: dark) { :root { --bg: #131416; --card: #1b1d20; --line: #33363b; --ink: #e8e8e6;
  --soft: #a0a29f; --c1: #56b4e9; --c2: #2fcf9f; --c3: #ff8a4c; --c4: #bfa0ea; --c5: #e0b84a; --good: #4ad6a7; --bad: #ff9a66 } }
* { box-sizing: border-box }
body { margin: 0; background: var(--bg); color: var(--ink); font: 15px/1.5 system-ui, sans-serif }
main { max-width: 1240px; margin: 0 auto; padding: 28px 20px 60px }
h1 { font-size: 25px; margin: 0 0 4px } h2 { font-size: 18px; margin: 34px 0 10px } p { max-width: 80ch; margin: 6px 0 }
.soft, figcaption span { color: var(--soft) }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(155px, 1fr)); gap: 12px; margin: 20px 0 }
.tile, figure, .scroll { background: var(--card); border: 1px solid var(--line); border-radius: 8px }
.tile { padding: 11px 14px } .tile b { display: block; font-size: 23px; line-height: 1.25; font-variant-numeric: tabular-nums }
.tile small { color: var(--soft); display: block } .tile .name { color: var(--soft); font-size: 13px }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 520px), 1fr)); gap: 14px }
figure { margin: 0; padding: 13px 14px 6px } figcaption { margin-bottom: 4px } svg { display: block; width: 100%; height: auto }
.legend { margin-bottom: 6px; display: flex; flex-wrap: wrap; gap: 2px 15px; font-size: 13px; color: var(--soft) }
.legend i { display: inline-block; width: 14px; height: 3px; border-radius: 2px; margin-right: 6px; vertical-align: middle }
svg text { font: 12px system-ui, sans-serif; fill: var(--soft); font-variant-numeric: tabular-nums }
svg .unit { font-style: italic } svg .label, svg .value { fill: var(--ink) } svg .label { font-size: 13px }
.grid { stroke: var(--line); stroke-width: 1 } .axis { stroke: var(--soft); stroke-width: 1 }
.mark { stroke: var(--soft); stroke-dasharray: 4 4 }
.band { fill: var(--ink); fill-opacity: 0 } .band:hover { fill-opacity: 0.08 }
.scroll { overflow-x: auto } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { padding: 7px 13px; text-align: right; white-space: nowrap; border-top: 1px solid var(--line) }
thead th { border-top: 0; color: var(--soft); font-weight: 500; font-size: 13px }
th:first-child, td:first-child { text-align: left } td.wide, .prose td:last-child { white-space: normal; text-align: left }
.prose th:last-child { text-align: left }
.good { color: var(--good); font-weight: 600 } .bad { color: var(--bad); font-weight: 600 }
`

type Tile = { name: string; figure: string; says: string }

export const tiles = (all: Tile[]) =>
  `<div class="tiles">${all.map(({ name, figure, says }) => `<div class="tile"><span class="name">${escapeHtml(name)}</span><b>${escapeHtml(figure)}</b><small>${escapeHtml(says)}</small></div>`).join('')}</div>`

export const htmlPage = (title: string, body: string) => `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>${escapeHtml(title)}</title><link rel="icon" href="data:,"><style>${STYLE}</style></head>
<body><main>${body}</main></body></html>
`
