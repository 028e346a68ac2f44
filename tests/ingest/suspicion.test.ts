import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { ALLOWANCE, createRecent, deadLettersAllowed, suspicious } from '../../src/ingest/suspicion.ts'

test('a few dead letters are always allowed, on an idle system too', () => {
  const idle = { committed: 0, refused: 0, dead: 0 }
  assert.is(deadLettersAllowed(idle, 1), 1)
  assert.is(deadLettersAllowed(idle, ALLOWANCE), ALLOWANCE)
  assert.is(deadLettersAllowed({ ...idle, dead: ALLOWANCE - 1 }, 3), 1)
})

test('beyond the allowance at most half of what is settled becomes dead letters', () => {
  assert.is(deadLettersAllowed({ committed: 0, refused: 0, dead: ALLOWANCE }, 100), 0)
  assert.is(deadLettersAllowed({ committed: 1_000, refused: 0, dead: ALLOWANCE }, 100), 100)
  assert.is(deadLettersAllowed({ committed: 1_000, refused: 1_500, dead: 950 }, 100), 50)
  assert.is(deadLettersAllowed({ committed: 1_000, refused: 1_500, dead: 2_000 }, 100), 0)
})

test('the system is suspected when more is refused than committed, and more than the allowance', () => {
  assert.is(suspicious({ committed: 0, refused: ALLOWANCE, dead: 0 }), false)
  assert.is(suspicious({ committed: 0, refused: ALLOWANCE + 1, dead: 0 }), true)
  assert.is(suspicious({ committed: 500, refused: 500, dead: 0 }), false)
  assert.is(suspicious({ committed: 500, refused: 501, dead: 0 }), true)
})

test('what is a minute old is forgotten, so that the suspicion ends by itself', () => {
  let now = 0
  const recent = createRecent(() => now)
  recent.add({ refused: 70, dead: 50 })
  now = 30_000
  recent.add({ committed: 5 })
  assert.equal(recent.sum(), { committed: 5, refused: 70, dead: 50 })
  now = 60_000
  assert.equal(recent.sum(), { committed: 5, refused: 0, dead: 0 })
  now = 90_000
  assert.equal(recent.sum(), { committed: 0, refused: 0, dead: 0 })
})

test.run()
