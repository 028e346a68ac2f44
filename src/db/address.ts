/**
 * What DATABASE_URL may say of TLS. node-postgres takes libpq's words with meanings that depend on its version, passes
 * over a word it does not know, and ends the process over some (`ssl=false`, a file that is not there). So they are
 * checked here, and leave one of three: no TLS, a verified server, or `no-verify` in so many words.
 */

import { MillraceError } from '../errors.ts'
import { checkPem, isLocal } from '../tls.ts'

const SSL_PARAMETERS = ['sslmode', 'sslrootcert', 'sslcert', 'sslkey', 'sslnegotiation', 'sslpassword']
const SSL_MODES = ['disable', 'require', 'verify-ca', 'verify-full', 'no-verify']

function parse(url: string): URL {
  try {
    // An empty host, which is libpq's socket, is none to URL.
    return new URL(url.startsWith('/') ? `postgres://localhost${url}` : url.replace('@/', '@localhost/'))
  } catch {
    // The error would quote the address, which may hold a password.
    throw new MillraceError(
      'invalid_config',
      'DATABASE_URL: give postgres://user:password@host:port/database, special characters in them percent-encoded',
    )
  }
}

/**
 * The address for node-postgres, and so for Drizzle and pg-boss. `require` and `verify-ca` become `verify-full`, which
 * demands more; what could let a connection be read by others unasked, `prefer` and `allow`, is refused.
 * @throws MillraceError `invalid_config` for an address that cannot be used
 */
export function connectionString(url: string): string {
  const { searchParams } = parse(url)
  for (const name of searchParams.keys())
    if (/ssl|tls/i.test(name) && !SSL_PARAMETERS.includes(name))
      throw new MillraceError(
        'invalid_config',
        `DATABASE_URL: ${name} is not understood: TLS is asked for by sslmode=verify-full, with sslrootcert=FILE for an authority of your own`,
      )
  const mode = searchParams.get('sslmode')
  if (mode !== null && !SSL_MODES.includes(mode))
    throw new MillraceError(
      'invalid_config',
      `DATABASE_URL: sslmode=${mode} could mean no TLS at all: give verify-full, or disable to do without`,
    )
  const { sslrootcert, sslcert, sslkey } = Object.fromEntries(searchParams)
  if (sslrootcert && sslrootcert !== 'system') checkPem('sslrootcert in DATABASE_URL', sslrootcert, 'certificate')
  if (sslcert) checkPem('sslcert in DATABASE_URL', sslcert, 'certificate')
  if (sslkey) checkPem('sslkey in DATABASE_URL', sslkey, 'private key')
  return (
    url
      .replace(/([?&]sslmode=)(require|verify-ca)(?=&|$)/, '$1verify-full')
      // Node's own authorities are used where none is named; libpq calls them so.
      .replace(/([?&])sslrootcert=system(&|$)/, '$1')
  )
}

/** Where the database is, without anything secret. */
function databaseOf(url: string): string {
  const { host, pathname, searchParams } = parse(url)
  return `${searchParams.get('host') ?? host}${pathname}`
}

/** A sentence where events would travel readable by others, or to an impostor; undefined where they do not. */
export function databaseInsecurity(url: string): string | undefined {
  const { hostname, searchParams } = parse(url)
  if (isLocal((searchParams.get('host') ?? hostname).replace(/^\[(.*)\]$/, '$1'))) return undefined
  const mode = searchParams.get('sslmode')
  if (mode === 'no-verify')
    return `Postgres at ${databaseOf(url)} is not verified: anything that answers there is believed; give sslmode=verify-full`
  if (
    mode === 'disable' ||
    !['sslmode', 'sslrootcert', 'sslcert', 'sslnegotiation'].some((name) => searchParams.has(name))
  )
    return `Events travel unencrypted to Postgres at ${databaseOf(url)}: give sslmode=verify-full in DATABASE_URL`
  return undefined
}
