/** /openapi.json against the running API, by schemathesis: thousands of requests, right and wrong, made from it. */

import { execFile } from 'node:child_process'
import { resolve as resolvePath } from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { startServers } from '../servers.ts'
import { startService } from '../service.ts'

const servers = await startServers()
const service = await startService(servers)
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
