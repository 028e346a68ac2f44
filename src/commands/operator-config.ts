import { userInfo } from 'node:os'
import { resolve } from 'node:path'
import type { Actor } from '../access/audit.ts'
import { type Config, loadConfig } from '../config.ts'
import { findServers } from '../embedded/running.ts'
import { OPERATOR_TENANT } from '../http/caller.ts'
import { withLocalJaeger } from '../telemetry/jaeger.ts'

/**
 * The configuration of a command that an operator types. Beside a running `millrace dev` it needs no variables: it takes
 * that one's servers, and its Jaeger.
 */
export async function operatorConfig(): Promise<Config> {
  const servers = findServers(resolve('.millrace'))
  return servers === undefined ? loadConfig() : withLocalJaeger(loadConfig(undefined, servers))
}

/** Who types, as the audit trail names them. */
export const atTerminal = (tenant = OPERATOR_TENANT): Actor => ({
  actor: `cli ${userInfo().username}`,
  keyId: null,
  tenant,
})
