/**
 * How events travel. One message of the stream is a parcel: the events of one request that share a type and a trace.
 * Measured against a message for each event, at requests of 100: the server, the client and the worker handle a hundredth
 * of the messages, which was half of all processor time (docs/architecture.md).
 *
 * A message, and so its format for other producers and consumers:
 * - subject `events.<type>`
 * - payload: CloudEvents 1.0 JSON texts, separated by U+001E where there are several. JSON never holds that character
 *   unescaped (RFC 8259, section 7), so one text is a message with one event.
 * - headers: `traceparent`, `Millrace-Received` (ms since 1970), `Millrace-Commit-Reply` (a subject that hears of the
 *   commit); with one event also `Millrace-Id` and `Millrace-Source`; all of them optional
 * - `Millrace-Origin: <seq>.<place>@<published ms>` on an event that a worker took out of its parcel: it keeps the name
 *   that it had there
 */

import type { Msg } from 'nats'
import { ack, deliveryInfo, headerBlock, headerOf } from '../broker/delivery.ts'
import { subjectOf } from '../broker/streams.ts'
import { jsonProblem } from '../secrets.ts'
import type { OutgoingEvent, ReceivedEvent } from './event.ts'

const HEADER = {
  id: 'Millrace-Id',
  source: 'Millrace-Source',
  received: 'Millrace-Received',
  commitReply: 'Millrace-Commit-Reply',
  origin: 'Millrace-Origin',
  traceparent: 'traceparent',
} as const

const SEPARATOR = '\x1e'
const SEPARATOR_BYTE = 0x1e

/** A quarter of the largest batch, so that batches fill well, and far below what a message may hold. */
const PARCEL_EVENTS_MAX = 250
const PARCEL_CHARS_MAX = 128 * 1024

/** A message to publish. */
export type OutgoingMessage = { subject: string; headerLines: string; payload: Buffer; events: number }

/** The events of one request in parcels, each in the order given. */
export function pack(events: OutgoingEvent[]): OutgoingEvent[][] {
  if (events.length === 1) return [events]
  const parcels: OutgoingEvent[][] = []
  const open = new Map<string, { parcel: OutgoingEvent[]; chars: number }>()
  for (const event of events) {
    const kind = `${event.type} ${event.traceparent}`
    const last = open.get(kind)
    const chars = (last?.chars ?? 0) + event.payload.length
    if (last !== undefined && last.parcel.length < PARCEL_EVENTS_MAX && chars <= PARCEL_CHARS_MAX) {
      last.parcel.push(event)
      last.chars = chars
    } else {
      const parcel = [event]
      parcels.push(parcel)
      open.set(kind, { parcel, chars: event.payload.length })
    }
  }
  return parcels
}

/** @param parcel  as `pack` makes them: not empty, of one type and trace */
export function messageOf(parcel: OutgoingEvent[]): OutgoingMessage {
  const first = parcel[0]!
  const one = parcel.length === 1
  let headerLines = line(HEADER.traceparent, first.traceparent) + line(HEADER.received, `${first.receivedMs}`)
  if (one) headerLines += line(HEADER.id, first.id) + line(HEADER.source, first.source)
  if (first.commitReply !== '') headerLines += line(HEADER.commitReply, first.commitReply)
  const payload = one ? first.payload : parcel.map((event) => event.payload).join(SEPARATOR)
  return { subject: subjectOf(first.type), headerLines, payload: Buffer.from(payload), events: parcel.length }
}

/** Nothing where the value would break out of its line, as the identity of another producer's event may: it is in the payload too. */
const line = (name: string, value: string) => (LINE_END.test(value) ? '' : `\r\n${name}: ${value}`)
const LINE_END = /[\r\n]/

/** A message as delivered, with what is still to be answered of it. */
type Delivery = {
  message: Msg
  seq: number
  /** JetStream's own store time, in ms since 1970. */
  publishedMs: number
  /** How often JetStream has delivered it, this time included. */
  deliveries: number
  receivedMs: number
  traceparent: string
  commitReply: string
  /** Events in the message. */
  events: number
  /** Events not yet settled; the message is acknowledged with the last of them. */
  open: number
}

/** Consecutive events of a delivery: all of them, or those that fell to one batch or one half of it. */
export type Parcel = {
  from: Delivery
  /** Of its first event in the message, counted from 0; on an event taken out of its parcel, its place there. */
  place: number
  events: number
  /** Its events, with separators between them. */
  bytes: Buffer
}

