/** The events of the benchmarks: about 350 bytes as sent, unique ids. */

const TYPES = ['order.placed', 'order.paid', 'parcel.shipped', 'page.viewed', 'user.signed_up']

/** JSON text of event `n` of run `run`. */
export function sampleEvent(run: string, n: number): string {
  const type = TYPES[n % TYPES.length]
  return `{"type":"${type}","source":"/shop/${n % 7}","id":"${run}-${n}","subject":"customer-${n % 1000}","time":"2026-01-01T12:00:00Z","data":{"orderId":"o-${n}","amount":${(n % 10_000) / 100},"currency":"EUR","items":[{"sku":"sku-${n % 97}","quantity":${1 + (n % 3)}},{"sku":"sku-${n % 89}","quantity":1}],"note":"leave it with the neighbours, please"}}`
}
