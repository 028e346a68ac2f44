import { sql } from 'drizzle-orm'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { findRun, type MillraceError, type Run, startRun, startRunIn, workflow } from '../../src/index.ts'
import { type InsertedEvents, matchEvents } from '../../src/workflow/events.ts'
import { setLimits } from '../../src/workflow/limits.ts'
import { publishWakes } from '../../src/workflow/wakes.ts'
import { startServers } from '../servers.ts'
import { codeOf, enginesOf, until } from './engine.ts'

const servers = await startServers()
const engines = enginesOf(servers)
test.after(async () => {
  await engines.stop()
  await servers.stop()
})

let seq = 0
/** What an ingest worker does with a batch. */
async function ingest(...events: { type: string; data?: unknown; subject?: string; source?: string; id?: string }[]) {
  const inserted: InsertedEvents[] = []
  const wakes = await servers.db.transaction(async (tx) => {
    for (const { type, data = {}, subject = null, source = 'test', id } of events) {
      const mine = ++seq
      const key = id ?? `e${mine}`
      const publishedMs = Date.now()
      const { rowCount } = await tx.execute(sql`
        with fresh as (
          insert into event_ids
          values (event_key('default', ${source}, ${key}), to_timestamp(${publishedMs}::float8 / 1000), ${mine})
          on conflict do nothing returning published_at, stream_seq)
        insert into events (source, id, type, subject, data, received_at, published_at, stream_seq, batch_id)
        select ${source}, ${key}, ${type}, ${subject}, ${JSON.stringify(data)}::jsonb, clock_timestamp(),
          published_at, stream_seq, gen_random_uuid() from fresh`)
      if (rowCount === 1) inserted.push({ seq: mine, publishedMs, place: 0, events: 1, traceparent: '' })
    }
    return matchEvents(tx, inserted)
  })
  publishWakes(servers.broker, wakes)
}

const runsOf = async (name: string) => {
  const { rows } = await servers.database.pool.query(
    'select run_id, id, status, output, error from workflow_runs where name = $1 order by run_id',
    [name],
  )
  return rows
}

test('signals reach a run in memory and a parked one, in order, each once', async () => {
  const collects = workflow('collects', async (run) => {
    const got: unknown[] = []
    while (got.length < 4) got.push(await run.signal('item'))
    return got
  })
  const engine = await engines.start([collects])
  const handle = await startRun(engine, collects, null)
  await handle.signal('item', 1)
  await handle.signal('item', { two: 2 })
  await until(async () => (await handle.status()).status === 'waiting')
  await handle.signal('other', 'ignored')
  await handle.signal('item', 3)
  await handle.signal('item')
  assert.equal(await handle.result(), [1, { two: 2 }, 3, null])
  assert.is(await codeOf(handle.signal('item', 5)), 'conflict')
  const { rows } = await servers.database.pool.query('select count(*)::int as n from workflow_signals')
  assert.is(rows[0].n, 0)
})

test('an event starts one run per key in its own transaction', async () => {
  const fulfils = workflow(
    'fulfils',
    { on: { event: 'order.placed', key: (e) => e.data.orderId } },
    async (run, order) => ({ id: run.id, order }),
  )
  const engine = await engines.start([fulfils])
  await ingest(
    { type: 'order.placed', data: { orderId: 'a1' } },
    { type: 'order.placed', data: { orderId: 'a1', again: true } },
    { type: 'order.placed', data: { orderId: 7 } },
    { type: 'order.placed', data: { noKey: true } },
    { type: 'other', data: { orderId: 'x' } },
  )
  await ingest({ type: 'order.placed', data: { orderId: 'a1' } })
  await until(async () => (await runsOf('fulfils')).filter((row) => row.status === 'completed').length === 2)
  const runs = await runsOf('fulfils')
  assert.is(runs.length, 2)
  const handle = await findRun(engine, 'fulfils:a1')
  assert.equal(await handle.result(), { id: 'fulfils:a1', order: { orderId: 'a1' } })
})