/** Reads a delivered message; nothing is parsed. */
export function receive(message: Msg): Parcel {
  const { seq, deliveries, storedMs } = deliveryInfo(message)
  const block = headerBlock(message)
  const bytes = Buffer.from(message.data.buffer, message.data.byteOffset, message.data.byteLength)
  let events = 1
  for (let at = bytes.indexOf(SEPARATOR_BYTE); at >= 0; at = bytes.indexOf(SEPARATOR_BYTE, at + 1)) events++
  const origin = events === 1 ? originOf(headerOf(block, HEADER.origin)) : undefined
  const publishedMs = origin?.publishedMs ?? storedMs
  const received = headerOf(block, HEADER.received)
  const from: Delivery = {
    message,
    seq: origin?.seq ?? seq,
    publishedMs,
    deliveries,
    receivedMs: received === '' ? publishedMs : Number(received),
    traceparent: headerOf(block, HEADER.traceparent),
    commitReply: headerOf(block, HEADER.commitReply),
    events,
    open: events,
  }
  return { from, place: origin?.place ?? 0, events, bytes }
}

function originOf(header: string): { seq: number; place: number; publishedMs: number } | undefined {
  if (header === '') return undefined
  const [seq, place, publishedMs] = /^(\d+)\.(\d+)@([\d.]+)$/.exec(header)?.slice(1).map(Number) ?? []
  return seq === undefined ? undefined : { seq, place: place!, publishedMs: publishedMs! }
}

/** Cuts a parcel after `events` of its events, which are fewer than it has. */
function cut(parcel: Parcel, events: number): [Parcel, Parcel] {
  let at = -1
  for (let i = 0; i < events; i++) at = parcel.bytes.indexOf(SEPARATOR_BYTE, at + 1)
  const { from, place, bytes } = parcel
  return [
    { from, place, events, bytes: bytes.subarray(0, at) },
    { from, place: place + events, events: parcel.events - events, bytes: bytes.subarray(at + 1) },
  ]
}

/** The first `events` events of a list of parcels, and the rest; cuts the one that lies across. */
export function divide(parcels: Parcel[], events: number): [Parcel[], Parcel[]] {
  const first: Parcel[] = []
  let left = events
  for (const [i, parcel] of parcels.entries()) {
    if (parcel.events > left) {
      if (left === 0) return [first, parcels.slice(i)]
      const [head, tail] = cut(parcel, left)
      return [
        [...first, head],
        [tail, ...parcels.slice(i + 1)],
      ]
    }
    first.push(parcel)
    left -= parcel.events
  }
  return [first, []]
}

export const countEvents = (parcels: readonly Parcel[]): number =>
  parcels.reduce((count, parcel) => count + parcel.events, 0)

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

/** A parcel of one event as an event; what its payload does not tell of its name, its headers may. */
export function eventOf(parcel: Parcel): ReceivedEvent {
  const { message, seq, publishedMs, receivedMs, deliveries, traceparent } = parcel.from
  const block = headerBlock(message)
  const named = unreadable(parcel.bytes) === '' ? namesOf(parcel)[0] : undefined
  return {
    message,
    id: named?.id ?? headerOf(block, HEADER.id),
    source: named?.source ?? headerOf(block, HEADER.source),
    payload: parcel.bytes.toString(),
    receivedMs,
    publishedMs,
    seq,
    place: parcel.place,
    deliveries,
    traceparent,
  }
}

/** A message for one event of a parcel alone, so that it can be refused, tried again and given up without the others. */
export function takeOut(parcel: Parcel): OutgoingMessage {
  const { message, seq, publishedMs, receivedMs, traceparent, commitReply } = parcel.from
  let headerLines =
    line(HEADER.origin, `${seq}.${parcel.place}@${publishedMs}`) +
    line(HEADER.traceparent, traceparent) +
    line(HEADER.received, `${receivedMs}`)
  const { id, source } = namesOf(parcel)[0]!
  if (id !== '') headerLines += line(HEADER.id, id) + line(HEADER.source, source)
  if (commitReply !== '') headerLines += line(HEADER.commitReply, commitReply)
  return { subject: message.subject, headerLines, payload: parcel.bytes, events: 1 }
}
