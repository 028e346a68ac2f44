/**
 * Request bodies: decompressed, counted on both sides of the decompression, and never waited for without end.
 * Reading stops at the first byte over a limit, and the connection stays fit for the answer that says so.
 */

import type { IncomingMessage } from 'node:http'
import type { Transform } from 'node:stream'
import { constants, createBrotliDecompress, createGunzip, createZstdDecompress } from 'node:zlib'
import type { Config } from '../config.ts'
import { MillraceError } from '../errors.ts'

type BodyConfig = Pick<Config, 'BODY_BYTES_MAX' | 'BODY_DECODED_BYTES_MAX' | 'BODY_IDLE_MS'>

/** RFC 8878 asks decoders for 8 MiB of window and no more: what a frame claims is memory taken before its first byte. */
const ZSTD_WINDOW_LOG_MAX = 23

/** The bytes of bodies that are held whole, over all requests of the process. */
export type BodyMemory = {
  /** @throws MillraceError `overloaded` beyond BODIES_HELD_BYTES_MAX */
  take: (bytes: number) => void
  give: (bytes: number) => void
}

export function createBodyMemory({ BODIES_HELD_BYTES_MAX }: Pick<Config, 'BODIES_HELD_BYTES_MAX'>): BodyMemory {
  let held = 0
  return {
    take: (bytes) => {
      if (held + bytes > BODIES_HELD_BYTES_MAX)
        throw new MillraceError('overloaded', 'Too many large bodies at once; retry later, or send NDJSON')
      held += bytes
    },
    give: (bytes) => {
      held -= bytes
    },
  }
}

/** A refusal that names the limit and its value. */
export const tooLarge = (limit: string, bytesOrEventsMax: number, sentence: string): MillraceError =>
  new MillraceError('too_large', `${sentence} (${limit}=${bytesOrEventsMax})`, {
    details: { limit, max: bytesOrEventsMax },
  })

type WholeLimits = {
  bytesMax: number
  /** The name under which a refusal reports `bytesMax`. */
  limit: string
  /** Is charged for the buffer; the caller gives it back. */
  memory: BodyMemory
}

/**
 * Reads a body to its end into one buffer.
 * @throws MillraceError `too_large`, `overloaded`, `request_timeout`, `invalid_request`, `unsupported_media_type`
 */
export async function readWhole(req: IncomingMessage, limits: WholeLimits, config: BodyConfig): Promise<Buffer> {
  refuseByLength(req, config)
  const chunks: Buffer[] = []
  let bytes = 0
  const keep = (chunk: Buffer) => {
    bytes += chunk.length
    if (bytes > limits.bytesMax)
      throw tooLarge(limits.limit, limits.bytesMax, 'The body is too large to be parsed whole; NDJSON is streamed')
    limits.memory.take(chunk.length)
    chunks.push(chunk)
  }
  try {
    if (req.headers['content-encoding'] === undefined) await everyChunk(req, keep, config)
    else for await (const chunk of decodedChunks(req, config)) keep(chunk)
  } catch (error) {
    for (const chunk of chunks) limits.memory.give(chunk.length)
    throw error
  }
  return chunks.length === 1 ? chunks[0]! : Buffer.concat(chunks, bytes)
}

/** The way of most requests, a small body as it is: bare listeners cost a third of async iteration. */
function everyChunk(req: IncomingMessage, keep: (chunk: Buffer) => void, config: BodyConfig): Promise<void> {
  return new Promise((resolve, reject) => {
    const idle = setTimeout(() => end(idleTooLong(config)), config.BODY_IDLE_MS)
    let sent = 0
    const end = (error?: unknown) => {
      clearTimeout(idle)
      req.off('data', onData).off('end', end).off('close', onClose)
      if (error === undefined) return resolve()
      discardRest(req)
      reject(error)
    }
    const onData = (chunk: Buffer) => {
      idle.refresh()
      sent += chunk.length
      try {
        if (sent > config.BODY_BYTES_MAX) throw bodyTooLarge(config)
        keep(chunk)
      } catch (error) {
        end(error)
      }
    }
    const onClose = () => end(brokeOff())
    req.on('data', onData).on('end', end).on('close', onClose)
    req.once('error', onClose)
  })
}

