/** The faults, each told as what happens to a running system. */

import { setTimeout as pause } from 'node:timers/promises'
import pg from 'pg'
import { createRandom, type Random } from './hostile-requests.ts'
import { LOCK } from './oracle.ts'
import type { Rig } from './rig.ts'
import type { Fault } from './run-fault.ts'
import { waitFor } from './wait.ts'

/** ack_wait x max_deliver of rig.ts, and some more. */
const OUTAGE_MS = 8_000

type Part = { kill: () => Promise<void>; start: () => Promise<void> }

async function killAndStart(part: Part): Promise<number> {
  await part.kill()
  await part.start()
  return Date.now()
}

/** For a part whose work others take over: recovery counts from the kill. */
async function killAndLeaveDead(part: Part): Promise<number> {
  await part.kill()
  const killedMs = Date.now()
  await pause(OUTAGE_MS)
  await part.start()
  return killedMs
}

const killApi: Fault = { name: 'kill -9 of an API process', inject: ({ apis }) => killAndStart(apis[0]!) }
const killWorker: Fault = { name: 'kill -9 of a worker process', inject: ({ workers }) => killAndStart(workers[0]!) }
const killNats: Fault = { name: 'kill -9 of nats-server', inject: ({ nats }) => killAndStart(nats[0]!) }
const killPostgres: Fault = { name: 'kill -9 of Postgres', inject: ({ postgres }) => killAndStart(postgres) }

const postgresAway: Fault = {
  name: 'Postgres down for longer than ack_wait x max_deliver',
  inject: async ({ postgres }) => {
    await postgres.kill()
    await pause(OUTAGE_MS)
    await postgres.start()
    return Date.now()
  },
}

const killAll: Fault = {
  name: 'kill -9 of everything at once',
  inject: async ({ apis, workers, nats, postgres }: Rig) => {
    await Promise.all([...apis, ...workers, ...nats, postgres].map((part) => part.kill()))
    await Promise.all([...apis, ...workers, ...nats, postgres].map((part) => part.start()))
    return Date.now()
  },
}

const pauseWorker: Fault = {
  name: 'a worker paused for longer than ack_wait',
  inject: ({ workers }) =>
    pauseProcess(
      () => workers[0]!.signal('SIGSTOP'),
      () => workers[0]!.signal('SIGCONT'),
    ),
}

const pauseApi: Fault = {
  name: 'an API process paused',
  inject: ({ apis }) =>
    pauseProcess(
      () => apis[0]!.signal('SIGSTOP'),
      () => apis[0]!.signal('SIGCONT'),
    ),
}

const pausePostgres: Fault = {
  name: 'Postgres paused for longer than ack_wait',
  inject: ({ postgres }) => pauseProcess(postgres.pause, postgres.resume),
}

async function pauseProcess(stop: () => void, go: () => void): Promise<number> {
  stop()
  await pause(OUTAGE_MS)
  go()
  return Date.now()
}

/** Asks for an orderly end; says so when it is none. */
async function stopAndStart(service: Rig['workers'][number]): Promise<number> {
  service.signal('SIGTERM')
  await endsWith(service, 0)
  await service.start()
  return Date.now()
}

const ENDS_MS_MAX = 20_000

async function endsWith(service: Rig['workers'][number], wanted: number): Promise<void> {
  await waitFor(`${service.name} to end after SIGTERM`, ENDS_MS_MAX, () => !service.child().running())
  const { code, signal } = await service.child().exited
  if (code !== wanted) throw new Error(`${service.name} ended with ${signal ?? code}: ${service.child().log()}`)
}

const stopApi: Fault = { name: 'SIGTERM to an API process', inject: ({ apis }) => stopAndStart(apis[0]!) }
const stopWorker: Fault = { name: 'SIGTERM to a worker process', inject: ({ workers }) => stopAndStart(workers[0]!) }

const stopWorkerTwice: Fault = {
  name: 'SIGTERM twice to a worker that Postgres keeps waiting',
  inject: async ({ workers, postgres }) => {
    postgres.pause()
    // Long enough for a batch to be on its way.
    await pause(500)
    workers[0]!.signal('SIGTERM')
    await waitFor('the first signal to be heard', 5_000, () => workers[0]!.child().log().includes('stopping'))
    if (!workers[0]!.child().running()) throw new Error('the worker ended with a batch in hand')
    workers[0]!.signal('SIGTERM')
    await endsWith(workers[0]!, 1)
    postgres.resume()
    await workers[0]!.start()
    return Date.now()
  },
}

