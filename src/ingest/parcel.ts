/**
 * How events travel. A message of the stream holds the events of one type that are published together, whichever requests
 * they came with: group commit in the messages themselves. Each request's share of a message is a parcel.
 *
 * A message, and so its format for other producers and consumers:
 * - subject `events.<type>`
 * - payload: CloudEvents 1.0 JSON texts, separated by U+001E where there are several. JSON never holds that character
 *   unescaped (RFC 8259, section 7), so one text is a message with one event.
 * - one header `Millrace-Request: <events> <received ms> <traceparent or -> [<commit reply or -> [<tenant>]]` for each
 *   request, in the order of its events; the commit reply is a subject that hears of the commit
 * - with one event also `traceparent`, `Millrace-Id` and `Millrace-Source`
 * All headers are optional; without `Millrace-Request`, `traceparent`, `Millrace-Received` (ms since 1970) and
 * `Millrace-Tenant` are read. Without a tenant it is `default`.
 */

import type { Msg } from 'nats'
import { ack, deliveryInfo, headerBlock, headerOf, headersOf } from '../broker/delivery.ts'
import { subjectOf } from '../broker/streams.ts'
import { OPERATOR_TENANT } from '../http/caller.ts'
import { jsonProblem } from '../secrets.ts'
import type { OutgoingEvent } from './event.ts'

const HEADER = {
  id: 'Millrace-Id',
  source: 'Millrace-Source',
  request: 'Millrace-Request',
  received: 'Millrace-Received',
  tenant: 'Millrace-Tenant',
  traceparent: 'traceparent',
} as const

const SEPARATOR = '\x1e'
const SEPARATOR_BYTE = 0x1e

/** A quarter of the largest batch, so that batches fill well, and far below what a message may hold. */
const MESSAGE_EVENTS_MAX = 250
const MESSAGE_CHARS_MAX = 128 * 1024

/** A message to publish. */
export type OutgoingMessage = { subject: string; headerLines: string; payload: Buffer; events: number }

/** Sorts events into lists that a message each can hold; those of one type keep their order. */
export function pack(events: OutgoingEvent[]): OutgoingEvent[][] {
  if (events.length === 1) return [events]
  const lists: OutgoingEvent[][] = []
  const open = new Map<string, { list: OutgoingEvent[]; chars: number }>()
  for (const event of events) {
    const last = open.get(event.type)
    const chars = (last?.chars ?? 0) + event.payload.length
    if (last !== undefined && last.list.length < MESSAGE_EVENTS_MAX && chars <= MESSAGE_CHARS_MAX) {
      last.list.push(event)
      last.chars = chars
    } else {
      const list = [event]
      lists.push(list)
      open.set(event.type, { list, chars: event.payload.length })
    }
  }
  return lists
}

/** @param events  as `pack` sorts them: not empty, of one type, those of a request together */
export function messageOf(events: OutgoingEvent[]): OutgoingMessage {
  const first = events[0]!
  const alone = events.length === 1
  let headerLines = ''
  for (let from = 0; from < events.length; ) {
    const event = events[from]!
    let to = from + 1
    while (to < events.length && sameRequest(event, events[to]!)) to++
    headerLines += line(HEADER.request, requestValue(to - from, event))
    from = to
  }
  if (alone)
    headerLines +=
      line(HEADER.traceparent, first.traceparent) + line(HEADER.id, first.id) + line(HEADER.source, first.source)
  const payload = alone ? first.payload : events.map((event) => event.payload).join(SEPARATOR)
  return { subject: subjectOf(first.type), headerLines, payload: Buffer.from(payload), events: events.length }
}

const sameRequest = (a: Request, b: Request) =>
  a.traceparent === b.traceparent &&
  a.receivedMs === b.receivedMs &&
  a.commitReply === b.commitReply &&
  a.tenant === b.tenant

function requestValue(events: number, { receivedMs, traceparent, commitReply, tenant }: Request): string {
  const value = `${events} ${receivedMs} ${traceparent || '-'}`
  if (tenant !== OPERATOR_TENANT) return `${value} ${commitReply || '-'} ${tenant}`
  return commitReply === '' ? value : `${value} ${commitReply}`
}

/** Nothing where the value would break out of its line, as the identity of another producer's event may: it is in the payload too. */
const line = (name: string, value: string) => (LINE_END.test(value) ? '' : `\r\n${name}: ${value}`)
const LINE_END = /[\r\n]/

/** What the events of one request share. */
type Request = { receivedMs: number; traceparent: string; commitReply: string; tenant: string }

/** A message as delivered, with what is still to be answered of it. */
type Delivery = {
  message: Msg
  seq: number
  /** JetStream's own store time, in ms since 1970. */
  publishedMs: number
  /** How often JetStream has delivered it, this time included. */
  deliveries: number
  /** Events in the message. */
  events: number
  /** Events not yet settled; the message is acknowledged with the last of them. */
  open: number
}

/** Consecutive events of a delivery that came with one request; or those of them that fell to one batch, or to one half of it. */
export type Parcel = Request & {
  from: Delivery
  /** Of its first event in the message, counted from 0. */
  place: number
  events: number
  /** Its events, with separators between them. */
  bytes: Buffer
}

