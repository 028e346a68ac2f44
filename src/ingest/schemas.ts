/**
 * The JSON Schemas of event types: kept in Postgres, compiled once per process, and read again when another process
 * says over NATS that something changed, or after REREAD_MS for when that was not heard.
 *
 * Which version applies to an event: the one its `dataschema` names, by a path that ends in `<type>/<version>` or by the
 * schema's `$id`; otherwise the highest version of its type.
 */

import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { sql } from 'drizzle-orm'
import { type Actor, recordAct } from '../access/audit.ts'
import type { Broker } from '../broker/connect.ts'
import { follow } from '../broker/follow.ts'
import type { Config } from '../config.ts'
import { type Database, inTransaction, type Transaction } from '../db/connect.ts'
import { describe, MillraceError } from '../errors.ts'
import { OPERATOR_TENANT } from '../http/caller.ts'
import { type CheckData, compileSchema } from './compile-schema.ts'
import type { EventObject } from './event.ts'
import { decodeText, findUnstorable, type Json, type Problem, parseJson } from './json.ts'
import type { Log } from './log.ts'

export type Mode = 'strict' | 'warn' | 'off'
type Verdict = { mode: 'strict' | 'warn'; problem: Problem }

export type SchemaRegistry = {
  /** What the type's schema has against the event's data; undefined when nothing, or when there is none. */
  check: (tenant: string, event: EventObject) => Verdict | undefined
  /** Compiles and stores a version; true when it is new. @throws MillraceError `invalid_request` */
  put: (by: Actor, type: string, version: number, schema: Json) => Promise<boolean>
  /** False when there was no such version. */
  remove: (by: Actor, type: string, version: number) => Promise<boolean>
  setMode: (by: Actor, type: string, mode: Mode) => Promise<void>
  close: () => void
}

type Entry = { digest: string; id: unknown; check: CheckData }
type Stored = { tenant: string; type: string; version: number; digest: string; mode: Mode }
type TypeSchemas = { mode: Mode; latest: number; versions: Map<number, Entry> }

/** A tenant's type, as one text: no tenant holds a space. */
const nameOf = (tenant: string, type: string) => `${tenant} ${type}`

const CHANGED_SUBJECT = 'millrace.schemas.changed'
const REREAD_MS = 10_000

/**
 * Stores the schemas of SCHEMA_DIR, reads all and watches for changes.
 * @throws where the first reading fails: an API that knows no schema would accept everything
 */
export async function openSchemas(
  { db, broker, log }: { db: Database; broker: Broker; log: Log },
  config: Pick<Config, 'SCHEMA_DIR'>,
): Promise<SchemaRegistry> {
  let types = new Map<string, TypeSchemas>()
  const { read, close } = follow(
    { broker, log },
    { subject: CHANGED_SUBJECT, everyMs: REREAD_MS, complaint: 'cannot read the schemas; keeping those known' },
    async () => {
      types = await readTypes(db, types, log)
    },
  )

  async function changed(): Promise<void> {
    await read()
    broker.nc.publish(CHANGED_SUBJECT)
  }

  const registry: SchemaRegistry = {
    check: (tenant, event) => (types.size === 0 ? undefined : checkEvent(types.get(nameOf(tenant, event.type)), event)),
    put: async (by, type, version, schema) => {
      compileSchema(schema.value)
      const created = await inTransaction(db, (tx) => store(tx, by, type, version, schema))
      await changed()
      return created
    },
    remove: async (by, type, version) => {
      const removed = await inTransaction(db, async (tx) => {
        const { rowCount } = await tx.execute(
          sql`delete from event_schemas where tenant = ${by.tenant} and type = ${type} and version = ${version}`,
        )
        if (rowCount === 1) await recordAct(tx, by, { action: 'schema.remove', target: `${type}/${version}` })
        return rowCount === 1
      })
      await changed()
      return removed
    },
    setMode: async (by, type, mode) => {
      await inTransaction(db, async (tx) => {
        const { rowCount } = await tx.execute(sql`
          insert into event_schema_modes as m (tenant, type, mode) values (${by.tenant}, ${type}, ${mode})
          on conflict (type, tenant) do update set mode = excluded.mode where m.mode <> excluded.mode`)
        if (rowCount === 1) await recordAct(tx, by, { action: 'schema.mode', target: type, detail: { mode } })
      })
      await changed()
    },
    close,
  }
  try {
    if (config.SCHEMA_DIR !== '') await loadFolder(registry, config.SCHEMA_DIR)
    await read()
  } catch (error) {
    close()
    throw error
  }
  return registry
}

function checkEvent(schemas: TypeSchemas | undefined, event: EventObject): Verdict | undefined {
  if (schemas === undefined || schemas.mode === 'off') return undefined
  const { mode, versions, latest } = schemas
  const version = versionNamed(schemas, event) ?? latest
  const entry = versions.get(version)
  if (entry === undefined)
    return {
      mode,
      problem: {
        code: 'unknown_schema',
        pointer: '/dataschema',
        message: `names version ${version} of ${event.type}, which is not stored`,
      },
    }
  if (event.data_base64 !== undefined)
    return {
      mode,
      problem: {
        code: 'schema_mismatch',
        pointer: '/data_base64',
        message: 'must be JSON in data: the type has a schema',
      },
    }
  const error = entry.check(event.data)
  if (error === undefined) return undefined
  return {
    mode,
    problem: { code: 'schema_mismatch', pointer: `/data${error.instancePath}`, message: error.message ?? 'is refused' },
  }
}

