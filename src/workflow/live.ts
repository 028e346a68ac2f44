/** A run in memory, and what it needs of its process: the words the rest of this folder speaks. */

import type { Span, Tracer } from '@opentelemetry/api'
import type { Database } from '../db/connect.ts'
import type { MillraceError } from '../errors.ts'
import type { Metrics } from '../telemetry/metrics.ts'
import type { Clock } from './clock.ts'
import type { Workflow } from './define.ts'
import type { Journal } from './journal.ts'
import type { StartRow, StepRow } from './journal-sql.ts'

/** What the engine counts (telemetry/metrics.ts). */
export type EngineMetrics = Pick<Metrics, 'runEnded' | 'runBegun' | 'stepAttempted' | 'leaseLost' | 'observeRuns'>

/** What a run needs of its process. */
export type Runner = {
  journal: Journal
  clock: Clock
  live: Map<string, LiveRun>
  ended: (run: LiveRun, end: RunEnd) => void
  /** A run left memory, to be woken at `dueAt` at the latest. */
  parked: (dueAt: number | null) => void
  /** Asks the database what came in for these runs. */
  refresh: (runIds: string[]) => void
  cancelChildren: (runIds: string[]) => void
  /** Marks a new run to be run here, if there is room; then `begun` once it is durable. */
  place: (row: StartRow) => void
  begun: (row: StartRow) => LiveRun | undefined
  /** Makes sure that events of the type are kept by this key, from `sinceMs` on. */
  listen: (type: string, path: string[], sinceMs: number) => Promise<void>
  /** Other runs want the memory. */
  crowded: () => boolean
  db: Database
  tracer: Tracer | undefined
  metrics: EngineMetrics | null
}

export type RunEnd =
  | { kind: 'completed'; output: string | null }
  | { kind: 'failed' | 'cancelled' | 'stuck'; error: string }
  | { kind: 'continued'; next: StartRow }

/** A run as it was inserted or claimed. */
export type RunRow = {
  runId: string
  id: string | null
  generation: number
  name: string
  version: string
  queue: string
  priority: number
  concurrencyKey: string | null
  input: string | null
  epoch: number
  wakes: number
  parentId: string | null
  chainId: string | null
  traceparent: string | null
  /** ms since 1970 */
  createdAt: number
  deadlineAt: number | null
  tenant: string
}

/** A line of the journal as read back. */
export type Recorded = Omit<StepRow, 'runId' | 'epoch' | 'ms'>

export type Result = {
  pos: number
  at: number
  output: unknown
  error: MillraceError | null
  durable: boolean
  /** Came to nothing: its transaction was rolled back. */
  void?: boolean
}

/** The cancellation's place in the journal: no call of the code, but a result like others, in its order. */
export const CANCEL_POS = -1

/** @property due  what to do at `dueAt` (ms since 1970) */
export type Call = {
  pos: number
  kind: StepRow['kind']
  name: string
  dueAt: number | null
  due: () => void
  settle: (result: Result) => void
}

/** A signal as it lies in the database until a call has taken it. */
export type Signal = { seq: string; payload: string | null }
/** An event for a wait, or the end of a child. */
export type Arrival = { status: string; output: string | null; error: string | null }

export type Outside = {
  /** What came from outside and no call has taken yet. */
  signals: Map<string, Signal[]>
  signalsSeen: Set<string>
  signalCalls: Map<string, ((signal: Signal) => void)[]>
  arrivals: Map<string, Arrival>
  /** By what key an arrival finds its call. */
  expecting: Map<string, (arrival: Arrival) => void>
  /** Open children by position, to be cancelled with the run. */
  children: Map<number, string>
  /** Number of the last event taken from a mailbox. */
  mailTaken: Map<string, number>
}

export type LiveRun = {
  runner: Runner
  row: RunRow
  workflow: Workflow
  /** Journal lines that the code has not called yet, by position. */
  history: Map<number, Recorded>
  /** Results in the order in which the code gets them. */
  results: Result[]
  delivered: number
  /** Calls whose result has not reached the code. */
  calls: Map<number, Call>
  nextPos: number
  nextOrd: number
  /** Time of the last delivered result: the run's `now()`. */
  now: number
  executing: number
  writing: number
  turning: boolean
  over: boolean
  /** Never left the process that started it. */
  startedHere: boolean
  timer: NodeJS.Timeout | undefined
  restingSince: number | null
  /** A cancellation has been asked for, or is in the journal. */
  cancelling: boolean
  /** Calls that the cancellation has ended; what they still come to is dropped. */
  dropped: Set<number> | null
  /** Claimed, and what came in before that is not read yet: it must not rest. */
  unread: boolean
  /** Made when first needed: most runs hear nothing from outside. */
  outside: Outside | null
  /** Newest first. */
  compensations: { name: string; undo: () => Promise<void> }[]
  /** Results that a replay gives again. */
  replayed: number
  /** What the run shows (setState): the last one set, and whether the row has it. */
  shown: { state: string | null; unwritten: boolean; writing: boolean }
  patches: Map<string, boolean> | null
  deadlineTimer: NodeJS.Timeout | undefined
  controller: AbortController | null
  span: Span | null
}

export function outsideOf(run: LiveRun): Outside {
  run.outside ??= {
    signals: new Map(),
    signalsSeen: new Set(),
    signalCalls: new Map(),
    arrivals: new Map(),
    expecting: new Map(),
    children: new Map(),
    mailTaken: new Map(),
  }
  return run.outside
}

/** Children that have not ended, as far as the run knows. */
export const openChildren = (run: LiveRun): string[] => (run.outside === null ? [] : [...run.outside.children.values()])
