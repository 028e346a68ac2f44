/** What became of each event of a request, in its order. */

import type { Problem } from './json.ts'

export type Outcome = Kept | Rejection | { status: 'failed'; id: string; code: string; message: string }

/** On disk; with ?wait=committed also what the workers made of it. */
export type Kept = {
  status: 'accepted' | 'inserted' | 'duplicate' | 'dead_lettered'
  id: string
  /** What a schema in mode `warn` has against it. */
  warning?: Problem
}

export type Rejection = Problem & { status: 'rejected'; id?: string }

/** A stored event that someone waits for, by the message and the place in it; its outcome is written here. */
export type AwaitedEvent = {
  tenant: string
  source: string
  id: string
  seq: number
  place: number
  outcome: Kept
}

export type Counts = Record<Outcome['status'], number>

export function countOutcomes(outcomes: Outcome[]): Counts {
  const counts: Counts = { accepted: 0, inserted: 0, duplicate: 0, dead_lettered: 0, rejected: 0, failed: 0 }
  for (const { status } of outcomes) counts[status]++
  return counts
}