function versionNamed({ versions }: TypeSchemas, { type, dataschema }: EventObject): number | undefined {
  if (dataschema === undefined) return undefined
  const [, name, version] = /([^/]+)\/(\d{1,9})$/.exec(dataschema) ?? []
  if (name === type || name === encodeURIComponent(type)) return Number(version)
  for (const [known, { id }] of versions) if (id === dataschema) return known
  return undefined
}

/** Reads what there is, and compiles only what `known` does not have. */
async function readTypes(db: Database, known: Map<string, TypeSchemas>, log: Log): Promise<Map<string, TypeSchemas>> {
  const { rows } = await db.execute<Stored>(sql`
    select tenant, type, version, md5(schema::text) as digest, coalesce(mode, 'strict') as mode
    from event_schemas left join event_schema_modes using (type, tenant)
    order by tenant, type, version`)
  const types = new Map<string, TypeSchemas>()
  for (const row of rows) {
    const { version, digest, mode } = row
    const name = nameOf(row.tenant, row.type)
    const schemas = types.get(name) ?? { mode, latest: version, versions: new Map<number, Entry>() }
    const before = known.get(name)?.versions.get(version)
    const entry = before?.digest === digest ? before : await readEntry(db, row, log)
    if (entry !== undefined) schemas.versions.set(version, entry)
    schemas.latest = version
    types.set(name, schemas)
  }
  return types
}

/** Undefined for one deleted meanwhile. One that does not compile here refuses what it is asked about, and is logged. */
async function readEntry(
  db: Database,
  { tenant, type, version, digest }: Stored,
  log: Log,
): Promise<Entry | undefined> {
  const { rows } = await db.execute<{ schema: { $id?: unknown } }>(
    sql`select schema from event_schemas where tenant = ${tenant} and type = ${type} and version = ${version}`,
  )
  const schema = rows[0]?.schema
  if (schema === undefined) return undefined
  try {
    return { digest, id: schema.$id, check: compileSchema(schema) }
  } catch (error) {
    log.error({ error: describe(error), tenant, type, version }, 'a stored schema cannot be used')
    return { digest, id: undefined, check: () => ({ instancePath: '', message: 'cannot be checked: see the log' }) }
  }
}

/** True when the version is new; the same schema again changes nothing. */
async function store(
  tx: Transaction,
  by: Actor,
  type: string,
  version: number,
  { value, exact }: Json,
): Promise<boolean> {
  const problem = findUnstorable(exact ?? value)
  if (problem !== undefined)
    throw new MillraceError('invalid_request', `The schema cannot be stored: ${problem.pointer} ${problem.message}`)
  const { rows } = await tx.execute<{ created: boolean }>(sql`
    insert into event_schemas as s (tenant, type, version, schema)
    values (${by.tenant}, ${type}, ${version}, ${JSON.stringify(exact ?? value)}::jsonb)
    on conflict (type, version, tenant) do update set schema = excluded.schema, updated_at = clock_timestamp()
      where s.schema is distinct from excluded.schema
    returning xmax = 0 as created`)
  const created = rows[0]?.created ?? false
  if (rows[0] !== undefined)
    await recordAct(tx, by, { action: 'schema.put', target: `${type}/${version}`, detail: { created } })
  return created
}

/** Whoever put it there started the process. */
const FOLDER: Actor = { actor: 'SCHEMA_DIR', keyId: null, tenant: OPERATOR_TENANT }

/**
 * `<type>/<version>.json` holds a schema, `<type>/mode` one of strict, warn and off.
 * @throws MillraceError `invalid_config` that names the file
 */
async function loadFolder(registry: SchemaRegistry, folder: string): Promise<void> {
  for (const entry of readdirSync(folder, { recursive: true, withFileTypes: true })) {
    if (!entry.isFile()) continue
    const file = join(entry.parentPath, entry.name)
    const type = entry.parentPath.slice(folder.length).replace(/^\/+/, '')
    const version = /^([1-9]\d{0,8})\.json$/.exec(entry.name)?.[1]
    try {
      if (entry.name === 'mode') await registry.setMode(FOLDER, type, modeOf(readFileSync(file, 'utf8').trim()))
      else if (version !== undefined)
        await registry.put(FOLDER, type, Number(version), parseJson(decodeText(readFileSync(file))))
    } catch (error) {
      throw new MillraceError('invalid_config', `SCHEMA_DIR: ${file}: ${describe(error)}`, { cause: error })
    }
  }
}

function modeOf(text: string): Mode {
  if (text === 'strict' || text === 'warn' || text === 'off') return text
  throw new MillraceError('invalid_config', 'the mode is strict, warn or off')
}
