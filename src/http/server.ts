/** The listening socket: time limits against slow clients, and an end that lets requests finish. */

import { createServer, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import type Koa from 'koa'
import type { Config } from '../config.ts'
import type { TracedState } from '../telemetry/http.ts'

/** Longer than the 60 s after which load balancers drop an idle connection, so that they drop it first. */
const KEEP_ALIVE_MS = 65_000
const HEADERS_MS = 15_000
/** A body that trickles is ended here; one that stops, after BODY_IDLE_MS. */
const REQUEST_MS = 300_000
const CHECK_MS = 5_000
/** What has not finished this long after `close` is cut off: it holds nothing that was answered. */
const CLOSE_MS = 20_000

/**
 * An open port, and who answers there.
 * @property serve  lets another app answer from the next request on
 * @property close  refuses new connections and lets requests in progress finish
 */
export type Door = { port: number; serve: (app: Koa<TracedState>) => void; close: () => Promise<void> }

/** Listens on HOST:PORT. */
export async function openDoor(app: Koa<TracedState>, config: Pick<Config, 'HOST' | 'PORT'>): Promise<Door> {
  let handle = app.callback()
  let closing = false
  const server: Server = createServer(
    {
      keepAliveTimeout: KEEP_ALIVE_MS,
      headersTimeout: HEADERS_MS,
      requestTimeout: REQUEST_MS,
      connectionsCheckingInterval: CHECK_MS,
    },
    (req, res) => {
      // A kept-alive connection would go on bringing requests.
      if (closing) res.setHeader('Connection', 'close')
      void handle(req, res)
    },
  )
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject)
    server.listen(config.PORT, config.HOST, resolve)
  })
  const { port } = server.address() as AddressInfo
  const close = () =>
    new Promise<void>((resolve) => {
      closing = true
      const cut = setTimeout(() => server.closeAllConnections(), CLOSE_MS)
      server.close(() => {
        clearTimeout(cut)
        resolve()
      })
      server.closeIdleConnections()
    })
  const serve = (next: Koa<TracedState>) => {
    handle = next.callback()
  }
  return { port, serve, close }
}