test('an event gives its run the key of the limits that it carries', async () => {
  let inside = 0
  let most = 0
  const bills = workflow(
    'bills',
    { queue: 'bills', on: { event: 'bill.due', concurrencyKey: (e) => e.data.customer } },
    async (run) => {
      await run.step('enter', () => {
        inside += 1
        most = Math.max(most, inside)
      })
      await run.sleep(20)
      await run.step('leave', () => {
        inside -= 1
      })
    },
  )
  await setLimits(servers.database.pool, 'bills', { perKey: 1 })
  await engines.start([bills])
  await engines.start([bills])
  const due = (customer?: unknown) => ({ type: 'bill.due', data: { customer } })
  await ingest(due('ann'), due('ann'), due('ann'))
  await until(async () => (await runsOf('bills')).filter((row) => row.status === 'completed').length === 3)
  assert.is(most, 1)
  await ingest(due(7), due(), due(''), due('x'.repeat(600)))
  const { rows } = await servers.database.pool.query(
    `select concurrency_key as key from workflow_runs where name = 'bills' order by key nulls first`,
  )
  assert.equal(
    rows.map(({ key }) => key),
    [null, null, '7', 'ann', 'ann', 'ann', 'x'.repeat(512)],
  )
})

test('a wait takes the event of its key, whichever comes first', async () => {
  const ships = workflow(
    'ships',
    { awaits: { 'parcel.shipped': (e) => e.data.orderId } },
    async (run, order: { orderId: string; late: boolean }) => {
      if (order.late) await run.signal('go')
      const first = await run.waitFor('parcel.shipped', { key: order.orderId, timeout: '1m' })
      const second = await run.waitFor('parcel.shipped', { key: order.orderId, timeout: '1m' })
      const third = await run.waitFor('parcel.shipped', { key: order.orderId, timeout: 50 })
      return [first?.data.n, second?.data.n, third]
    },
  )
  const engine = await engines.start([ships])
  const early = await startRun(engine, ships, { orderId: 'e', late: false })
  const late = await startRun(engine, ships, { orderId: 'l', late: true })
  await until(async () => (await servers.database.pool.query('select 1 from workflow_waits')).rowCount === 1)
  await ingest({ type: 'parcel.shipped', data: { orderId: 'e', n: 1 } })
  await ingest(
    { type: 'parcel.shipped', data: { orderId: 'l', n: 1 } },
    { type: 'parcel.shipped', data: { orderId: 'l', n: 2 } },
    { type: 'parcel.shipped', data: { orderId: 'e', n: 2 } },
    { type: 'parcel.shipped', data: { orderId: 'someone else', n: 3 } },
  )
  await late.signal('go')
  assert.equal(await early.result(), [1, 2, null])
  assert.equal(await late.result(), [1, 2, null])
  assert.is((await servers.database.pool.query('select 1 from workflow_waits')).rowCount, 0)
})

test('an undeclared type is matched by subject, events before its first wait included', async () => {
  const watches = workflow('watches', async (run) => {
    await run.signal('go')
    const event = await run.waitFor('job.done', { key: 'j1', timeout: '1m' })
    return event?.data
  })
  const engine = await engines.start([watches])
  const handle = await startRun(engine, watches, null)
  await ingest({ type: 'job.done', subject: 'j1', data: { ok: true } })
  await handle.signal('go')
  assert.equal(await handle.result(), { ok: true })
})

test('of a wait and an event that come together, none is lost', async () => {
  const meets = workflow('meets', { awaits: { ping: 'data.k' } }, async (run, k: string) => {
    const event = await run.waitFor('ping', { key: k })
    return event!.data.k
  })
  const engine = await engines.start([meets])
  await Promise.all(
    Array.from({ length: 150 }, async (_, n) => {
      const started = startRun(engine, meets, `m${n}`)
      const sent = (async () => {
        await new Promise((resolve) => setTimeout(resolve, (n % 15) * 2))
        await ingest({ type: 'ping', data: { k: `m${n}` } })
      })()
      const handle = await started
      await sent
      assert.is(await handle.result(), `m${n}`)
    }),
  )
})

