/** What an example talks to over HTTP: remembers every call by its idempotency key, and answers as it is told. */

import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'

export type Call = { path: string; key: string; body: Record<string, unknown> }
type Answer = { status: number; body: unknown }

/** @param answer  is asked once per key that it has accepted (a status below 300); a repeated call gets the same */
export async function startNeighbour(answer: (call: Call) => Answer) {
  const accepted = new Map<string, Answer>()
  const calls: Call[] = []
  const server = createServer(async (request, response) => {
    const chunks: Buffer[] = []
    for await (const chunk of request) chunks.push(chunk as Buffer)
    const call: Call = {
      path: request.url!,
      key: String(request.headers['idempotency-key']),
      body: JSON.parse(Buffer.concat(chunks).toString()),
    }
    let reply = accepted.get(call.key)
    if (reply === undefined) {
      calls.push(call)
      reply = answer(call)
      if (reply.status < 300) accepted.set(call.key, reply)
    }
    response.writeHead(reply.status, { 'content-type': 'application/json' }).end(JSON.stringify(reply.body))
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    calls,
    stop: () => new Promise<unknown>((resolve) => server.close(resolve)),
  }
}
