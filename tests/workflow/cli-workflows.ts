/** What the test of the command line runs, as a user's module. */

import { workflow } from '../../src/index.ts'

export const greet = workflow('greet', async (run, name: string) => {
  const text = await run.step('compose', () => `Hello ${name}`)
  const signed = await run.signal('sign')
  return `${text}, ${signed}`
})

export const breaks = workflow('breaks', async (run) => {
  await run.step(
    'break',
    () => {
      throw new Error('out of order')
    },
    { retry: { attempts: 1 } },
  )
})
