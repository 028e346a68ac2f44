/** The listening socket: time limits against slow clients, and an end that lets requests finish. */

import { createServer, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import type Koa from 'koa'
import type { Config } from '../config.ts'
import type { RequestState } from './caller.ts'

/** Longer than the 60 s after which load balancers drop an idle connection, so that they drop it first. */
const KEEP_ALIVE_MS = 65_000
const HEADERS_MS = 15_000
/** A body that trickles is ended here; one that stops, after BODY_IDLE_MS. */
const REQUEST_MS = 300_000
const CHECK_MS = 5_000
/** What has not finished this long after `close` is cut off: it holds nothing that was answered. */
const CLOSE_MS = 20_000

/**
 * For browsers, should one come by: nothing here is a page, may be shown in one, or is kept. An answer is JSON or text
 * that a stranger may have put into an event.
 */
const SECURITY_HEADERS = {
  'X-Content-Type-Options': 'nosniff',
  'Cache-Control': 'no-store',
  'Content-Security-Policy': "default-src 'none'; frame-ancestors 'none'",
  'Referrer-Policy': 'no-referrer',
}

/**
 * An open port, and who answers there.
 * @property serve  lets another app answer from the next request on
 * @property close  refuses new connections and lets requests in progress finish
 */
export type Door = { port: number; serve: (app: Koa<RequestState>) => void; close: () => Promise<void> }

/** Listens on HOST:PORT. */
export async function openDoor(
  app: Koa<RequestState>,
  config: Pick<Config, 'HOST' | 'PORT' | 'HSTS_MAX_AGE_S'>,
): Promise<Door> {
  const headers = Object.entries({
    ...SECURITY_HEADERS,
    ...(config.HSTS_MAX_AGE_S === 0 ? {} : { 'Strict-Transport-Security': `max-age=${config.HSTS_MAX_AGE_S}` }),
  })
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
      for (const [name, value] of headers) res.setHeader(name, value)
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
  const serve = (next: Koa<RequestState>) => {
    handle = next.callback()
  }
  return { port, serve, close }
}
