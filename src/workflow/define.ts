/** What a user writes: a name, options, and an async function. */

import { type Duration, milliseconds } from '../durations.ts'
import { MillraceError } from '../errors.ts'
import type { Run } from './context.ts'
import { type KeyOf, keyPath } from './key-path.ts'

/**
 * An event that starts the workflow, in the transaction that inserts the event. Its `data` is the input.
 * @property event  CloudEvents type
 * @property key    where the event carries the key: the run's id is then `<workflow>:<key>`, and a second event with
 *                  that key starts nothing (see `reuse`). Without it, every event starts a run.
 * @property concurrencyKey  where it carries the key whose runs share the queue's `perKey` limit; an event without it
 *                  starts a run of no key, and of a longer one the first 512 characters count
 * @property reuse  `never` (default): one run per key for ever; `finished`: another once the last has ended
 */
export type Trigger = { event: string; key?: KeyOf; concurrencyKey?: KeyOf; reuse?: 'never' | 'finished' }

/**
 * @property version  runs go on with the version they started with; load old and new side by side until the old are done
 * @property on       events that start it
 * @property awaits   event types it waits for and where they carry their key; default `subject`, learned at the first wait
 * @property timeout  of a whole run, waiting included: then it is cancelled, and fails with `timed_out`
 */
export type WorkflowOptions = {
  version?: string
  queue?: string
  priority?: number
  on?: Trigger | Trigger[]
  awaits?: Record<string, KeyOf>
  timeout?: Duration
}

// biome-ignore lint/suspicious/noExplicitAny: an input without an annotation is the user's to know, like JSON.parse
export type WorkflowFunction<I = any, O = unknown> = (run: Run, input: I) => Promise<O>

// biome-ignore lint/suspicious/noExplicitAny: see WorkflowFunction
export type Workflow<I = any, O = unknown> = {
  name: string
  version: string
  queue: string
  priority: number
  timeoutMs: number | null
  triggers: { event: string; path: string[]; concurrencyPath: string[] | null; reuse: 'never' | 'finished' }[]
  awaits: Map<string, string[]>
  body: WorkflowFunction<I, O>
}

/** Names travel in subjects, ids and URLs. */
const NAME = /^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$/

/**
 * Declares a durable workflow. Its function must do the same calls on `run` in the same order whenever it is given the
 * same results: what is not deterministic belongs into `run.step`.
 * @throws MillraceError `invalid_request` for a bad name, duration or key
 */
// biome-ignore lint/suspicious/noExplicitAny: see WorkflowFunction
export function workflow<I = any, O = unknown>(name: string, body: WorkflowFunction<I, O>): Workflow<I, O>
// biome-ignore lint/suspicious/noExplicitAny: see WorkflowFunction
export function workflow<I = any, O = unknown>(
  name: string,
  options: WorkflowOptions,
  body: WorkflowFunction<I, O>,
): Workflow<I, O>
export function workflow<I, O>(
  name: string,
  ...rest: [WorkflowFunction<I, O>] | [WorkflowOptions, WorkflowFunction<I, O>]
): Workflow<I, O> {
  const [options, body] = rest.length === 1 ? [{} as WorkflowOptions, rest[0]] : rest
  const version = options.version ?? ''
  for (const text of [name, options.queue ?? 'default', version === '' ? '0' : version])
    if (!NAME.test(text))
      throw new MillraceError(
        'invalid_request',
        `${JSON.stringify(text)} cannot name a workflow, version or queue: use letters, digits, '_', '.' and '-', 128 at most`,
      )
  const triggers = options.on === undefined ? [] : Array.isArray(options.on) ? options.on : [options.on]
  return {
    name,
    version,
    queue: options.queue ?? 'default',
    priority: options.priority ?? 0,
    timeoutMs: options.timeout === undefined ? null : milliseconds(options.timeout),
    triggers: triggers.map(({ event, key, concurrencyKey, reuse = 'never' }) => ({
      event,
      path: key === undefined ? [] : keyPath(key),
      concurrencyPath: concurrencyKey === undefined ? null : keyPath(concurrencyKey),
      reuse,
    })),
    awaits: new Map(Object.entries(options.awaits ?? {}).map(([type, key]) => [type, keyPath(key)])),
    body,
  }
}

/** Tells what `workflow()` made, whichever copy of this module did. */
export const isWorkflow = (value: unknown): value is Workflow =>
  typeof value === 'object' && value !== null && 'body' in value && 'triggers' in value && 'awaits' in value

/** Which code may run a run. */
export const codeOf = ({ name, version }: { name: string; version: string }) => `${name}@${version}`
