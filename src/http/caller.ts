/** Who sent a request, and what they may do: what stands in the state of every request to a route that is not open. */

import type { TracedState } from '../telemetry/http.ts'

export const SCOPES = ['ingest', 'read', 'operate', 'admin'] as const
/** A scope is no part of another: a key has exactly those it names. */
export type Scope = (typeof SCOPES)[number]

/** The tenant of whoever runs the installation, and of everything where there are no tenants. */
export const OPERATOR_TENANT = 'default'

export type Caller = {
  /** null where keys are off */
  keyId: string | null
  /** As audit rows name them. */
  actor: string
  tenant: string
  scopes: readonly Scope[]
  /** Whether they may send events of this source; null: of any. */
  allowsSource: ((source: string) => boolean) | null
  /**
   * Takes so many events off their rate; null: there is none.
   * @throws MillraceError `rate_limited`, and `too_large` for more than they may ever send at once
   */
  spend: ((events: number) => void) | null
}

export type RequestState = TracedState & { caller: Caller }
