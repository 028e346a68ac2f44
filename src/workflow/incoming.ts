/**
 * What reaches a run from outside: events, signals, the ends of children, a cancellation. Each lies in the database
 * until the call that takes it is in the journal; a hint (or a sweep, or a failed park) makes the process look.
 */

import { setTimeout as pause } from 'node:timers/promises'
import type pg from 'pg'
import { type Duration, milliseconds } from '../durations.ts'
import { MillraceError } from '../errors.ts'
import { awaitResult, cancelRun, openCall, rest, writeEntry, writeResult } from './calls.ts'
import type { Workflow } from './define.ts'
import { type KeyOf, keyPath } from './key-path.ts'
import { type Arrival, type LiveRun, openChildren, outsideOf, type Signal } from './live.ts'
import { newRun, type StartOptions } from './start.ts'
import { traceparentOf } from './trace.ts'
import { decode } from './values.ts'

/** An event as a workflow sees it. */
export type WorkflowEvent = {
  source: string
  id: string
  type: string
  subject: string | null
  time: string | null
  // biome-ignore lint/suspicious/noExplicitAny: the shape of a user's data is the user's to know
  data: any
}

/**
 * @property key       the event must carry it (default: any event of the type)
 * @property by        where the event carries it; default: what the workflow's `awaits` says, else its `subject`
 * @property timeout   then the wait gives null
 * @property lookback  events that came so long before the run started count too (default 0: those since its start)
 */
export type WaitOptions = { key?: string | number; by?: KeyOf; timeout?: Duration; lookback?: Duration }

/** One snapshot of all that came in, so that the count of wakes it reads covers everything else it reads. */
const NEWS = `
  select * from (
  select run_id, 'run' as kind, wakes::text as ref, (cancel_requested_at is not null)::text as status,
    null as output, null as error
  from workflow_runs where run_id = any($1::uuid[])
  union all
  select run_id, 'signal', seq::text, name, payload::text, null from workflow_signals where run_id = any($1::uuid[])
  union all
  select w.run_id, 'event', w.pos::text, 'completed',
    json_build_object('mail', w.mail_number, 'event', json_build_object('source', e.source, 'id', e.id, 'type', e.type,
      'subject', e.subject, 'time', e.time, 'data', e.data))::text, null
  from workflow_waits w join event_ids i on i.key = event_key(w.tenant, w.source, w.event_id)
    join events e using (published_at, stream_seq, stream_place)
  where w.run_id = any($1::uuid[]) and w.source is not null
  union all
  select c.parent_id, 'child', k.run_id::text, c.status, c.output::text, c.error::text
  from unnest($2::uuid[]) k(run_id), lateral (
    select * from workflow_runs where run_id = k.run_id
    union all select * from workflow_runs where chain_id = k.run_id) c
  where c.status in ('completed', 'failed', 'cancelled', 'terminated')) news
  order by length(ref), ref`

/** Looks what came in for these runs and hands it to their calls. */
export async function readNews(pool: pg.Pool, runs: LiveRun[]): Promise<void> {
  const children = runs.flatMap(openChildren)
  const { rows } = await pool.query({
    name: 'millrace_news',
    text: NEWS,
    values: [runs.map((run) => run.row.runId), children],
  })
  const byId = new Map(runs.map((run) => [run.row.runId, run]))
  for (const { run_id, kind, ref, status, output, error } of rows) {
    const run = byId.get(run_id)
    if (run === undefined || run.over) continue
    switch (kind) {
      case 'run':
        run.row.wakes = Number(ref)
        if (status === 'true') cancelRun(run, 'cancelled')
        break
      case 'signal':
        if (outsideOf(run).signalsSeen.has(ref)) break
        outsideOf(run).signalsSeen.add(ref)
        arriveSignal(run, status, { seq: ref, payload: output })
        break
      default:
        arrive(run, `${kind}/${ref}`, { status, output, error })
    }
  }
  for (const run of runs) {
    run.unread = false
    rest(run)
  }
}

