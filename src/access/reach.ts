/** What is managed per tenant, keys and the audit trail, the operators see and manage for all tenants. */

import { MillraceError } from '../errors.ts'
import { type Caller, OPERATOR_TENANT } from '../http/caller.ts'

/**
 * The tenant that a caller means, by what they asked for; null: all tenants.
 * @throws MillraceError `forbidden`
 */
export function tenantMeant({ tenant }: Pick<Caller, 'tenant'>, asked?: string): string | null {
  if (tenant === OPERATOR_TENANT) return asked ?? null
  if (asked !== undefined && asked !== tenant)
    throw new MillraceError('forbidden', 'Only the operators have a key for other tenants')
  return tenant
}
