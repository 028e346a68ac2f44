/** The bill of materials is valid and whole; an audit that reached nobody does not pass for a clean one. */

import { spawn } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { createServer } from 'node:http'
import { createRequire } from 'node:module'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import Ajv from 'ajv'
import addFormats from 'ajv-formats'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { temporaryFolder } from '../servers.ts'

const require = createRequire(import.meta.url)
const json = (file: string): any => JSON.parse(readFileSync(file, 'utf8'))

const run = (args: string[], env: Record<string, string> = {}): Promise<{ code: number | null; out: string }> =>
  new Promise((resolve) => {
    const child = spawn(process.execPath, args, { env: { ...process.env, ...env } })
    let out = ''
    for (const stream of [child.stdout, child.stderr]) stream.on('data', (chunk) => (out += chunk))
    child.once('close', (code) => resolve({ code, out }))
  })

test('the bill of materials is CycloneDX and lists every production dependency of the lock file, with its licence', async () => {
  const file = join(temporaryFolder('sbom'), 'sbom.cdx.json')
  const { code, out } = await run(['deploy/sbom.ts', file])
  assert.is(code, 0, out)
  const bom = json(file)

  const schema = (name: string) =>
    json(require.resolve('@cyclonedx/cyclonedx-library').replace(/dist.*/, `res/schema/${name}.SNAPSHOT.schema.json`))
  const ajv = new Ajv.default({ strict: false, formats: { 'iri-reference': true, 'idn-email': true } })
  addFormats.default(ajv)
  for (const name of ['spdx', 'jsf-0.82'])
    ajv.addSchema(schema(name), `http://cyclonedx.org/schema/${name}.SNAPSHOT.schema.json`)
  const valid = ajv.compile<any>(schema(`bom-${bom.specVersion}`))
  assert.ok(valid(bom), JSON.stringify(valid.errors))

  type Locked = { version: string; name?: string; dev?: boolean; devOptional?: boolean }
  const locked = Object.entries(json('package-lock.json').packages as Record<string, Locked>).flatMap(
    ([path, { version, name, dev, devOptional }]) =>
      path === '' || dev || devOptional ? [] : [`${name ?? path.replace(/.*node_modules\//, '')}@${version}`],
  )
  type Component = { group?: string; name: string; version: string; purl: string; licenses: unknown[] }
  const listed = (bom.components as Component[]).map(({ purl }) =>
    decodeURIComponent(purl.replace('pkg:npm/', '').replace(/\?.*/, '')),
  )
  assert.ok(locked.length > 50)
  assert.equal([...new Set(listed)].sort(), [...new Set(locked)].sort())
  for (const { name, licenses } of bom.components as Component[]) assert.ok(licenses.length > 0, name)
  assert.is(bom.metadata.component.name, 'millrace')
})

/** A registry that answers the question for advisories so. */
async function withRegistry<T>(status: number, advisories: object, use: (url: string) => Promise<T>): Promise<T> {
  const server = createServer((request, response) => {
    request.resume()
    // Who is vulnerable by a dependency, npm finds out by what every version depends on.
    const answer =
      request.method === 'POST' ? advisories : { name: decodeURIComponent(request.url!.slice(1)), versions: {} }
    response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(answer))
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  try {
    return await use(`http://127.0.0.1:${(server.address() as AddressInfo).port}/`)
  } finally {
    server.close()
  }
}

test('an audit tells clean, vulnerable and not asked apart', async () => {
  const audit = (url: string) => run(['deploy/audit.ts', '--registry', url, '--fetch-retries', '0'])
  const clean = await withRegistry(200, {}, audit)
  assert.is(clean.code, 0, clean.out)
  assert.match(clean.out, /^\d+ packages asked about, 0 vulnerable$/m)

  const advisory = { id: 1, url: 'https://example.org/1', title: 'A hole', severity: 'high', vulnerable_versions: '*' }
  const vulnerable = await withRegistry(200, { pg: [advisory] }, audit)
  assert.is(vulnerable.code, 1, vulnerable.out)
  assert.match(vulnerable.out, /^high: pg .*: A hole https:\/\/example.org\/1$/m)

  const unasked = await withRegistry(405, {}, audit)
  assert.is(unasked.code, 2, unasked.out)
  assert.match(unasked.out, /^NOT AUDITED: .*405/m)
})

test.run()