test('children run in the same commit as their call is recorded, and fail into it', async () => {
  const doubles = workflow('doubles', async (run, n: number) => run.step('double', () => n * 2))
  const breaks = workflow('breaks', async () => {
    throw Object.assign(new Error('no stock'), { code: 'E_STOCK' })
  })
  const family = workflow('family', async (run) => {
    const all = await Promise.all([1, 2, 3].map((n) => run.child(doubles, n)))
    try {
      await run.child(breaks, null)
    } catch (error) {
      return { all, message: (error as MillraceError).message, code: (error as MillraceError).details.code }
    }
  })
  const engine = await engines.start([doubles, breaks, family])
  assert.equal(await (await startRun(engine, family, null)).result(), {
    all: [2, 4, 6],
    message: 'Child breaks failed: no stock',
    code: 'E_STOCK',
  })
})

test('a cancelled run cleans up, undoes newest first, and cancels its children', async () => {
  const ran: string[] = []
  const naps = workflow('naps-long', async (run) => run.sleep('1h'))
  const saga = workflow('saga', async (run) => {
    try {
      await run.step('reserve', () => ran.push('reserve'))
      run.compensate('release', () => ran.push('release'))
      await run.step('charge', () => ran.push('charge'))
      run.compensate('refund', () => ran.push('refund'))
      await Promise.all([run.sleep('1d'), run.child(naps, null)])
    } finally {
      await run.step('clean', () => ran.push('clean'))
    }
  })
  const engine = await engines.start([saga, naps])
  const handle = await startRun(engine, saga, null, { id: 'saga-1' })
  await until(async () => (await runsOf('naps-long')).length === 1)
  assert.is(await handle.cancel(), true)
  assert.is(await codeOf(handle.result()), 'cancelled')
  assert.equal(ran, ['reserve', 'charge', 'clean', 'refund', 'release'])
  assert.is((await handle.status()).status, 'cancelled')
  await until(async () => (await runsOf('naps-long'))[0]!.status === 'cancelled')
  assert.is(await handle.cancel(), false)
})

test('cleanup steps of a cancelled run are tried again like others', async () => {
  let tries = 0
  const stubborn = workflow('stubborn', async (run) => {
    try {
      await run.sleep('1h')
    } finally {
      await run.step(
        'clean',
        () => {
          tries += 1
          if (tries < 3) throw new Error('not yet')
        },
        { retry: { first: 1 } },
      )
    }
  })
  const engine = await engines.start([stubborn])
  const handle = await startRun(engine, stubborn, null)
  await handle.cancel()
  assert.is(await codeOf(handle.result()), 'cancelled')
  assert.is(tries, 3)
})

test('a parent hears of a child that was ended from outside, begun or not', async () => {
  const naps = workflow('child-naps', { queue: 'elsewhere' }, async (run) => run.sleep('1h'))
  const parent = workflow('parent', async (run) => {
    try {
      await run.child(naps, null)
    } catch (error) {
      return (error as MillraceError).details.status
    }
  })
  const engine = await engines.start([parent])
  const handles = [await startRun(engine, parent, null), await startRun(engine, parent, null)]
  await until(async () => (await runsOf('child-naps')).length === 2)
  const [one, two] = await runsOf('child-naps')
  await (await findRun(engine, one!.run_id)).cancel()
  await (await findRun(engine, two!.run_id)).terminate()
  assert.equal((await Promise.all(handles.map((handle) => handle.result()))).sort(), ['cancelled', 'terminated'])
})

