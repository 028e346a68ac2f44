/** The wall clock, finer than Date.now(): an idle system commits an event in three milliseconds, and spans are shorter. */

/** Date.now() is cut to whole ms, so the fine clock is at most one ahead of it; further off, the wall clock was set. */
const APART_MS_MAX = 2

let offsetMs = performance.timeOrigin

/** ms since 1970, to the microsecond. */
export function nowMs(): number {
  const apart = offsetMs + performance.now() - Date.now()
  if (apart < -APART_MS_MAX || apart > 1 + APART_MS_MAX) offsetMs -= apart - 0.5
  return Math.round((offsetMs + performance.now()) * 1_000) / 1_000
}
