/** A TCP link that can be cut, frozen and delayed. */

import { type AddressInfo, connect, createServer, type Socket } from 'node:net'

export type Link = {
  port: number
  /** Breaks every connection and refuses new ones. */
  cut: () => void
  /** Says nothing and carries nothing, as a cable pulled out; connections stay open. */
  freeze: () => void
  /** As a firewall that lost its table: what is open is silent for ever, new connections work. */
  forget: () => void
  /** Every byte arrives so much later. */
  delay: (ms: number) => void
  /** As new: what was frozen flows on. */
  mend: () => void
  close: () => void
}

export async function createLink(target: { host: string; port: number }): Promise<Link> {
  let state: 'whole' | 'cut' | 'frozen' = 'whole'
  let delayMs = 0
  const pairs = new Set<[Socket, Socket]>()
  const forgotten: [Socket, Socket][] = []

  function carry(from: Socket, to: Socket): void {
    // Timers of one delay fire in order, so bytes do not overtake each other; a mended link first lets late ones through.
    let free = Promise.resolve()
    from.on('data', (chunk: Buffer) => {
      if (delayMs === 0) {
        free = free.then(() => write(from, to, chunk))
        return
      }
      const due = performance.now() + delayMs
      free = free.then(() => new Promise<void>((resolve) => setTimeout(resolve, Math.max(0, due - performance.now()))))
      free = free.then(() => write(from, to, chunk))
    })
    from.on('end', () => void free.then(() => to.end()))
    from.on('error', () => to.destroy())
    from.on('close', () => void free.then(() => to.destroy()))
  }

  function write(from: Socket, to: Socket, chunk: Buffer): void {
    if (to.destroyed || to.write(chunk)) return
    from.pause()
    to.once('drain', () => state !== 'frozen' && from.resume())
  }

  const server = createServer((near) => {
    if (state === 'cut') {
      near.resetAndDestroy()
      return
    }
    const far = connect(target)
    near.setNoDelay(true)
    far.setNoDelay(true)
    const pair: [Socket, Socket] = [near, far]
    pairs.add(pair)
    near.once('close', () => pairs.delete(pair))
    carry(near, far)
    carry(far, near)
    if (state === 'frozen') for (const socket of pair) socket.pause()
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))

  return {
    port: (server.address() as AddressInfo).port,
    cut: () => {
      state = 'cut'
      for (const pair of pairs) for (const socket of pair) socket.resetAndDestroy()
    },
    freeze: () => {
      state = 'frozen'
      for (const pair of pairs) for (const socket of pair) socket.pause()
    },
    forget: () => {
      for (const pair of pairs) for (const socket of pair) socket.removeAllListeners('data').pause()
      forgotten.push(...pairs)
      pairs.clear()
    },
    delay: (ms) => {
      delayMs = ms
    },
    mend: () => {
      state = 'whole'
      delayMs = 0
      for (const pair of pairs) for (const socket of pair) socket.resume()
    },
    close: () => {
      server.close()
      for (const pair of [...pairs, ...forgotten]) for (const socket of pair) socket.destroy()
    },
  }
}
