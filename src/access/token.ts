/**
 * A key as its holder has it: `mr_<prefix>_<secret>`. The prefix is public and finds the row; the secret is 256 random
 * bits, of which only the SHA-256 is kept. A fast hash is right here: slow ones (scrypt, Argon2) protect what people choose,
 * by making guesses dear, and no guess finds one of 2^256.
 */

import { hash, randomBytes } from 'node:crypto'

const PREFIX_BYTES = 6
const SECRET_BYTES = 32
const PREFIX_CHARS = 2 * PREFIX_BYTES
const SECRET_CHARS = 43
const SCHEME = 'Bearer '
const PREFIX_AT = SCHEME.length + 'mr_'.length
const SECRET_AT = PREFIX_AT + PREFIX_CHARS + 1
const HEADER_CHARS = SECRET_AT + SECRET_CHARS

/** A new key: what its holder gets, and what is kept of it. */
export function makeToken(): { token: string; prefix: string; secretHash: string } {
  const prefix = randomBytes(PREFIX_BYTES).toString('hex')
  const secret = randomBytes(SECRET_BYTES).toString('base64url')
  return { token: `mr_${prefix}_${secret}`, prefix, secretHash: hashSecret(secret) }
}

/** The parts of an Authorization header by their places, which costs a tenth of a pattern; undefined where it is no key. */
export function readAuthorization(header: string): { prefix: string; secret: string } | undefined {
  if (header.length !== HEADER_CHARS || header.slice(0, SCHEME.length).toLowerCase() !== 'bearer ') return undefined
  return { prefix: header.slice(PREFIX_AT, SECRET_AT - 1), secret: header.slice(SECRET_AT) }
}

/** 64 hexadecimal digits: three times as fast as the same in a buffer (measured: 0.3 us). */
export const hashSecret = (secret: string): string => hash('sha256', secret, 'hex')
