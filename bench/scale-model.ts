/**
 * What throughput to expect of so many processes on so many cores. Every process takes a fixed time of a core for an event,
 * so the slowest kind sets the pace, or the cores do where they are fewer than all kinds together want:
 *
 *   events/s = 1,000,000 x min( apis x speed / api us, workers x speed / worker us, cores / us of everything on them )
 */

/** Microseconds of a core for an event, by who spends them. */
export type Costs = { api: number; worker: number; nats: number; postgres: number; load: number }

/** @property speed  of each API and worker process, as a share of a core */
export type Fleet = { apis: number; workers: number; speed: number }

type Limit = 'apis' | 'workers' | 'machine'

/** @param cores  that everything in `costs` shares */
export function predict(costs: Costs, { apis, workers, speed }: Fleet, cores: number): { rate: number; limit: Limit } {
  const sum = costs.api + costs.worker + costs.nats + costs.postgres + costs.load
  const limits: [Limit, number][] = [
    ['apis', (apis * speed) / costs.api],
    ['workers', (workers * speed) / costs.worker],
    ['machine', cores / sum],
  ]
  const [limit, rate] = limits.reduce((least, each) => (each[1] < least[1] ? each : least))
  return { rate: rate * 1e6, limit }
}

/** Processes are planned at this load, so that a burst or a lost one of them has somewhere to go. */
const LOAD_PLANNED = 0.7

/**
 * What a rate takes, on machines that do nothing else.
 * @returns processes, cores of nats-server and Postgres, and streams: what one stream stores is serialised in one group
 *   of servers, so each is taken to be worth one core
 */
export function plan(costs: Costs, rate: number) {
  const cores = (us: number) => (rate * us) / 1e6 / LOAD_PLANNED
  return {
    apis: Math.ceil(cores(costs.api)),
    workers: Math.ceil(cores(costs.worker)),
    streams: Math.ceil(cores(costs.nats)),
    natsCores: cores(costs.nats),
    postgresCores: cores(costs.postgres),
  }
}
