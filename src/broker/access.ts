/**
 * Where NATS is, how the server is told from an impostor, and how this process shows who it is. Files are read at every
 * connection, so a certificate or credentials may be replaced under a running process.
 */

import { readFileSync } from 'node:fs'
import { isIP } from 'node:net'
import { checkServerIdentity } from 'node:tls'
import { type ConnectionOptions, credsAuthenticator, nkeyAuthenticator } from 'nats'
import type { Config } from '../config.ts'
import { MillraceError } from '../errors.ts'
import { checkPem, explainHandshake, isLocal } from '../tls.ts'

type Files = 'NATS_CA_FILE' | 'NATS_CERT_FILE' | 'NATS_KEY_FILE' | 'NATS_CREDS_FILE' | 'NATS_NKEY_FILE'
export type NatsAddress = Pick<Config, 'NATS_URL'> & Partial<Pick<Config, Files>>

type Server = { tls: boolean; hostname: string; port: string; user: string; password: string }

/** @throws MillraceError `invalid_config`, without the secrets in it */
function parseServers({ NATS_URL }: NatsAddress): Server[] {
  return NATS_URL.split(',').map((text) => {
    const address = text.trim()
    try {
      const url = new URL(address.includes('://') ? address : `nats://${address}`)
      if (!['nats:', 'tls:'].includes(url.protocol) || url.hostname === '') throw new Error('no NATS address')
      return {
        tls: url.protocol === 'tls:',
        hostname: url.hostname.replace(/^\[(.*)\]$/, '$1'),
        port: url.port || '4222',
        user: decodeURIComponent(url.username),
        password: decodeURIComponent(url.password),
      }
    } catch {
      // The error would quote the address, which may hold a password.
      throw new MillraceError(
        'invalid_config',
        'NATS_URL: give nats://host:port or tls://host:port, comma-separated; user and password before an @, special characters in them percent-encoded',
      )
    }
  })
}

const hostPort = ({ hostname, port }: Server) => `${isIP(hostname) === 6 ? `[${hostname}]` : hostname}:${port}`

/** The servers, without anything secret. */
const serversOf = (address: NatsAddress): string => parseServers(address).map(hostPort).join(', ')

/**
 * The client's options for an address. TLS is demanded, and the server's name and certificate checked, where an address
 * begins with tls:// or a certificate is given; a server that offers no TLS is then refused.
 * @throws MillraceError `invalid_config` for addresses and files that cannot be used
 */
export function accessOptions(address: NatsAddress): ConnectionOptions {
  const servers = parseServers(address)
  return { servers: servers.map(hostPort), tls: tlsOptions(address, servers), ...credentials(address, servers) }
}

function tlsOptions(address: NatsAddress, servers: Server[]): ConnectionOptions['tls'] {
  const { NATS_CA_FILE: caFile, NATS_CERT_FILE: certFile, NATS_KEY_FILE: keyFile } = address
  if (Boolean(certFile) !== Boolean(keyFile))
    throw new MillraceError('invalid_config', 'NATS_CERT_FILE and NATS_KEY_FILE belong together: set both or neither')
  if (!caFile && !certFile && !servers.some(({ tls }) => tls)) return undefined
  if (caFile) checkPem('NATS_CA_FILE', caFile, 'certificate')
  if (certFile) checkPem('NATS_CERT_FILE', certFile, 'certificate')
  if (keyFile) checkPem('NATS_KEY_FILE', keyFile, 'private key')
  const hostnames = servers.map(({ hostname }) => hostname)
  const addresses = hostnames.filter((hostname) => isIP(hostname) !== 0)
  const files = { ...(caFile && { caFile }), ...(certFile && { certFile, keyFile }) }
  if (addresses.length === 0) return files
  return {
    ...files,
    // A server dialled by its IP address has no name for Node, which then takes any certificate for localhost.
    checkServerIdentity: (name: string, certificate: Parameters<typeof checkServerIdentity>[1]) => {
      if (name !== 'localhost' || hostnames.includes(name)) return checkServerIdentity(name, certificate)
      const errors = addresses.map((ip) => checkServerIdentity(ip, certificate))
      return errors.includes(undefined) ? undefined : errors[0]
    },
  } as ConnectionOptions['tls']
}

