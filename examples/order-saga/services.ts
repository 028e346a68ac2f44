/** The shop's neighbours, each behind HTTP. Every call carries a key, so that a repeated call does nothing twice. */

import { nonRetryable } from 'millrace'

export type Item = { sku: string; count: number }
export type Order = { orderId: string; customer: string; amount: number; items: Item[] }

async function call<T>(url: string, key: string, body: unknown, signal: AbortSignal): Promise<T> {
  const answer = await fetch(url, {
    method: 'POST',
    headers: { 'content-type': 'application/json', 'idempotency-key': key },
    body: JSON.stringify(body),
    signal,
  })
  if (answer.ok) return (await answer.json()) as T
  const error = new Error(`${new URL(url).pathname} answered ${answer.status}: ${await answer.text()}`)
  // The neighbour has decided: asking again changes nothing. Anything else (5xx, 429) may pass.
  throw answer.status >= 400 && answer.status < 500 && answer.status !== 429 ? nonRetryable(error) : error
}

const url = (path: string) => new URL(path, process.env.SHOP_URL ?? 'http://127.0.0.1:9090').href

type Tools = { key: string; signal: AbortSignal }

export const reserveStock = (order: Order, { key, signal }: Tools) =>
  call<{ reservation: string }>(url('/stock/reserve'), key, { items: order.items }, signal)

export const releaseStock = (reservation: string, { key, signal }: Tools) =>
  call<unknown>(url('/stock/release'), key, { reservation }, signal)

export const charge = (order: Order, { key, signal }: Tools) =>
  call<{ payment: string }>(url('/payments/charge'), key, { customer: order.customer, amount: order.amount }, signal)

export const refund = (payment: string, { key, signal }: Tools) =>
  call<unknown>(url('/payments/refund'), key, { payment }, signal)

export const ship = (order: Order, { key, signal }: Tools) =>
  call<{ parcel: string }>(url('/parcels/ship'), key, { customer: order.customer, items: order.items }, signal)
