/**
 * Where an event carries its key. Triggers and waits are matched inside Postgres, by processes that have not loaded
 * the workflow, so a key is a path and not code: `e => e.data.orderId` is called once with a recorder to learn it.
 */

import { MillraceError } from '../errors.ts'

/** What a key function sees. Any data: it is only read from. */
type EventShape = {
  source: string
  id: string
  type: string
  subject: string
  // biome-ignore lint/suspicious/noExplicitAny: the shape of a user's data is the user's to know
  data: any
  extensions: Record<string, string>
}

/** A plain path, as a function or as dotted text. */
export type KeyOf = string | ((event: EventShape) => unknown)

const ROOTS = new Set(['source', 'id', 'type', 'subject', 'data', 'extensions'])

/**
 * @returns e.g. ['data', 'orderId'] or ['subject']
 * @throws MillraceError `invalid_request` when it is not a plain path below a root of the event
 */
export function keyPath(key: KeyOf): string[] {
  const path = typeof key === 'string' ? key.split('.') : record(key)
  if (path === null || !ROOTS.has(path[0]!) || path.some((name) => name === '' || name.includes('\u0000')))
    throw new MillraceError(
      'invalid_request',
      `The key ${String(key)} must be one plain path of the event, such as e => e.data.orderId or 'data.orderId'. It is matched in the database, where no code runs: put a computed key into the event`,
    )
  return path
}

function record(key: (event: EventShape) => unknown): string[] | null {
  const paths = new WeakMap<object, string[]>()
  const recorder = (path: string[]): object => {
    const proxy = new Proxy(() => {}, {
      get(_, name) {
        // Template text, arithmetic and comparison all ask for a primitive first.
        if (typeof name === 'symbol') throw new Error('not a path')
        return recorder([...path, name])
      },
      apply: () => {
        throw new Error('not a path')
      },
    })
    paths.set(proxy, path)
    return proxy
  }
  try {
    const result = key(recorder([]) as EventShape)
    return typeof result === 'function' ? (paths.get(result) ?? null) : null
  } catch {
    return null
  }
}
