/** What NATS and Postgres share of TLS: files checked before their use, and a refused handshake in words to act on. */

import { createPrivateKey, X509Certificate } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { isIP } from 'node:net'
import { MillraceError } from './errors.ts'

/** @throws MillraceError `invalid_config` where a file that `name` gives cannot be read or holds no PEM of that kind */
export function checkPem(name: string, path: string, kind: 'certificate' | 'private key'): void {
  try {
    const pem = readFileSync(path)
    if (kind === 'certificate') new X509Certificate(pem)
    else createPrivateKey(pem)
  } catch (error) {
    throw new MillraceError('invalid_config', `${name}: ${path} is no ${kind} in PEM that can be read`, {
      cause: error,
    })
  }
}

/** Node's and OpenSSL's codes, by what is to be done about them. */
const REFUSALS: [pattern: RegExp, says: (names: TlsNames) => string][] = [
  [
    /^(UNABLE_TO_(VERIFY_LEAF_SIGNATURE|GET_ISSUER_CERT(_LOCALLY)?)|(SELF_SIGNED_CERT_IN_CHAIN|DEPTH_ZERO_SELF_SIGNED_CERT)|CERT_SIGNATURE_FAILURE)$/,
    ({ ca }) =>
      `its certificate is not signed by an authority trusted here: set ${ca} to the certificate of the authority that signed it`,
  ],
  [/^ERR_TLS_CERT_ALTNAME_INVALID$/, () => 'its certificate is for another name: connect by a name that it holds'],
  [/^CERT_(HAS_EXPIRED|NOT_YET_VALID)$/, () => 'its certificate is not valid now: renew it, or mend a clock'],
  [
    /ALERT_(CERTIFICATE_REQUIRED|UNKNOWN_CA|BAD_CERTIFICATE|HANDSHAKE_FAILURE|CERTIFICATE_UNKNOWN|CERTIFICATE_EXPIRED)/,
    ({ cert }) => `it takes only clients with a certificate that it trusts: set ${cert} to one, with its key`,
  ],
]

type TlsNames = { ca: string; cert: string }

/**
 * Why a TLS handshake failed, and what to do; undefined for any other error.
 * @param names  what sets the authority's certificate, and one's own
 */
export function explainHandshake(thrown: unknown, names: TlsNames): string | undefined {
  for (let error = thrown; error instanceof Error; error = error.cause) {
    if (/server does not support ('tls'|SSL connections)/.test(error.message))
      return 'it does not speak TLS, and TLS is asked for: turn TLS on there'
    const code = 'code' in error ? String(error.code) : ''
    const known = REFUSALS.find(([pattern]) => pattern.test(code))
    if (known !== undefined) return known[1](names)
  }
  return undefined
}

/** Whether what is sent there stays on this machine. */
export const isLocal = (host: string): boolean =>
  host === '' ||
  host === 'localhost' ||
  host === '::1' ||
  host.startsWith('/') ||
  (isIP(host) === 4 && /^127\./.test(host))
