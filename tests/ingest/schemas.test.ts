import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { sql } from 'drizzle-orm'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { startServers } from '../servers.ts'
import { startService, until } from '../service.ts'

const servers = await startServers()
const folder = join(servers.dir, 'schemas')
mkdirSync(join(folder, 'from.folder'), { recursive: true })
writeFileSync(join(folder, 'from.folder', '1.json'), '{"type":"object","required":["a"]}')
writeFileSync(join(folder, 'from.folder', 'mode'), 'warn\n')
const service = await startService(servers, { SCHEMA_DIR: folder })
const other = await startService(servers, { WORKER_POOL_SIZE: 1 })
test.after(async () => {
  await service.stop()
  await other.stop()
  await servers.stop()
})

async function ask(method: string, path: string, body?: unknown) {
  const response = await fetch(`${service.url}/v1/schemas${path}`, {
    method,
    ...(body === undefined ? {} : { body: typeof body === 'string' ? body : JSON.stringify(body) }),
  })
  const text = await response.text()
  return { status: response.status, body: text === '' ? undefined : JSON.parse(text) }
}

type Answer = {
  events: { status: string; code: string; pointer: string; warning: { message: string } }[]
}

async function outcomeOf(at: typeof service, type: string, data: unknown, more: object = {}) {
  const { body } = await at.post({ source: 's', type, data, ...more })
  return (body as Answer).events[0]!
}

test('a folder’s schemas apply from the start, in the mode it says', async () => {
  const outcome = await outcomeOf(service, 'from.folder', {})
  assert.is(outcome.status, 'accepted')
  assert.equal(outcome.warning, {
    code: 'schema_mismatch',
    pointer: '/data',
    message: "must have required property 'a'",
  })
  assert.equal((await ask('GET', '/from.folder')).body, { type: 'from.folder', mode: 'warn', versions: [1] })
})

test('a schema put on one process applies on all, and goes with its deletion', async () => {
  const schema = { type: 'object', properties: { n: { type: 'integer' } } }
  assert.is((await ask('PUT', '/put.type/1', schema)).status, 201)
  assert.is((await ask('PUT', '/put.type/1', schema)).status, 200)
  for (const at of [service, other])
    await until(async () => {
      const outcome = await outcomeOf(at, 'put.type', { n: 'x' })
      return outcome.status === 'rejected' && outcome.pointer === '/data/n'
    })
  assert.equal((await ask('GET', '/put.type/1')).body, schema)
  assert.ok((await ask('GET', '')).body.schemas.some((each: { type: string }) => each.type === 'put.type'))
  assert.is((await ask('DELETE', '/put.type/1')).status, 204)
  assert.is((await ask('DELETE', '/put.type/1')).status, 404)
  assert.is((await ask('GET', '/put.type/1')).status, 404)
  assert.is((await ask('GET', '/put.type')).status, 404)
  for (const at of [service, other]) await until(async () => (await outcomeOf(at, 'put.type', 7)).status === 'accepted')
})

test('a change that no message told of is found all the same', async () => {
  await servers.db.execute(
    sql`insert into event_schemas (type, version, schema) values ('silent', 1, '{"type":"string"}')`,
  )
  await until(async () => (await outcomeOf(other, 'silent', 7)).status === 'rejected')
})

test('the version is the one dataschema names, else the highest', async () => {
  await ask('PUT', '/v/2', { $id: 'https://example.com/v2', type: 'string' })
  await ask('PUT', '/v/10', { type: 'number' })
  const status = async (data: unknown, dataschema?: string) => {
    const { status, code } = await outcomeOf(service, 'v', data, dataschema === undefined ? {} : { dataschema })
    return code ?? status
  }
  assert.is(await status('x'), 'schema_mismatch')
  assert.is(await status(1), 'accepted')
  assert.is(await status('x', 'http://millrace/v1/schemas/v/2'), 'accepted')
  assert.is(await status('x', 'https://example.com/v2'), 'accepted')
  assert.is(await status('x', 'v/3'), 'unknown_schema')
  assert.is(await status('x', 'https://elsewhere/unknown'), 'schema_mismatch')
  const { body } = await service.post({ source: 's', type: 'v', data_base64: 'AA==' })
  assert.is((body as Answer).events[0]!.pointer, '/data_base64')
})

test('a type is strict, warns or is off', async () => {
  await ask('PUT', '/moody/1', { type: 'string' })
  const at = async (mode: string) => {
    assert.is((await ask('PUT', '/moody', { mode })).status, 204)
    return outcomeOf(service, 'moody', 1)
  }
  assert.is((await at('strict')).status, 'rejected')
  assert.is((await at('warn')).warning.message, 'must be string')
  assert.equal(Object.keys(await at('off')), ['status', 'id'])
  assert.is((await ask('PUT', '/moody', { mode: 'loud' })).status, 400)
})

