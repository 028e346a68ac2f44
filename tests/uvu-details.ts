/**
 * Loaded before every test file. uvu 0.5 prints `error.details`, which it takes for text; a MillraceError has an object
 * there, and a thrown value may be no Error at all: the reporter would die of either and hide what failed.
 */

import { registerHooks } from 'node:module'

registerHooks({
  load(url, context, next) {
    const loaded = next(url, context)
    if (!url.endsWith('/uvu/dist/index.mjs')) return loaded
    const source = String(loaded.source)
    const mended = source.replace(
      "function format(name, err, suite = '') {",
      `$&
        if (!(err instanceof Error)) err = new Error('Thrown: ' + JSON.stringify(err));
        if (typeof err.details === 'object') err = Object.assign(Object.create(err), { details: JSON.stringify(err.details, null, 2) });`,
    )
    if (mended === source) throw new Error('tests/uvu-details.ts does not fit this version of uvu')
    return { ...loaded, source: mended }
  },
})
