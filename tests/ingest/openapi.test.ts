/** /openapi.json against the running API, by schemathesis: thousands of requests, right and wrong, made from it. */

import { execFile } from 'node:child_process'
import { resolve as resolvePath } from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { createKey } from '../../src/access/keys.ts'
import { SCOPES } from '../../src/http/caller.ts'
import { startServers } from '../servers.ts'
import { startService, until } from '../service.ts'

const servers = await startServers({ API_KEYS: 'required' })
const service = await startService(servers)
const { token } = await createKey(
  servers,
  { actor: 'cli tester', keyId: null, tenant: 'default' },
  { tenant: 'default', name: 'schemathesis', scopes: [...SCOPES] },
)
await until(async () => (await service.ask(token, 'GET', '/v1/keys')).status === 200)
test.after(async () => {
  await service.stop()
  await servers.stop()
})

test('the description is OpenAPI 3.1 and names every route', async () => {
  const { body } = await service.get('/openapi.json')
  assert.is(body.openapi, '3.1.0')
  for (const path of [
    '/v1/events',
    '/v1/events/{source}/{id}',
    '/v1/schemas/{type}/{version}',
    '/readyz',
    '/v1/workers',
  ])
    assert.ok(path in body.paths, path)
})

test('the API does what the description says, whatever it is sent', async () => {
  const { code, output } = await schemathesis([
    '--config-file',
    resolvePath('tests/ingest/schemathesis.toml'),
    'run',
    `${service.url}/openapi.json`,
    '--header',
    `Authorization: Bearer ${token}`,
    '--phases=examples,coverage,fuzzing',
    '--max-examples=15',
    '--seed=1',
    '--generation-database=none',
  ])
  assert.is(code, 0, output)
  assert.match(output, /[1-9]\d{2,} generated, [1-9]\d{2,} passed/, output)
})

function schemathesis(args: string[]): Promise<{ code: number; output: string }> {
  return new Promise((resolve) => {
    execFile(
      resolvePath('.venv/bin/schemathesis'),
      args,
      { cwd: servers.dir, maxBuffer: 64 * 1024 * 1024 },
      (error, stdout, stderr) =>
        resolve({
          code: Number(error?.code ?? 0),
          output: `${stdout}${stderr}${error?.code === 'ENOENT' ? error.message : ''}`,
        }),
    )
  })
}

test.run()
