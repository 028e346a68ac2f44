/**
 * One table of events into one file of the archive: NDJSON, zstd, with a manifest beside it that says how many rows it has
 * and the SHA-256 of the file. A file under its final name is whole and on disk; a half-written one has another name.
 */

import { createHash } from 'node:crypto'
import { createReadStream, createWriteStream } from 'node:fs'
import { mkdir, open, rename, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { Transform } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { createZstdCompress, createZstdDecompress } from 'node:zlib'
import type pg from 'pg'
import { MillraceError } from '../errors.ts'

export type Archive = { file: string; rows: number; bytes: number; sha256: string }

const ROWS_PER_FETCH = 2_000

/**
 * A line is the row as JSON, by column. `data` is there only where the column is not null: an event's data may itself be
 * null.
 */
const READ = (table: string) => `
  declare archived no scroll cursor for
  select (to_jsonb(e) - 'data' || case when data is null then '{}' else jsonb_build_object('data', data) end)::text as line
  from ${table} e order by published_at, stream_seq, stream_place`

/**
 * Writes the archive and reads it again to be sure.
 * @param table  whose rows change no more
 * @param name   of the file, without its ending
 * @throws MillraceError `conflict` where the file read back is not what was written
 */
export async function archiveTable(
  client: pg.ClientBase,
  { table, dir, name, about }: { table: string; dir: string; name: string; about: object },
  signal: AbortSignal,
): Promise<Archive> {
  await mkdir(dir, { recursive: true })
  const file = `${name}.ndjson.zst`
  const path = join(dir, file)
  const written = digest()
  let rows = 0
  await client.query('begin isolation level repeatable read read only')
  try {
    await client.query(`set local timezone to 'UTC'`)
    await client.query(READ(table))
    await pipeline(
      async function* () {
        for (;;) {
          const page = await client.query<{ line: string }>(`fetch ${ROWS_PER_FETCH} from archived`)
          if (page.rows.length === 0) return
          rows += page.rows.length
          yield `${page.rows.map(({ line }) => line).join('\n')}\n`
        }
      },
      createZstdCompress(),
      written.tap,
      createWriteStream(`${path}.part`, { flush: true }),
      { signal },
    )
  } finally {
    await client.query('rollback')
  }
  const archive = { file, rows, bytes: (await stat(`${path}.part`)).size, sha256: written.hex() }
  await verify(`${path}.part`, archive, signal)
  await rename(`${path}.part`, path)
  const manifest = JSON.stringify({ ...archive, ...about }, null, 2)
  await writeFile(join(dir, `${name}.json.part`), `${manifest}\n`, { flush: true })
  await rename(join(dir, `${name}.json.part`), join(dir, `${name}.json`))
  await syncFolder(dir)
  return archive
}

async function verify(path: string, { rows, sha256 }: Archive, signal: AbortSignal): Promise<void> {
  const read = digest()
  let lines = 0
  await pipeline(
    createReadStream(path),
    read.tap,
    createZstdDecompress(),
    async (chunks) => {
      for await (const chunk of chunks) for (const byte of chunk as Buffer) if (byte === 0x0a) lines++
    },
    { signal },
  )
  if (lines !== rows || read.hex() !== sha256)
    throw new MillraceError(
      'conflict',
      `${path} holds ${lines} rows where ${rows} were written, or other bytes: is the disk of ARCHIVE_DIR sound?`,
    )
}

/** The SHA-256 of what passes. */
function digest() {
  const hash = createHash('sha256')
  let hex: string | undefined
  const tap = new Transform({
    transform(chunk, _, next) {
      hash.update(chunk)
      next(null, chunk)
    },
  })
  return { tap, hex: () => (hex ??= hash.digest('hex')) }
}

/** A rename is on disk only when its folder is. */
async function syncFolder(dir: string): Promise<void> {
  const folder = await open(dir, 'r')
  try {
    await folder.sync()
  } finally {
    await folder.close()
  }
}
