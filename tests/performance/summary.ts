/** What one run of the benchmark found, as written to summary.json and compared with the run before. */

export type Percentiles = { p50: number; p90: number; p99: number; max: number }

export type Bin = {
  /** Start of the bin, s since the first request. */
  atS: number
  requestsPerS: number
  acceptedPerS: number
  committedPerS: number
  apiMs: Percentiles | null
  queueMs: Percentiles | null
  /** Sizes of the batches that committed in this bin. */
  batch: { p50: number; max: number; count: number } | null
}

/** What JetStream's consumer says: not yet delivered, and delivered but not yet acknowledged. */
export type DepthSample = { atS: number; waiting: number; unacknowledged: number }

/** Events of this run stored in JetStream and not committed, by the database's own times: exact, not sampled. */
type Uncommitted = { atS: number; events: number }

export type Kind = { kind: string; requests: number; events: number; apiMs: Percentiles; queueMs: Percentiles | null }

export type Check = { says: string; left: number; right: number; holds: boolean }

export type Summary = {
  run: {
    id: string
    startedAt: string
    seconds: number
    users: number
    /** Null where the benchmark started the service itself. */
    url: string | null
    cores: number
    /** Load average before the run: what else kept the machine busy. */
    loadBefore: number
    node: string
    postgres: string
    nats: string
  }
  requests: { count: number; failed: number; perS: number }
  events: {
    sent: number
    accepted: number
    rejected: number
    /** Accepted again under an identity accepted before. */
    retried: number
    poison: number
    committed: number
    deadLettered: number
    acceptedPerS: number
    committedPerS: number
  }
  apiMs: Percentiles
  queueMs: Percentiles
  /** The most events stored and not committed at a time. */
  uncommittedMax: number
  batch: { count: number; p50: number; max: number }
  kinds: Kind[]
  timeline: { binS: number; bins: Bin[]; depth: DepthSample[]; uncommitted: Uncommitted[] }
  checks: Check[]
}

type Metric = { says: string; unit: string; better: 'more' | 'less'; of: (summary: Summary) => number }

const METRICS: Metric[] = [
  { says: 'requests', unit: '/s', better: 'more', of: (s) => s.requests.perS },
  { says: 'events accepted', unit: '/s', better: 'more', of: (s) => s.events.acceptedPerS },
  { says: 'events committed', unit: '/s', better: 'more', of: (s) => s.events.committedPerS },
  { says: 'API latency p50', unit: 'ms', better: 'less', of: (s) => s.apiMs.p50 },
  { says: 'API latency p99', unit: 'ms', better: 'less', of: (s) => s.apiMs.p99 },
  { says: 'queue latency p50', unit: 'ms', better: 'less', of: (s) => s.queueMs.p50 },
  { says: 'queue latency p99', unit: 'ms', better: 'less', of: (s) => s.queueMs.p99 },
  { says: 'deepest queue', unit: 'events', better: 'less', of: (s) => s.uncommittedMax },
  { says: 'failed requests', unit: '', better: 'less', of: (s) => s.requests.failed },
]

/** Two runs of the same code on a shared machine differ by about this much, so less is not called a change. */
const NOISE = 0.15

/** A load average above this before the start is other work, which slows what is measured. */
export const OTHER_LOAD = 1

export type Move = {
  says: string
  unit: string
  before: number
  now: number
  /** now / before - 1; null where there was nothing before. */
  change: number | null
  verdict: 'better' | 'worse' | 'same'
}

/** Sets this run beside the one before it. */
export function compareRuns(before: Summary, now: Summary): Move[] {
  return METRICS.map(({ says, unit, better, of }) => {
    const [old, fresh] = [of(before), of(now)]
    const change = old === 0 ? null : fresh / old - 1
    const moved = change === null ? fresh > 0 : Math.abs(change) > NOISE
    const verdict = !moved ? 'same' : fresh > old === (better === 'more') ? 'better' : 'worse'
    return { says, unit, before: old, now: fresh, change, verdict }
  })
}

/** What of the set-up differs, so that a reader does not blame the code for it; empty when the runs are comparable. */
export function differences(before: Summary, now: Summary): string[] {
  const facts = (s: Summary) => ({
    users: s.run.users,
    seconds: s.run.seconds,
    service: s.run.url ?? 'started by the benchmark',
    cores: s.run.cores,
    node: s.run.node,
    postgres: s.run.postgres,
    nats: s.run.nats,
  })
  const [old, fresh] = [facts(before), facts(now)]
  const differing = (Object.keys(old) as (keyof typeof old)[])
    .filter((name) => old[name] !== fresh[name])
    .map((name) => `${name}: ${old[name]} then, ${fresh[name]} now`)
  const [oldLoad, freshLoad] = [before.run.loadBefore, now.run.loadBefore]
  if (Math.abs(oldLoad - freshLoad) > OTHER_LOAD)
    differing.push(`other work on the machine: load ${oldLoad.toFixed(1)} then, ${freshLoad.toFixed(1)} now`)
  return differing
}