/** Reads a delivered message; no event is parsed. */
export function receive(message: Msg): Parcel[] {
  const { seq, deliveries, storedMs: publishedMs } = deliveryInfo(message)
  const block = headerBlock(message)
  const bytes = Buffer.from(message.data.buffer, message.data.byteOffset, message.data.byteLength)
  let events = 1
  for (let at = bytes.indexOf(SEPARATOR_BYTE); at >= 0; at = bytes.indexOf(SEPARATOR_BYTE, at + 1)) events++
  const from: Delivery = { message, seq, publishedMs, deliveries, events, open: events }
  const parcels: Parcel[] = []
  let rest: Parcel = { from, ...requestWithout(block, publishedMs), place: 0, events, bytes }
  for (const value of headersOf(block, HEADER.request)) {
    const [share, received, traceparent = '-', commitReply = '-', tenant = OPERATOR_TENANT] = value.split(' ')
    const count = Math.min(Number(share) || 0, rest.events)
    if (count === 0) break
    const request = {
      receivedMs: Number(received),
      traceparent: traceparent === '-' ? '' : traceparent,
      commitReply: commitReply === '-' ? '' : commitReply,
      tenant,
    }
    if (count === rest.events) return [...parcels, { ...rest, ...request }]
    const [head, tail] = cut(rest, count)
    parcels.push({ ...head, ...request })
    rest = tail
  }
  return [...parcels, rest]
}

/** What a message without, or with too few, `Millrace-Request` says. */
function requestWithout(block: string, publishedMs: number): Request {
  const received = headerOf(block, HEADER.received)
  return {
    receivedMs: received === '' ? publishedMs : Number(received),
    traceparent: headerOf(block, HEADER.traceparent),
    commitReply: '',
    tenant: headerOf(block, HEADER.tenant) || OPERATOR_TENANT,
  }
}

/** Cuts a parcel after `events` of its events, which are fewer than it has. */
function cut(parcel: Parcel, events: number): [Parcel, Parcel] {
  let at = -1
  for (let i = 0; i < events; i++) at = parcel.bytes.indexOf(SEPARATOR_BYTE, at + 1)
  const { place, bytes } = parcel
  return [
    { ...parcel, events, bytes: bytes.subarray(0, at) },
    { ...parcel, place: place + events, events: parcel.events - events, bytes: bytes.subarray(at + 1) },
  ]
}

/** The first `events` events of a list of parcels, and the rest; cuts the one that lies across. */
export function divide(parcels: Parcel[], events: number): [Parcel[], Parcel[]] {
  let left = events
  for (const [i, parcel] of parcels.entries()) {
    if (parcel.events <= left) {
      left -= parcel.events
      continue
    }
    if (left === 0) return [parcels.slice(0, i), parcels.slice(i)]
    const [head, tail] = cut(parcel, left)
    return [
      [...parcels.slice(0, i), head],
      [tail, ...parcels.slice(i + 1)],
    ]
  }
  return [parcels, []]
}

export const countEvents = (parcels: readonly Parcel[]): number =>
  parcels.reduce((count, parcel) => count + parcel.events, 0)

/** The messages that these parcels are from, each once. */
export const messagesOf = (parcels: readonly Parcel[]): Set<Msg> => new Set(parcels.map(({ from }) => from.message))

/** Notes that a parcel needs no more of us; acknowledges its message when it was the last part of it. */
export function settle({ from, events }: Parcel): void {
  from.open -= events
  if (from.open === 0) ack(from.message)
}

/** Why no event can be read from this text; empty when one can. */
export function unreadable(bytes: Buffer): string {
  try {
    const { id, source } = JSON.parse(utf8.decode(bytes))
    const named = typeof id === 'string' && typeof source === 'string' && id !== '' && source !== ''
    return named ? '' : 'the event has no id or no source'
  } catch (error) {
    return jsonProblem(error)
  }
}

const utf8 = new TextDecoder('utf-8', { fatal: true })

/** What names the events of a parcel; empty texts where they cannot be read. */
export function namesOf({ bytes }: Parcel): { id: string; source: string }[] {
  return bytes
    .toString()
    .split(SEPARATOR)
    .map((text) => {
      try {
        const { id, source } = JSON.parse(text)
        return { id: String(id), source: String(source) }
      } catch {
        return { id: '', source: '' }
      }
    })
}

/** One event, with all that is known of it. */
export type ReceivedEvent = {
  parcel: Parcel
  /** Empty where neither its payload nor a header tells it. */
  id: string
  source: string
  payload: string
  receivedMs: number
  publishedMs: number
  seq: number
  place: number
  deliveries: number
  traceparent: string
  tenant: string
}

/** A parcel of one event as that event. */
export function eventOf(parcel: Parcel): ReceivedEvent {
  const { message, seq, publishedMs, deliveries, events } = parcel.from
  const { receivedMs, traceparent, tenant, place, bytes } = parcel
  const named = unreadable(bytes) === '' ? namesOf(parcel)[0] : undefined
  const block = events === 1 ? headerBlock(message) : ''
  return {
    parcel,
    id: named?.id ?? headerOf(block, HEADER.id),
    source: named?.source ?? headerOf(block, HEADER.source),
    payload: bytes.toString(),
    receivedMs,
    publishedMs,
    seq,
    place,
    deliveries,
    traceparent,
    tenant,
  }
}

/** The headers of the message that are an event's own: in a message of several, `Millrace-Request` tells of others. */
export function headersOfEvent({ parcel: { from } }: ReceivedEvent): [string, string[]][] {
  const all = [...(from.message.headers ?? [])]
  return from.events === 1 ? all : all.filter(([name]) => name !== HEADER.request)
}
