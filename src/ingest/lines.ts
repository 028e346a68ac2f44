/** NDJSON: a stream of bytes into lines, of which none is held that is longer than an event may be. */

const NEWLINE = 10
const CARRIAGE_RETURN = 13

export type LineSplitter = {
  /** The lines that this chunk completes, without blank ones; null stands for a line that is too long. */
  push: (chunk: Buffer) => (Buffer | null)[]
  /** The last line when no newline ends it. */
  end: () => Buffer | null | undefined
}

export function createLineSplitter(lineBytesMax: number): LineSplitter {
  let parts: Buffer[] = []
  let bytes = 0
  let tooLong = false

  function keep(piece: Buffer): void {
    bytes += piece.length
    if (bytes > lineBytesMax) {
      tooLong = true
      parts = []
    } else if (!tooLong && piece.length > 0) parts.push(piece)
  }

  function finish(): Buffer | null | undefined {
    const line = tooLong ? null : parts.length === 1 ? parts[0]! : Buffer.concat(parts)
    parts = []
    bytes = 0
    tooLong = false
    return line === null || !isBlank(line) ? line : undefined
  }

  function push(chunk: Buffer): (Buffer | null)[] {
    const lines: (Buffer | null)[] = []
    let from = 0
    for (let at = chunk.indexOf(NEWLINE); at !== -1; at = chunk.indexOf(NEWLINE, from)) {
      keep(chunk.subarray(from, at))
      const line = finish()
      if (line !== undefined) lines.push(line)
      from = at + 1
    }
    keep(chunk.subarray(from))
    return lines
  }

  return { push, end: finish }
}

/** Space, tab and carriage return only. */
function isBlank(line: Buffer): boolean {
  for (const byte of line) if (byte !== 32 && byte !== 9 && byte !== CARRIAGE_RETURN) return false
  return true
}