function credentials(address: NatsAddress, servers: Server[]): Partial<ConnectionOptions> {
  const { NATS_CREDS_FILE: creds, NATS_NKEY_FILE: nkey } = address
  const { user, password } = servers.find((server) => server.user !== '') ?? { user: '', password: '' }
  const given = [creds && 'NATS_CREDS_FILE', nkey && 'NATS_NKEY_FILE', user && 'a user or token in NATS_URL']
  const named = given.filter(Boolean)
  if (named.length > 1)
    throw new MillraceError('invalid_config', `There is one way to sign in at a time: keep one of ${named.join(', ')}`)
  if (creds) return { authenticator: credsAuthenticator(read('NATS_CREDS_FILE', creds)) }
  if (nkey) {
    const seed = read('NATS_NKEY_FILE', nkey)
    return { authenticator: nkeyAuthenticator(() => seedIn(seed())) }
  }
  if (user === '') return {}
  return password === '' ? { token: user } : { user, pass: password }
}

/** Reads a file now, to say at once what is wrong, and again whenever it is called. */
function read(name: string, path: string): () => Uint8Array {
  const contents = () => readFileSync(path)
  try {
    contents()
  } catch (error) {
    throw new MillraceError('invalid_config', `${name}: ${path} cannot be read`, { cause: error })
  }
  return contents
}

/** The seed in a file as `nk` writes it, among comments and empty lines. */
function seedIn(file: Uint8Array): Uint8Array {
  const seed = /^\s*(SU[A-Z2-7]{50,})\s*$/m.exec(Buffer.from(file).toString())?.[1]
  if (seed === undefined) throw new Error('no user seed (SU...) in NATS_NKEY_FILE')
  return Buffer.from(seed)
}

/** A failed connection, said without its secrets; `unavailable` where waiting may help, `invalid_config` where not. */
export function connectionRefused(error: unknown, address: NatsAddress): MillraceError {
  const servers = serversOf(address)
  const handshake = explainHandshake(error, { ca: 'NATS_CA_FILE', cert: 'NATS_CERT_FILE' })
  if (handshake !== undefined)
    return new MillraceError('invalid_config', `NATS at ${servers} is not to be trusted: ${handshake}`, {
      cause: error,
    })
  const { name, message } = error as Error
  if (/^(Authorization|UserAuthenticationExpired)Error$/.test(name))
    return new MillraceError(
      'invalid_config',
      `NATS at ${servers} does not know this process: check NATS_CREDS_FILE, NATS_NKEY_FILE, or the user in NATS_URL`,
      { cause: error },
    )
  if (/unable to parse credentials|no user seed|invalid.*(seed|checksum|prefix|encod)/i.test(message))
    return new MillraceError('invalid_config', 'NATS_CREDS_FILE or NATS_NKEY_FILE holds no credentials', {
      cause: error,
    })
  // A server may drop a client without a certificate before its reason is read.
  const dropped = /ECONNRESET|disconnected/.test(message) && !address.NATS_CERT_FILE
  const hint = dropped ? ', or NATS_CERT_FILE if it asks for certificates' : ''
  return new MillraceError('unavailable', `No NATS server answers at ${servers}: start one, or set NATS_URL${hint}`, {
    cause: error,
  })
}

/** A sentence where events would travel readable by others; undefined where they do not. */
export function natsInsecurity(address: NatsAddress): string | undefined {
  const servers = parseServers(address)
  if (tlsOptions(address, servers) !== undefined || servers.every(({ hostname }) => isLocal(hostname))) return undefined
  return `Events travel unencrypted to NATS at ${serversOf(address)}: give its address as tls://`
}
