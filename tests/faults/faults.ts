/** The faults, each told as what happens to a running system. */

import { setTimeout as pause } from 'node:timers/promises'
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

const fillStream: Fault = {
  name: 'the stream full, its workers paused',
  load: { fillerBytes: 8_000 },
  inject: async (rig) => {
    for (const worker of rig.workers) worker.signal('SIGSTOP')
    await waitFor('the stream to be full', 120_000, async () => {
      const answer = await fetch(`${rig.apis[0]!.url}/v1/events`, {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        // Refused for its size only when the stream is full; never accepted, for it is poison to nobody.
        body: JSON.stringify({ source: 'probe', type: 'fault.probe', data: 'x'.repeat(8_000) }),
      })
      await answer.arrayBuffer()
      return answer.status === 503
    })
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
export const QUICK = [killApi, killWorker, killNats, killPostgres, postgresAway, pauseWorker, killAll]
export const SINGLE = [...QUICK.slice(0, -1), pauseApi, pausePostgres, fillStream, killAll]
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
]
export const LINKS = [cutApiNats, cutWorkerNats, cutPostgres, freezeWorkerNats, freezePostgres, slowLinks]