test('a parked run is cancelled too; a terminated one ends without cleanup', async () => {
  let cleaned = 0
  const waits = workflow('waits', async (run) => {
    try {
      await run.sleep('1d')
    } finally {
      await run.step('clean', () => {
        cleaned += 1
      })
    }
  })
  const engine = await engines.start([waits])
  const [one, two] = [await startRun(engine, waits, null), await startRun(engine, waits, null)]
  await until(async () => (await one.status()).status === 'waiting' && (await two.status()).status === 'waiting')
  await one.cancel()
  assert.is(await codeOf(one.result()), 'cancelled')
  assert.is(cleaned, 1)
  await two.terminate()
  assert.is(await codeOf(two.result()), 'terminated')
  assert.is(cleaned, 1)
})

test('a run past its timeout fails with it, after its cleanup', async () => {
  const slow = workflow('slow-run', { timeout: 150 }, async (run) => {
    try {
      await run.step('hang', ({ signal }) => new Promise((_, reject) => signal.addEventListener('abort', reject)))
    } finally {
      run.setState('cleaned')
    }
  })
  const engine = await engines.start([slow])
  const handle = await startRun(engine, slow, null)
  assert.is(await codeOf(handle.result()), 'timed_out')
  const status = await handle.status()
  assert.is(status.status, 'failed')
  assert.is(status.state, 'cleaned')
})

test('of states set in a hurry the last one shows when the result is out', async () => {
  const hurries = workflow('hurries', async (run: Run, n: number) => {
    await Promise.all([1, 2, 3].map((step) => run.step(`${step}`, () => run.setState(step))))
    run.setState('nearly')
    run.setState(`last of ${n}`)
  })
  const engine = await engines.start([hurries])
  for (let n = 0; n < 300; n++) {
    const handle = await startRun(engine, hurries, n)
    await handle.result()
    assert.is((await handle.status()).state, `last of ${n}`)
  }
})

test('continue-as-new keeps the id and whoever waits', async () => {
  const counts = workflow('counts', async (run: Run, n: number) => {
    await run.step('count', () => n)
    return n < 5 ? run.continueAsNew(n + 1) : n
  })
  const engine = await engines.start([counts])
  const handle = await startRun(engine, counts, 1, { id: 'counter' })
  assert.is(await handle.result(), 5)
  const runs = await runsOf('counts')
  assert.equal(
    runs.map((row) => row.status),
    ['continued', 'continued', 'continued', 'continued', 'completed'],
  )
  assert.is(await (await findRun(engine, 'counter')).result(), 5)
})

test('a continuation takes the signals its forerunner left', async () => {
  const drains = workflow('drains', async (run: Run, sum: number) => {
    const n = await run.signal('add')
    return n === 0 ? sum : run.continueAsNew(sum + n)
  })
  const engine = await engines.start([drains])
  const handle = await startRun(engine, drains, 0, { id: 'drain' })
  for (const n of [1, 2, 3, 4]) await (await findRun(engine, 'drain')).signal('add', n).catch(() => {})
  await until(async () => {
    const { rows } = await servers.database.pool.query(
      `select 1 from workflow_runs where name = 'drains' and status in ('running', 'waiting') and not exists (
        select from workflow_signals s where s.run_id = workflow_runs.run_id)`,
    )
    return rows.length === 1
  })
  await (await findRun(engine, 'drain')).signal('add', 0)
  assert.ok(((await handle.result()) as number) >= 1)
})

test('a mailbox that was cleared away goes on above what its readers had taken', async () => {
  const reads = workflow('reads', { awaits: { note: 'subject' } }, async (run) => {
    const first = await run.waitFor('note', { key: 'box' })
    await run.signal('go')
    const second = await run.waitFor('note', { key: 'box' })
    return [first?.data, second?.data]
  })
  const engine = await engines.start([reads])
  const handle = await startRun(engine, reads, null)
  await ingest({ type: 'note', subject: 'box', data: 1 })
  await until(
    async () =>
      (
        await servers.database.pool.query(`select 1 from workflow_steps where run_id = $1 and kind = 'signal'`, [
          handle.runId,
        ])
      ).rowCount,
  )
  await servers.database.pool.query(`update workflow_mailboxes set touched_at = now() - interval '8 days'`)
  await until(async () => (await servers.database.pool.query('select 1 from workflow_mailboxes')).rowCount === 0)
  await ingest({ type: 'note', subject: 'box', data: 2 })
  await handle.signal('go')
  assert.equal(await handle.result(), [1, 2])
})

