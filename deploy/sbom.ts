/**
 * Writes the software bill of materials of a release, CycloneDX as npm makes it: every package that runs in production,
 * with its version, licence and checksum. Usage: node deploy/sbom.ts FILE
 */

import { execFileSync } from 'node:child_process'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { dirname } from 'node:path'

type Reference = { 'bom-ref': string }
type Bom = {
  metadata: { component: Reference & { name: string } }
  components: Reference[]
  dependencies: { ref: string; dependsOn: string[] }[]
}
type Lock = { packages: Record<string, { version: string; name?: string; dev?: boolean; devOptional?: boolean }> }

const json = (file: string): unknown => JSON.parse(readFileSync(file, 'utf8'))

const [file = 'build/sbom.cdx.json'] = process.argv.slice(2)
const bom = JSON.parse(
  execFileSync('npm', ['sbom', '--sbom-format', 'cyclonedx', '--sbom-type', 'application', '--package-lock-only'], {
    encoding: 'utf8',
    maxBuffer: 64 * 1024 * 1024,
  }),
) as Bom

// npm's own --omit dev (11.19) also leaves out what both production and a tool depend on, such as pg.
const { packages } = json('package-lock.json') as Lock
const production = new Set(
  Object.entries(packages).flatMap(([path, { name, version, dev, devOptional }]) =>
    dev || devOptional ? [] : [`${name ?? path.replace(/.*node_modules\//, '')}@${version}`],
  ),
)
production.add(bom.metadata.component['bom-ref'])
bom.components = bom.components.filter((component) => production.has(component['bom-ref']))
bom.dependencies = bom.dependencies
  .filter(({ ref }) => production.has(ref))
  .map(({ ref, dependsOn }) => ({ ref, dependsOn: dependsOn.filter((on) => production.has(on)) }))
// npm names it after the folder it happens to be in.
bom.metadata.component.name = (json('package.json') as { name: string }).name

mkdirSync(dirname(file), { recursive: true })
writeFileSync(file, `${JSON.stringify(bom, null, 2)}\n`)
console.log(`${bom.components.length} packages in ${file}`)
