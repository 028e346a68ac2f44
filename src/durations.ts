/** Spans of time as people write them. */

import { MillraceError } from './errors.ts'

/** Milliseconds, or text such as `30s`, `1h30m`, `3d`. */
export type Duration = number | string

const UNIT_MS: Record<string, number> = { ms: 1, s: 1_000, m: 60_000, h: 3_600_000, d: 86_400_000, w: 604_800_000 }

/**
 * @returns whole milliseconds, never negative
 * @throws MillraceError `invalid_request` for text it cannot read
 */
export function milliseconds(duration: Duration): number {
  if (typeof duration === 'number' && Number.isFinite(duration) && duration >= 0) return Math.ceil(duration)
  const parts = [...String(duration).matchAll(/(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)\s*/g)]
  const read = parts.map(([part]) => part).join('')
  if (typeof duration !== 'string' || parts.length === 0 || read !== duration.trimStart())
    throw new MillraceError(
      'invalid_request',
      `${JSON.stringify(duration)} is no duration: write milliseconds, or text such as '30s', '1h30m' or '3d'`,
    )
  return Math.ceil(parts.reduce((sum, [, count, unit]) => sum + Number(count) * UNIT_MS[unit!]!, 0))
}