test("a transaction step commits the user's writes with its record, or neither", async () => {
  await servers.db.execute(sql`create table if not exists accounts (id text primary key, cents int)`)
  let tries = 0
  const pays = workflow('pays', async (run) =>
    run.transaction(
      'pay',
      async (tx) => {
        tries += 1
        await tx.execute(sql`insert into accounts values ('a', 100)`)
        if (tries === 1) throw new Error('first try fails after its write')
        return { tries }
      },
      { retry: { attempts: 2, first: 1 } },
    ),
  )
  const engine = await engines.start([pays])
  assert.equal(await (await startRun(engine, pays, null)).result(), { tries: 2 })
  const { rows } = await servers.db.execute(sql`select cents from accounts`)
  assert.equal(rows, [{ cents: 100 }])
})

test("a run started in the caller's transaction exists if and only if that commits", async () => {
  const greets = workflow('greets', async (_, name: string) => `hello ${name}`)
  const engine = await engines.start([greets])
  await servers.db
    .transaction(async (tx) => {
      await startRunIn(engine, tx, greets, 'nobody', { id: 'g1' })
      throw new Error('roll back')
    })
    .catch(() => {})
  const handle = await servers.db.transaction((tx) => startRunIn(engine, tx, greets, 'world', { id: 'g1' }))
  assert.is(await handle.result(), 'hello world')
  assert.is((await runsOf('greets')).length, 1)
})

test('one run per id: use, fail, terminate, again', async () => {
  const holds = workflow('holds', async (run, n: number) => (n === 0 ? run.sleep('1d') : n))
  const engine = await engines.start([holds])
  const first = await startRun(engine, holds, 0, { id: 'h' })
  assert.is((await startRun(engine, holds, 1, { id: 'h' })).runId, first.runId)
  assert.is(await codeOf(startRun(engine, holds, 1, { id: 'h', onConflict: 'fail' })), 'conflict')
  const second = await startRun(engine, holds, 2, { id: 'h', onConflict: 'terminate' })
  assert.is(await second.result(), 2)
  assert.is(await codeOf(first.result()), 'terminated')
  assert.is(await (await startRun(engine, holds, 3, { id: 'h' })).result(), 2)
  assert.is(await codeOf(startRun(engine, holds, 3, { id: 'h', reuse: 'fail' })), 'conflict')
  assert.is(await (await startRun(engine, holds, 3, { id: 'h', reuse: 'again-if-failed' })).result(), 2)
  assert.is(await (await startRun(engine, holds, 4, { id: 'h', reuse: 'again' })).result(), 4)
})

test('a delayed start begins when its time has come', async () => {
  const later = workflow('later', async () => 'done')
  const engine = await engines.start([later])
  const handle = await startRun(engine, later, null, { delay: '1h' })
  assert.is((await handle.status()).status, 'waiting')
  assert.is(await (await startRun(engine, later, null, { delay: 300 })).result(), 'done')
  assert.is((await handle.status()).status, 'waiting')
})

test('everything works without NATS', async () => {
  const pairs = workflow('pairs', { awaits: { pong: 'subject' } }, async (run) => {
    const a = await run.signal('a')
    const b = await run.waitFor('pong', { key: 'p' })
    return [a, b?.data]
  })
  const starter = await engines.start([], { alone: true })
  await engines.start([pairs], { alone: true })
  const handle = await startRun(starter, pairs, null)
  await handle.signal('a', 1)
  await ingest({ type: 'pong', subject: 'p', data: 2 })
  assert.equal(await handle.result(), [1, 2])
})

test.run()
