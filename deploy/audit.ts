/**
 * Asks the registry's advisories about every package that runs in production. Ends with 0 when none is known to be
 * vulnerable, 1 when one is, and 2 when nobody could be asked, which is no clean bill.
 * Usage: node deploy/audit.ts [arguments for npm audit]
 */

import { spawnSync } from 'node:child_process'

const { stdout, stderr, error } = spawnSync('npm', ['audit', '--omit', 'dev', '--json', ...process.argv.slice(2)], {
  encoding: 'utf8',
  maxBuffer: 64 * 1024 * 1024,
})

type Report = {
  message?: string
  error?: { summary: string }
  metadata?: { vulnerabilities: Record<string, number>; dependencies: { prod: number } }
  vulnerabilities?: Record<
    string,
    { severity: string; range: string; via: (string | { title: string; url: string })[] }
  >
}

function read(): Report {
  try {
    return JSON.parse(stdout) as Report
  } catch {
    return { message: error?.message ?? (stderr || stdout) }
  }
}

const { message, error: failure, metadata, vulnerabilities = {} } = read()
if (metadata === undefined) {
  console.log(
    `NOT AUDITED: the registry's advisories could not be asked: ${(message ?? failure?.summary ?? stderr).trim()}`,
  )
  process.exit(2)
}
for (const [name, { severity, range, via }] of Object.entries(vulnerabilities))
  for (const cause of via)
    console.log(
      `${severity}: ${name} ${range}: ${typeof cause === 'string' ? `by ${cause}` : `${cause.title} ${cause.url}`}`,
    )
const { total = 0 } = metadata.vulnerabilities
console.log(`${metadata.dependencies.prod} packages asked about, ${total} vulnerable`)
process.exit(total === 0 ? 0 : 1)
