/** The faults, each told as what happens to a running system. */

import { setTimeout as pause } from 'node:timers/promises'
import type { Rig } from './rig.ts'
import type { Fault } from './run-fault.ts'

/** SETTINGS of rig.ts: ack_wait x max_deliver, and some more. */
const OUTAGE_MS = 8_000

export const killApi: Fault = {
  name: 'kill -9 of an API process',
  inject: async ({ apis }) => {
    await apis[0]!.kill()
    await apis[0]!.start()
    return Date.now()
  },
}

export const killWorker: Fault = {
  name: 'kill -9 of a worker process',
  inject: async ({ workers }) => {
    await workers[0]!.kill()
    await workers[0]!.start()
    return Date.now()
  },
}

export const killNats: Fault = {
  name: 'kill -9 of nats-server',
  inject: async ({ nats }) => {
    await nats[0]!.kill()
    await nats[0]!.start()
    return Date.now()
  },
}

export const killPostgres: Fault = {
  name: 'kill -9 of Postgres',
  inject: async ({ postgres }) => {
    await postgres.kill()
    await postgres.start()
    return Date.now()
  },
}

export const postgresAway: Fault = {
  name: 'Postgres down for longer than ack_wait x max_deliver',
  inject: async ({ postgres }) => {
    await postgres.kill()
    await pause(OUTAGE_MS)
    await postgres.start()
    return Date.now()
  },
}

export const pauseWorker: Fault = {
  name: 'worker paused for longer than ack_wait',
  inject: async ({ workers }) => {
    workers[0]!.signal('SIGSTOP')
    await pause(OUTAGE_MS)
    workers[0]!.signal('SIGCONT')
    return Date.now()
  },
}

export const restartAll: Fault = {
  name: 'kill -9 of everything at once',
  inject: async (rig: Rig) => {
    const { apis, workers, nats, postgres } = rig
    await Promise.all([...apis, ...workers, ...nats, postgres].map((part) => part.kill()))
    await Promise.all([...nats, postgres].map((server) => server.start()))
    await Promise.all([...apis, ...workers].map((service) => service.start()))
    return Date.now()
  },
}