const stopWhileAway: Fault = {
  name: 'SIGTERM to a worker while NATS and Postgres are down',
  inject: async ({ workers, nats, postgres }) => {
    await Promise.all([postgres.kill(), nats[0]!.kill()])
    workers[0]!.signal('SIGTERM')
    await endsWith(workers[0]!, 0)
    await Promise.all([postgres.start(), nats[0]!.start()])
    await workers[0]!.start()
    return Date.now()
  },
}

/** Its transaction holds the keys of its batch, and the batch is redelivered to a worker that waits for them. */
const pauseBeforeCommit: Fault = {
  name: 'a worker paused between INSERT and COMMIT',
  // A poison event in the same batch would make the transaction fail before the pause.
  load: { poisonEvery: 0 },
  inject: async ({ apis, workers, databaseUrl }) => {
    const client = new pg.Client({ connectionString: databaseUrl })
    await client.connect()
    try {
      await workers[1]!.kill()
      await pauseInTransaction(client, apis[0]!.url, workers[0]!)
      await workers[1]!.start()
      await waitFor('the other worker to commit it', 30_000, () =>
        exists(client, `select from events where type = 'fault.locked'`),
      )
      workers[0]!.signal('SIGCONT')
      return Date.now()
    } finally {
      await client.end()
    }
  },
}

async function pauseInTransaction(client: pg.Client, url: string, worker: Rig['workers'][number]): Promise<void> {
  const inserting = `from pg_stat_activity where query ilike '%insert into event_ids%' and pid <> pg_backend_pid()`
  await client.query('select pg_advisory_lock($1)', [LOCK])
  await post(url, { source: 'locked', id: '1', type: 'fault.locked' })
  await waitFor('the INSERT to wait', 10_000, () => exists(client, `select ${inserting} and wait_event = 'advisory'`))
  worker.signal('SIGSTOP')
  await client.query('select pg_advisory_unlock($1)', [LOCK])
  await waitFor('the INSERT to be done', 10_000, () =>
    exists(client, `select ${inserting} and state = 'idle in transaction'`),
  )
}

const exists = async (client: pg.Client, text: string) => ((await client.query(text)).rowCount ?? 0) > 0

async function post(url: string, event: object): Promise<number> {
  const headers = { 'content-type': 'application/json' }
  const answer = await fetch(`${url}/v1/events`, { method: 'POST', headers, body: JSON.stringify(event) })
  await answer.arrayBuffer()
  return answer.status
}

const HAUNTINGS = 5
const SEED = 20_250_801

/** Every part has its own ghost, so that faults overlap in ways that nobody thought of. */
const chaos: Fault = {
  name: 'random kills and pauses of every part, overlapping',
  inject: async ({ apis, workers, nats, postgres }) => {
    const services = [...apis, ...workers].map((service) => ({
      ...service,
      pause: () => service.signal('SIGSTOP'),
      resume: () => service.signal('SIGCONT'),
    }))
    await Promise.all([...services, ...nats, postgres].map((part, i) => haunt(part, createRandom(SEED + i))))
    return Date.now()
  },
}

async function haunt(part: Part & { pause: () => void; resume: () => void }, random: Random): Promise<void> {
  for (let i = 0; i < HAUNTINGS; i++) {
    await pause(random.below(4_000))
    if (random.below(2) === 0) {
      part.pause()
      await pause(random.below(6_000))
      part.resume()
    } else {
      await part.kill()
      await pause(random.below(2_000))
      await startWhenPossible(part)
    }
  }
}

/** As a supervisor does: a process that finds NATS or Postgres away ends, and is started again. */
async function startWhenPossible(part: Part): Promise<void> {
  await waitFor('a part to start again', 120_000, () =>
    part.start().then(
      () => true,
      () => false,
    ),
  )
}

