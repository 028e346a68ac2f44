/** Certificates of an authority made for one test, by openssl. */

import { execFileSync } from 'node:child_process'
import { chownSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

const KEY = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '2']
/** Postgres runs as `nobody` where the test is root, and wants its key readable by itself alone. */
const NOBODY = 65_534

const openssl = (...args: string[]) => execFileSync('openssl', args, { stdio: ['ignore', 'ignore', 'pipe'] })

export type Authority = {
  /** Its own certificate. */
  file: string
  /** Signs a certificate for these names, such as `DNS:localhost,IP:127.0.0.1`. */
  sign: (name: string, names: string) => { cert: string; key: string }
}

export function createAuthority(dir: string, name: string): Authority {
  const path = (file: string) => join(dir, `${name}-${file}`)
  openssl('req', '-x509', ...KEY, '-keyout', path('ca.key'), '-out', path('ca.crt'), '-subj', `/CN=${name}`)
  const sign = (leaf: string, names: string) => {
    const [cert, key, request, extensions] = ['crt', 'key', 'csr', 'ext'].map((end) => path(`${leaf}.${end}`)) as [
      string,
      string,
      string,
      string,
    ]
    openssl('req', ...KEY.slice(0, -2), '-keyout', key, '-out', request, '-subj', `/CN=${leaf}`)
    writeFileSync(extensions, `subjectAltName=${names}`)
    const signing = ['-CA', path('ca.crt'), '-CAkey', path('ca.key'), '-CAcreateserial', '-extfile', extensions]
    openssl('x509', '-req', '-in', request, '-out', cert, '-days', '2', ...signing)
    if (process.getuid?.() === 0) chownSync(key, NOBODY, NOBODY)
    return { cert, key }
  }
  return { file: path('ca.crt'), sign }
}
