/** Results for whoever waits: at once when the run ends in this process, else by a hint over NATS, else by a sweep. */

import type pg from 'pg'
import type { Broker } from '../broker/connect.ts'
import { MillraceError } from '../errors.ts'
import { decode, decodeError } from './values.ts'
import { onEnded } from './wakes.ts'

/** How a run ended, as the database has it. */
export type Ending = { status: string; output: string | null; error: string | null; name: string }

export type Results = {
  /** Resolves when the run has ended, however long that takes. */
  wait: (runId: string, signal?: AbortSignal) => Promise<unknown>
  /** The run ended here, and its end is durable. */
  settle: (runId: string, ending: Ending) => void
  /** These runs ended: reads how, for whoever waits. */
  ended: (runIds: string[]) => void
  close: () => void
}

type Waiter = { resolve: (value: unknown) => void; reject: (error: unknown) => void }

const SWEEP_MS = 1_000

const ENDINGS = `
  select run_id, name, status, output::text as output, error::text as error from workflow_runs
  where run_id = any($1::uuid[]) and status not in ('queued', 'running', 'waiting', 'stuck')`

/** @param runsHere  true for a run whose end this process will announce, or be told: the database is not asked at once */
export function createResults(
  pool: pg.Pool,
  broker: Broker | null,
  runsHere: (runId: string) => boolean,
  onError: (error: unknown) => void,
): Results {
  const waiting = new Map<string, Set<Waiter>>()
  let fresh: string[] = []

  const settle = (runId: string, ending: Ending) => {
    const waiters = waiting.get(runId)
    if (waiters === undefined) return
    waiting.delete(runId)
    if (ending.status === 'continued') {
      follow(waiters, JSON.parse(ending.output!))
      return
    }
    for (const waiter of waiters) {
      const error = failureOf(runId, ending)
      if (error === null) waiter.resolve(decode(ending.output))
      else waiter.reject(error)
    }
  }
  /** A run that continued as new ends when the last of its chain does. */
  const follow = (waiters: Set<Waiter>, next: string) => {
    const known = waiting.get(next)
    waiting.set(next, known === undefined ? waiters : new Set([...known, ...waiters]))
    if (!runsHere(next)) void look([next])
  }
  const look = async (runIds: string[]) => {
    if (runIds.length === 0) return
    try {
      const { rows } = await pool.query({ name: 'millrace_endings', text: ENDINGS, values: [runIds] })
      for (const row of rows) settle(row.run_id, row)
    } catch (error) {
      onError(error)
    }
  }
  const sweep = setInterval(() => void look([...waiting.keys()]), SWEEP_MS)
  sweep.unref()
  const ended = (runIds: string[]) => void look(runIds.filter((runId) => waiting.has(runId)))
  const unsubscribe = onEnded(broker, ended)
  return {
    wait(runId, signal) {
      return new Promise((resolve, reject) => {
        const waiter = { resolve, reject }
        const known = waiting.get(runId)
        if (known) known.add(waiter)
        else waiting.set(runId, new Set([waiter]))
        signal?.addEventListener('abort', () => {
          waiting.get(runId)?.delete(waiter)
          reject(signal.reason)
        })
        if (runsHere(runId)) return
        if (fresh.length === 0)
          setImmediate(() => {
            const runIds = fresh
            fresh = []
            void look(runIds)
          })
        fresh.push(runId)
      })
    },
    settle,
    ended,
    close() {
      clearInterval(sweep)
      unsubscribe()
      for (const waiters of waiting.values())
        for (const { reject } of waiters) reject(new MillraceError('unavailable', 'This process is closing'))
      waiting.clear()
    },
  }
}

function failureOf(runId: string, { status, error, name }: Ending): MillraceError | null {
  if (status === 'completed') return null
  if (error !== null) return decodeError(error, 'run_failed')
  const code = status === 'cancelled' || status === 'terminated' ? status : 'run_failed'
  return new MillraceError(code, `Run ${runId} of ${name} was ${status}`)
}
