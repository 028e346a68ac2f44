/** `millrace audit`: who did what, newest first. */

import { Command } from 'commander'
import { listActs } from '../access/audit.ts'
import { connectDatabase } from '../db/connect.ts'
import { operatorConfig } from './operator-config.ts'
import { brief, instant, printJson, table, whole } from './with-engine.ts'

type Options = {
  tenant?: string
  actor?: string
  action?: string
  target?: string
  from?: string
  to?: string
  before?: number
  limit: number
  json?: true
}

export function auditCommand(): Command {
  return new Command('audit')
    .option('--tenant <tenant>', 'only of this tenant')
    .option('--actor <actor>', 'only by this actor, such as "cli ann"')
    .option('--action <action>', 'only this action, or all of its kind: `key` finds `key.revoke`')
    .option('--target <target>', 'only on this target')
    .option('--from <time>', 'since, ISO 8601', instant)
    .option('--to <time>', 'before, ISO 8601', instant)
    .option('--limit <n>', 'so many at most', whole, 50)
    .option('--before <seq>', 'continue after the last line of an earlier listing', whole)
    .option('--json', 'one JSON document a line')
    .action(async ({ json, tenant, ...filter }: Options) => {
      const database = connectDatabase(await operatorConfig())
      try {
        const acts = await listActs(database.db, { ...filter, tenant: tenant ?? null })
        if (json) return acts.forEach(printJson)
        table(
          ['at', 'tenant', 'actor', 'action', 'target', 'detail'],
          acts.map(({ at, tenant, actor, action, target, detail }) => [
            at.slice(0, 19).replace('T', ' '),
            tenant,
            actor,
            action,
            target ?? '',
            brief(detail),
          ]),
        )
        if (acts.length === filter.limit) console.log(`more: --before ${acts.at(-1)!.seq}`)
      } finally {
        await database.close()
      }
    })
}