test('a bad or dangerous schema is a 400 in words', async () => {
  const refused: [schema: unknown, why: RegExp][] = [
    [{ type: 'strin' }, /type/],
    [{ requierd: ['a'] }, /requierd/],
    [{ $ref: 'https://elsewhere.example/schema' }, /elsewhere/],
    [{ $async: true }, /async/],
    [{ pattern: '(?=a)b' }, /regexp/],
    [{ properties: { a: { uniqueItems: true } } }, /maxItems/],
    [{ $schema: 'http://json-schema.org/draft-04/schema#' }, /draft/],
    [{ allOf: [{ $ref: '#' }] }, /itself/],
    [
      { $ref: '#/$defs/a', $defs: { a: { if: { $ref: '#b' } }, c: { $anchor: 'b', not: { $ref: '#/$defs/a' } } } },
      /itself/,
    ],
    [doubling(30), /multiply/],
    [{ $id: 'http://json-schema.org/draft-07/schema#' }, /meta-schema/],
    [{ properties: { a: { $id: 'https://example.com/inner' } } }, /nested/],
    [[], /object/],
    ['{"a":', /JSON/],
    ['{"const":"\\u0000"}', /stored/],
    [JSON.parse(`${'{"not":'.repeat(100)}{}${'}'.repeat(100)}`), /deeper/],
  ]
  for (const [schema, why] of refused) {
    const { status, body } = await ask('PUT', '/bad/1', schema)
    assert.is(status, 400, JSON.stringify(schema))
    assert.match(body.message, why)
  }
  assert.is((await ask('PUT', '/bad/1', `{"description":"${'x'.repeat(70_000)}"}`)).body.limit, 'SCHEMA_BYTES_MAX')
  assert.is((await ask('PUT', '/bad/0', {})).status, 400)
  assert.is((await ask('PUT', '/bad/x', {})).status, 400)
  assert.is((await ask('GET', '/bad')).status, 404)
})

/** Definitions of which each applies the next one twice: 2^levels evaluations of one value. */
function doubling(levels: number): object {
  const $defs = Object.fromEntries(
    Array.from({ length: levels }, (_, i) => [
      `d${i}`,
      { allOf: [{ $ref: `#/$defs/d${i + 1}` }, { $ref: `#/$defs/d${i + 1}` }] },
    ]),
  )
  return { $ref: '#/$defs/d0', $defs: { ...$defs, [`d${levels}`]: {} } }
}

test('a schema may refer to itself on the way down into the data', async () => {
  const tree = { type: 'object', properties: { left: { $ref: '#' }, right: { $ref: '#' }, n: { type: 'number' } } }
  assert.is((await ask('PUT', '/tree/1', { ...tree, additionalProperties: false })).status, 201)
  assert.is((await outcomeOf(service, 'tree', { left: { right: { n: 1 } } })).status, 'accepted')
  assert.is((await outcomeOf(service, 'tree', { left: { right: { n: 'x' } } })).pointer, '/data/left/right/n')
})

test('a pattern made to explode runs in linear time', async () => {
  await ask('PUT', '/regex/1', { type: 'string', pattern: '^(a+)+$' })
  assert.is((await outcomeOf(service, 'regex', `${'a'.repeat(20_000)}b`)).status, 'rejected')
  assert.is((await outcomeOf(service, 'regex', 'a'.repeat(20_000))).status, 'accepted')
})

test('a name that every object inherits is no property', async () => {
  await ask('PUT', '/proto/1', { type: 'object', required: ['toString'] })
  assert.is((await outcomeOf(service, 'proto', {})).status, 'rejected')
})

test('two types may use one $id', async () => {
  const schema = (type: string) => ({
    $id: 'https://example.com/same',
    type,
    not: { $ref: '#/$defs/x' },
    $defs: { x: { const: 0 } },
  })
  assert.is((await ask('PUT', '/same.a/1', schema('string'))).status, 201)
  assert.is((await ask('PUT', '/same.b/1', schema('number'))).status, 201)
  assert.is((await outcomeOf(service, 'same.a', 1)).status, 'rejected')
  assert.is((await outcomeOf(service, 'same.b', 1)).status, 'accepted')
  assert.is((await outcomeOf(service, 'same.b', 0)).status, 'rejected')
})

test('both drafts are understood', async () => {
  await ask('PUT', '/d7/1', { $schema: 'http://json-schema.org/draft-07/schema#', items: [{ type: 'string' }] })
  assert.is((await outcomeOf(service, 'd7', [1])).pointer, '/data/0')
  await ask('PUT', '/d2020/1', { prefixItems: [{ type: 'string' }], $defs: { a: {} } })
  assert.is((await outcomeOf(service, 'd2020', [1])).pointer, '/data/0')
})

test.run()
