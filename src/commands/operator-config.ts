import { resolve } from 'node:path'
import { type Config, loadConfig } from '../config.ts'
import { findServers } from '../embedded/running.ts'
import { withLocalJaeger } from '../telemetry/jaeger.ts'

/**
 * The configuration of a command that an operator types. Beside a running `millrace dev` it needs no variables: it takes
 * that one's servers, and its Jaeger.
 */
export async function operatorConfig(): Promise<Config> {
  const servers = findServers(resolve('.millrace'))
  return servers === undefined ? loadConfig() : withLocalJaeger(loadConfig(undefined, servers))
}
