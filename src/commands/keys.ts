/** `millrace keys ...`: API keys, from a terminal beside Postgres. */

import { Command, Option } from 'commander'
import {
  createKey,
  type KeyDeps,
  type KeySummary,
  listKeys,
  type NewKey,
  revokeKey,
  rotateKey,
} from '../access/keys.ts'
import { connectBroker } from '../broker/connect.ts'
import { connectDatabase } from '../db/connect.ts'
import { milliseconds } from '../durations.ts'
import { MillraceError } from '../errors.ts'
import { OPERATOR_TENANT, SCOPES, type Scope } from '../http/caller.ts'
import { atTerminal, operatorConfig } from './operator-config.ts'
import { printJson, table, whole } from './with-engine.ts'

type CreateOptions = {
  name: string
  scopes: string
  tenant: string
  sources?: string[]
  rate?: number
  burst?: number
  expires?: number
}

export function keysCommand(): Command {
  const command = new Command('keys')

  command
    .command('create')
    .description('makes a key and prints it: this once')
    .requiredOption('--name <name>', 'who uses it')
    .requiredOption('--scopes <scopes>', `such as ingest,read; of ${SCOPES.join(', ')}`)
    .option('--tenant <tenant>', 'whose it is', OPERATOR_TENANT)
    .option('--sources <source...>', 'of which it may send events: as they are, or their beginning and *')
    .option('--rate <n>', 'events per second on average, in each API process', whole)
    .option('--burst <n>', 'events at once (default: those of one second)', whole)
    .option('--expires <time>', 'from now, such as 90d (default: never)', milliseconds)
    .addOption(json())
    .action(({ json, expires, rate, burst, ...spec }: CreateOptions & { json?: true }) =>
      withKeys(async (deps) => {
        const made = await createKey(deps, atTerminal(), {
          ...spec,
          rate: rateOf(rate, burst),
          scopes: scopesOf(spec.scopes),
          expiresMs: expires,
        })
        printToken(made, json)
      }),
    )

  command
    .command('list')
    .description('keys without their secrets')
    .option('--tenant <tenant>', 'only of this tenant')
    .option('--ended', 'also revoked and expired ones')
    .addOption(json())
    .action(({ tenant = null, ended = false, json }: { tenant?: string | null; ended?: boolean; json?: true }) =>
      withKeys(async (deps) => {
        const keys = await listKeys(deps, { tenant, ended })
        if (json) return keys.forEach(printJson)
        table(['key', 'tenant', 'name', 'scopes', 'sources', 'rate', 'created', 'ends', 'id'], keys.map(lineOf))
      }),
    )

  command
    .command('rotate <key>')
    .description('makes a key that may do the same and prints it; by id or prefix of the old one')
    .option('--overlap <time>', 'how long the old key goes on, such as 24h (default: not at all)', milliseconds, 0)
    .addOption(json())
    .action((which: string, { overlap, json }: { overlap: number; json?: true }) =>
      withKeys(async (deps) => {
        const how = { which, tenant: null, overlapMs: overlap }
        printToken(await rotateKey(deps, atTerminal(), how), json)
      }),
    )

  command
    .command('revoke <key>')
    .description('ends a key now; by id or prefix')
    .action((which: string) =>
      withKeys(async (deps) => {
        const { name, prefix } = await revokeKey(deps, atTerminal(), { which, tenant: null })
        console.log(`revoked ${name} ${prefix}`)
      }),
    )

  return command
}

const json = () => new Option('--json', 'one JSON document a line')

function scopesOf(text: string): Scope[] {
  const wanted = text.split(',').map((scope) => scope.trim())
  const unknown = wanted.find((scope) => !SCOPES.some((known) => known === scope))
  if (unknown !== undefined)
    throw new MillraceError('invalid_request', `There is no scope ${unknown}: name some of ${SCOPES.join(', ')}`)
  return [...new Set(wanted)] as Scope[]
}

function rateOf(events: number | undefined, burst: number | undefined) {
  if (events !== undefined) return { events, burst }
  if (burst === undefined) return undefined
  throw new MillraceError('invalid_request', '--burst needs --rate')
}

/** The key alone on stdout, so that a script can take it. */
function printToken(made: NewKey, asJson: true | undefined): void {
  if (asJson) printJson(made)
  else console.log(made.token)
  console.error(`This is the only time that the key ${made.id} (${made.name}) can be seen.`)
}

const lineOf = (key: KeySummary): string[] => [
  key.prefix,
  key.tenant,
  key.name,
  key.scopes.join(','),
  key.sources?.join(' ') ?? 'all',
  key.rate === null ? '-' : `${key.rate.events}/s, ${key.rate.burst} at once`,
  key.createdAt.slice(0, 10),
  key.revokedAt !== null ? 'revoked' : (key.expiresAt?.slice(0, 16).replace('T', ' ') ?? 'never'),
  key.id,
]

/** NATS only makes it quicker: without, processes notice within two seconds. */
async function withKeys(run: (deps: KeyDeps) => Promise<void>): Promise<void> {
  const config = await operatorConfig()
  const database = connectDatabase(config)
  const broker = await connectBroker(config, 'keys').catch(() => null)
  try {
    await run({ db: database.db, broker })
  } finally {
    await broker?.nc.drain()
    await database.close()
  }
}