/** The decoded body, chunk by chunk; nothing is read ahead of the consumer, so the socket feels its pace. */
export async function* decodedChunks(req: IncomingMessage, config: BodyConfig): AsyncGenerator<Buffer> {
  refuseByLength(req, config)
  const decoder = decoderOf(req.headers['content-encoding'])
  let bytes = 0
  for await (const chunk of decoder === undefined ? sentChunks(req, config) : throughDecoder(req, decoder, config)) {
    bytes += chunk.length
    if (bytes > config.BODY_DECODED_BYTES_MAX)
      throw tooLarge('BODY_DECODED_BYTES_MAX', config.BODY_DECODED_BYTES_MAX, 'The decompressed body is too large')
    yield chunk
  }
}

const bodyTooLarge = ({ BODY_BYTES_MAX }: BodyConfig) =>
  tooLarge('BODY_BYTES_MAX', BODY_BYTES_MAX, 'The body is too large')

function refuseByLength(req: IncomingMessage, config: BodyConfig): void {
  if (Number(req.headers['content-length'] ?? 0) > config.BODY_BYTES_MAX) throw bodyTooLarge(config)
}

const idleTooLong = ({ BODY_IDLE_MS }: BodyConfig) =>
  new MillraceError('request_timeout', `No byte of the body came for ${BODY_IDLE_MS} ms`)

const brokeOff = (cause?: unknown) => new MillraceError('invalid_request', 'The body broke off', { cause })

function decoderOf(encoding: string | undefined): Transform | undefined {
  switch (encoding?.trim().toLowerCase()) {
    case undefined:
    case '':
    case 'identity':
      return undefined
    case 'gzip':
    case 'x-gzip':
      return createGunzip()
    case 'br':
      return createBrotliDecompress()
    case 'zstd':
      return createZstdDecompress({ params: { [constants.ZSTD_d_windowLogMax]: ZSTD_WINDOW_LOG_MAX } })
    default:
      throw new MillraceError('unsupported_media_type', `Content-Encoding is gzip, br or zstd, not ${encoding}`)
  }
}

async function* sentChunks(req: IncomingMessage, config: BodyConfig): AsyncGenerator<Buffer> {
  // Ending this loop early must not destroy the request: its socket carries the answer.
  const chunks = req.iterator({ destroyOnReturn: false })
  let late: PromiseWithResolvers<never> | undefined
  const idle = setTimeout(() => late?.reject(idleTooLong(config)), config.BODY_IDLE_MS)
  let sent = 0
  try {
    for (;;) {
      late = Promise.withResolvers<never>()
      idle.refresh()
      const next = await Promise.race([chunks.next(), late.promise]).catch((error) => {
        if (error instanceof MillraceError) throw error
        throw brokeOff(error)
      })
      // The pace of our own work is no fault of the sender.
      late = undefined
      if (next.done) return
      sent += next.value.length
      if (sent > config.BODY_BYTES_MAX) throw bodyTooLarge(config)
      yield next.value
    }
  } finally {
    clearTimeout(idle)
    // Not awaited: where no byte comes it does not return.
    void chunks.return?.().then(() => setImmediate(discardRest, req))
  }
}

/**
 * Reads the rest of a refused body away: Node does so only for bodies that nobody began to read, and a client that is
 * not read from neither hears the answer nor gets to its next request. The server's REQUEST_MS bounds it.
 * After an iteration it must wait a turn: the stream learns only then that nobody listens any more.
 */
const discardRest = (req: IncomingMessage): void => void req.resume()

async function* throughDecoder(req: IncomingMessage, decoder: Transform, config: BodyConfig): AsyncGenerator<Buffer> {
  let refusal: unknown
  const feeding = (async () => {
    for await (const chunk of sentChunks(req, config)) {
      if (decoder.destroyed) return
      if (!decoder.write(chunk)) await drained(decoder)
    }
    decoder.end()
  })().catch((error) => {
    refusal = error
    decoder.destroy(error)
  })
  try {
    yield* decoder
  } catch (error) {
    throw refusal ?? new MillraceError('invalid_request', `The body does not decompress: ${(error as Error).message}`)
  } finally {
    decoder.destroy()
    await feeding
  }
}

const drained = (stream: Transform): Promise<void> =>
  new Promise((resolve) => {
    const go = () => {
      stream.off('drain', go).off('close', go)
      resolve()
    }
    stream.on('drain', go).on('close', go)
  })