/** To the call that expects it, or kept until the code gets there: a replay may be under way. */
function arrive(run: LiveRun, key: string, arrival: Arrival): void {
  const expecting = outsideOf(run).expecting.get(key)
  if (expecting === undefined) outsideOf(run).arrivals.set(key, arrival)
  else {
    outsideOf(run).expecting.delete(key)
    expecting(arrival)
  }
}

function expect(run: LiveRun, key: string, take: (arrival: Arrival) => void): void {
  const arrival = outsideOf(run).arrivals.get(key)
  if (arrival === undefined) {
    outsideOf(run).expecting.set(key, take)
    return
  }
  outsideOf(run).arrivals.delete(key)
  take(arrival)
}

function arriveSignal(run: LiveRun, name: string, signal: Signal): void {
  const waiting = outsideOf(run).signalCalls.get(name)?.shift()
  if (waiting !== undefined) waiting(signal)
  else {
    const kept = outsideOf(run).signals.get(name)
    if (kept) kept.push(signal)
    else outsideOf(run).signals.set(name, [signal])
  }
}

/** @returns the payload, or null at the timeout */
export function callSignal(run: LiveRun, name: string, timeout: Duration | undefined): Promise<unknown> {
  const { call, recorded, result } = openWait(run, 'signal', name, timeout)
  if (run.over || (recorded !== undefined && recorded.ord !== null)) return result
  const { runId } = run.row
  const take = ({ seq, payload }: Signal) =>
    writeResult(
      run,
      call,
      { value: decode(payload), output: payload },
      { taken: { runId, waitPos: null, signalSeq: seq } },
    )
  const kept = outsideOf(run).signals.get(name)?.shift()
  if (kept !== undefined) take(kept)
  else {
    const calls = outsideOf(run).signalCalls.get(name)
    const open = (signal: Signal) => (run.calls.has(call.pos) ? take(signal) : arriveSignal(run, name, signal))
    if (calls) calls.push(open)
    else outsideOf(run).signalCalls.set(name, [open])
  }
  return result
}

/** @returns the event, or null at the timeout */
export async function callWait(run: LiveRun, type: string, options: WaitOptions): Promise<WorkflowEvent | null> {
  const path =
    options.key === undefined
      ? []
      : options.by === undefined
        ? (run.workflow.awaits.get(type) ?? ['subject'])
        : keyPath(options.by)
  const key = options.key === undefined ? '' : String(options.key)
  if (key.length > 512 || key.includes('\u0000'))
    throw new MillraceError('invalid_request', 'The key of an event must be text of 1 to 512 characters without NUL')
  const { call, recorded, result } = openWait(run, 'event', type, options.timeout)
  const box = JSON.stringify([type, path, key])
  const { runId } = run.row
  if (!run.over && (recorded === undefined || recorded.ord === null)) {
    const taken = { runId, waitPos: call.pos, signalSeq: null }
    expect(run, `event/${call.pos}`, ({ output }) =>
      writeResult(run, call, { value: decode(output), output }, { taken }),
    )
    if (recorded === undefined) {
      const sinceMs = run.row.createdAt - milliseconds(options.lookback ?? 0)
      const after = outsideOf(run).mailTaken.get(box) ?? 0
      void listenThenWait(run, call.pos, { type, path, key, sinceMs, after }, call)
    }
  }
  const taken = (await result) as { mail: number; event: WorkflowEvent } | null
  if (taken === null) return null
  outsideOf(run).mailTaken.set(box, taken.mail)
  return taken.event
}

