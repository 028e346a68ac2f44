/**
 * A batch of pictures: one child run for each, side by side, and one summary. A picture that cannot be read spoils
 * nothing but its own line.
 */

import { MillraceError, workflow } from 'millrace'
import { measure, type Picture, type Size } from './pictures.ts'

type Batch = { batchId: string; pictures: Picture[] }
type Line = { name: string; size: Size } | { name: string; error: string }

/** A child has a journal, retries and a result of its own, and runs on whichever worker has room. */
export const measurePicture = workflow(
  'measure-picture',
  async (run, picture: Picture): Promise<Size> =>
    run.step('measure', ({ signal }) => measure(picture, signal), { timeout: '30s', retry: { first: '100ms' } }),
)

export const measureBatch = workflow(
  'measure-batch',
  { on: { event: 'pictures.uploaded', key: (event) => event.data.batchId } },
  async (run, { batchId, pictures }: Batch) => {
    const lines = await Promise.all(
      pictures.map(async (picture): Promise<Line> => {
        try {
          return { name: picture.name, size: await run.child(measurePicture, picture) }
        } catch (error) {
          if (!(error instanceof MillraceError && error.code === 'run_failed')) throw error
          return { name: picture.name, error: error.message }
        }
      }),
    )
    const good = lines.filter((line) => 'size' in line)
    return {
      batchId,
      measured: good.length,
      failed: lines.length - good.length,
      pixels: good.reduce((sum, { size }) => sum + size.width * size.height, 0),
      lines,
    }
  },
)
