/** Reads a PNG's size from its first bytes (PNG specification, 11.2.1: IHDR). */

import { nonRetryable } from 'millrace'

export type Picture = { name: string; url: string }
export type Size = { width: number; height: number }

const SIGNATURE = '89504e470d0a1a0a'
const IHDR_END = 24

export async function measure(picture: Picture, signal: AbortSignal): Promise<Size> {
  const answer = await fetch(picture.url, { headers: { range: `bytes=0-${IHDR_END - 1}` }, signal })
  if (answer.status === 404) throw nonRetryable(`there is no ${picture.name}`)
  if (!answer.ok) throw new Error(`${picture.name} answered ${answer.status}`)
  const bytes = Buffer.from(await answer.arrayBuffer())
  if (bytes.length < IHDR_END || bytes.toString('hex', 0, 8) !== SIGNATURE)
    throw nonRetryable(`${picture.name} is no PNG`)
  return { width: bytes.readUInt32BE(16), height: bytes.readUInt32BE(20) }
}
