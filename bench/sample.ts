/** The events of the benchmarks: about 350 bytes as sent, unique ids. */

import { randomBytes } from 'node:crypto'

const TYPES = ['order.placed', 'order.paid', 'parcel.shipped', 'page.viewed', 'user.signed_up']

/** Trace contexts as the API makes them: the events of one request share a trace, here every hundred. */
export function sampleTraceparents(): (n: number) => string {
  const made = new Map<number, string>()
  return (n) => {
    const request = Math.floor(n / 100)
    if (!made.has(request)) made.clear()
    const traceparent = made.get(request) ?? `00-${randomBytes(16).toString('hex')}-00f067aa0ba902b7-00`
    made.set(request, traceparent)
    return traceparent
  }
}

/** JSON text of event `n` of run `run`. */
export function sampleEvent(run: string, n: number): string {
  const type = TYPES[n % TYPES.length]
  return `{"type":"${type}","source":"/shop/${n % 7}","id":"${run}-${n}","subject":"customer-${n % 1000}","time":"2026-01-01T12:00:00Z","data":{"orderId":"o-${n}","amount":${(n % 10_000) / 100},"currency":"EUR","items":[{"sku":"sku-${n % 97}","quantity":${1 + (n % 3)}},{"sku":"sku-${n % 89}","quantity":1}],"note":"leave it with the neighbours, please"}}`
}
