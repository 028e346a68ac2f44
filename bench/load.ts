/**
 * The load generator, a process of its own: raw sockets and ready-made requests, so that it costs as little of the
 * machine as it can. Reads its orders as JSON from argv, prints its result as one line of JSON.
 */

import { connect, type Socket } from 'node:net'
import { sampleEvent } from './sample.ts'

/** Connections go to the ports in turn. */
type Order = {
  ports: number[]
  path: string
  run: string
  eventsPerRequest: number
  connections: number
  seconds: number
}
export type LoadResult = {
  sent: number
  accepted: number
  requests: number
  refused: number
  seconds: number
  /** What the generator itself cost. */
  cpuMs: number
  p50Ms: number
  p99Ms: number
}

const order: Order = JSON.parse(process.argv[2]!)
const latenciesMs: number[] = []
let next = 0
let accepted = 0
let refused = 0
const startedAt = performance.now()
const until = startedAt + order.seconds * 1_000

function request(): Buffer {
  const events: string[] = []
  for (let i = 0; i < order.eventsPerRequest; i++) events.push(sampleEvent(order.run, next++))
  const body = order.eventsPerRequest === 1 ? events[0]! : `[${events.join(',')}]`
  return Buffer.from(
    `POST ${order.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: ${Buffer.byteLength(body)}\r\n\r\n${body}`,
  )
}

/** Sends requests one after another on one connection, until the time is up. */
function drive(socket: Socket): Promise<void> {
  return new Promise((resolve, reject) => {
    let sentAt = 0
    let answer = ''
    const send = () => {
      if (performance.now() >= until) {
        socket.end()
        return resolve()
      }
      const bytes = request()
      sentAt = performance.now()
      socket.write(bytes)
    }
    socket.on('data', (chunk) => {
      answer += chunk.toString('latin1')
      const head = answer.indexOf('\r\n\r\n')
      if (head < 0) return
      const length = Number(/content-length: (\d+)/i.exec(answer)?.[1])
      if (answer.length < head + 4 + length) return
      latenciesMs.push(performance.now() - sentAt)
      if (/^HTTP\/1.1 20[12]/.test(answer)) accepted += order.eventsPerRequest
      else refused++
      answer = ''
      send()
    })
    socket.on('error', reject)
    send()
  })
}

await Promise.all(
  Array.from({ length: order.connections }, async (_, n) => {
    const socket = connect(order.ports[n % order.ports.length]!, '127.0.0.1')
    socket.setNoDelay(true)
    await new Promise((resolve, reject) => socket.once('connect', resolve).once('error', reject))
    await drive(socket)
  }),
)
latenciesMs.sort((a, b) => a - b)
const { user, system } = process.cpuUsage()
const percentile = (p: number) => latenciesMs[Math.min(latenciesMs.length - 1, Math.floor(latenciesMs.length * p))] ?? 0
const result: LoadResult = {
  sent: next,
  accepted,
  refused,
  requests: latenciesMs.length,
  seconds: (performance.now() - startedAt) / 1_000,
  cpuMs: (user + system) / 1_000,
  p50Ms: percentile(0.5),
  p99Ms: percentile(0.99),
}
console.log(JSON.stringify(result))