async function listenThenWait(
  run: LiveRun,
  pos: number,
  wait: { type: string; path: string[]; key: string; sinceMs: number; after: number },
  call: WaitCall,
): Promise<void> {
  const { runId, epoch } = run.row
  run.executing += 1
  for (let attempt = 1; ; attempt += 1)
    try {
      await run.runner.listen(wait.type, wait.path, wait.sinceMs)
      break
    } catch {
      // The database is away: the journal could not be written either.
      await pause(Math.min(2_000, 50 * 2 ** attempt))
      if (run.over) return
    }
  run.executing -= 1
  if (run.over) return
  const row = { ...call, runId, epoch, ord: null, output: null, error: null, at: run.runner.clock.now() }
  const waits = [{ ...wait, runId, pos, path: JSON.stringify(wait.path), tenant: run.row.tenant }]
  writeEntry(run, { steps: [row], waits }, (replies) => {
    // An event of this key was there already.
    if (replies.some((reply) => reply.kind === 'waits')) run.runner.refresh([runId])
  })
}

type WaitCall = { pos: number; kind: 'event' | 'signal'; name: string; attempt: number; ms: null; dueAt: number | null }

/** Opens a call that ends by itself at its timeout, with null. */
function openWait(run: LiveRun, kind: 'event' | 'signal', name: string, timeout: Duration | undefined) {
  const until = timeout === undefined ? null : run.runner.clock.now() + milliseconds(timeout)
  const { pos, recorded } = openCall(run, kind, name)
  const dueAt = recorded === undefined ? until : recorded.ord === null ? recorded.dueAt : null
  const call: WaitCall = { pos, kind, name, attempt: 1, ms: null, dueAt }
  const due = () => {
    outsideOf(run).expecting.delete(`event/${pos}`)
    const taken = { runId: run.row.runId, waitPos: pos, signalSeq: null }
    writeResult(run, call, { value: null, output: 'null' }, { taken })
  }
  const result = awaitResult(run, call, { dueAt, due })
  if (!run.over && recorded === undefined && kind === 'signal') {
    const { runId, epoch } = run.row
    const row = { ...call, runId, epoch, ord: null, output: null, error: null, at: run.runner.clock.now() }
    writeEntry(run, { steps: [row] }, () => {})
  }
  return { call, recorded, result }
}

export type ChildOptions = Omit<StartOptions, 'id' | 'onConflict' | 'reuse' | 'traceparent'>

/** Starts a child in the commit that records the call, and gives its result. */
export function callChild(run: LiveRun, workflow: Workflow, input: unknown, options: ChildOptions): Promise<unknown> {
  const traceparent = traceparentOf(run.span, run.row.traceparent)
  const started = {
    ...newRun(run.row.tenant, workflow, input, options),
    parentId: run.row.runId,
    traceparent,
    starter: run.row,
  }
  const { pos, recorded } = openCall(run, 'child', workflow.name)
  const call = { pos, kind: 'child', name: workflow.name, attempt: 1, ms: null } as const
  const result = awaitResult(run, call)
  if (run.over || (recorded !== undefined && recorded.ord !== null)) return result
  const childId = recorded === undefined ? started.runId : (JSON.parse(recorded.output!) as string)
  outsideOf(run).children.set(pos, childId)
  expect(run, `child/${childId}`, ({ status, output, error }) => {
    outsideOf(run).children.delete(pos)
    if (status === 'completed') writeResult(run, call, { value: decode(output), output })
    else writeResult(run, call, { error: childError(workflow.name, childId, status, error) })
  })
  if (recorded !== undefined) return result
  run.runner.place(started)
  const { runId, epoch } = run.row
  const output = JSON.stringify(childId)
  const row = { ...call, runId, epoch, ord: null, output, error: null, dueAt: null, at: run.runner.clock.now() }
  writeEntry(run, { steps: [row], starts: [started] }, () => run.runner.begun(started))
  return result
}

function childError(name: string, childId: string, status: string, error: string | null): string {
  const cause = error === null ? { name: 'Error', message: `was ${status}` } : JSON.parse(error)
  const details = { ...cause.details, childId, status, ...(cause.code === undefined ? {} : { code: cause.code }) }
  return JSON.stringify({
    ...cause,
    code: 'run_failed',
    message: `Child ${name} ${status === 'failed' ? 'failed' : `was ${status}`}: ${cause.message}`,
    details,
  })
}