const fillStream: Fault = {
  name: 'the stream full, its workers paused',
  load: { fillerBytes: 8_000 },
  inject: async (rig) => {
    for (const worker of rig.workers) worker.signal('SIGSTOP')
    const probe = { source: 'probe', type: 'fault.probe', data: 'x'.repeat(8_000) }
    await waitFor('the stream to be full', 120_000, async () => (await post(rig.apis[0]!.url, probe)) === 503)
    for (const worker of rig.workers) worker.signal('SIGCONT')
    return Date.now()
  },
}

const leaderOf = async (rig: Rig) => rig.nats[await rig.leader()]!
const followerOf = async (rig: Rig) => rig.nats[((await rig.leader()) + 1) % rig.nats.length]!

const killLeader: Fault = {
  name: "kill -9 of the stream's leader",
  inject: async (rig) => killAndLeaveDead(await leaderOf(rig)),
}

const killFollower: Fault = {
  name: 'kill -9 of a follower',
  inject: async (rig) => killAndLeaveDead(await followerOf(rig)),
}

const pauseLeader: Fault = {
  name: "the stream's leader paused for longer than ack_wait",
  inject: async (rig) => {
    const leader = await leaderOf(rig)
    leader.pause()
    const pausedMs = Date.now()
    await pause(2 * OUTAGE_MS)
    leader.resume()
    return pausedMs
  },
}

const cutApiNats: Fault = {
  name: 'link API - NATS cut',
  inject: ({ links }) => breakLinks(links.apiNats, 'cut'),
}

const cutWorkerNats: Fault = {
  name: 'link worker - NATS cut for longer than ack_wait',
  inject: ({ links }) => breakLinks(links.workerNats, 'cut'),
}

const cutPostgres: Fault = {
  name: 'link to Postgres cut for longer than ack_wait',
  inject: ({ links }) => breakLinks(links.postgres, 'cut'),
}

const freezeWorkerNats: Fault = {
  name: 'link worker - NATS silent for longer than ack_wait',
  inject: ({ links }) => breakLinks(links.workerNats, 'freeze'),
}

const freezePostgres: Fault = {
  name: 'link to Postgres silent for longer than ack_wait',
  inject: ({ links }) => breakLinks(links.postgres, 'freeze'),
}

async function breakLinks(links: Rig['links']['postgres'], how: 'cut' | 'freeze'): Promise<number> {
  for (const link of links) link[how]()
  await pause(OUTAGE_MS)
  for (const link of links) link.mend()
  return Date.now()
}

/** Nothing mends them: whoever waits on them has to give up by itself. */
const forgetPostgres: Fault = {
  name: 'connections to Postgres silent for ever, new ones work',
  inject: async ({ links }) => {
    for (const link of links.postgres) link.forget()
    return Date.now()
  },
}

const forgetNats: Fault = {
  name: 'connections to NATS silent for ever, new ones work',
  inject: async ({ links }) => {
    for (const link of [...links.apiNats, ...links.workerNats]) link.forget()
    return Date.now()
  },
}

const slowLinks: Fault = {
  name: 'every link 150 ms slower',
  inject: async ({ links }) => {
    const all = [...links.apiNats, ...links.workerNats, ...links.postgres]
    for (const link of all) link.delay(150)
    await pause(OUTAGE_MS)
    for (const link of all) link.mend()
    return Date.now()
  },
}

/** Short ones, on every `make test`. */
export const QUICK = [
  killApi,
  killWorker,
  killNats,
  killPostgres,
  stopApi,
  stopWorker,
  stopWorkerTwice,
  postgresAway,
  pauseWorker,
  killAll,
]
export const SINGLE = [
  ...QUICK.slice(0, -1),
  stopWhileAway,
  pauseBeforeCommit,
  pauseApi,
  pausePostgres,
  fillStream,
  killAll,
  chaos,
]
export const CLUSTER = [
  killLeader,
  killFollower,
  pauseLeader,
  killPostgres,
  killApi,
  killWorker,
  pauseWorker,
  pauseApi,
  pausePostgres,
  fillStream,
  killAll,
  chaos,
]
export const LINKS = [
  cutApiNats,
  cutWorkerNats,
  cutPostgres,
  freezeWorkerNats,
  freezePostgres,
  forgetNats,
  forgetPostgres,
  slowLinks,
]
