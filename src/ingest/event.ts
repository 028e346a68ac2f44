/** An event on its way: how its message on the stream is written and read. */

import type { Msg } from 'nats'
import { deliveryInfo, headerBlock, headerOf } from '../broker/delivery.ts'
import { MillraceError } from '../errors.ts'

/**
 * Identity, arrival and trace travel as headers, so that workers sort, drop duplicates and measure without parsing a
 * payload. The payload itself is the event as CloudEvents 1.0 JSON.
 */
const HEADER = {
  id: 'Millrace-Id',
  source: 'Millrace-Source',
  received: 'Millrace-Received',
  commitReply: 'Millrace-Commit-Reply',
  traceparent: 'traceparent',
} as const

/** A validated event as JSON.parse gives it; its extensions stand beside these. */
export type EventObject = {
  id: string
  source: string
  type: string
  specversion?: string
  dataschema?: string
  data?: unknown
  data_base64?: string
  traceparent?: unknown
}

export type OutgoingEvent = {
  id: string
  source: string
  type: string
  /** CloudEvents 1.0 JSON of the event. */
  payload: string
  /** When the request arrived, in ms since 1970. */
  receivedMs: number
  traceparent: string
  /** Subject that hears of the commit; empty for none. */
  commitReply: string
}

export type ReceivedEvent = {
  message: Msg
  id: string
  source: string
  payload: string
  receivedMs: number
  /** JetStream's own store time, in ms since 1970. */
  publishedMs: number
  seq: number
  /** How often JetStream has delivered it, this time included. */
  deliveries: number
  traceparent: string
  commitReply: string
  /** Why it can be no event whatever Postgres says: not UTF-8, not JSON, without identity. Empty when it can. */
  unreadable: string
}

/**
 * The header lines of an event.
 * @throws MillraceError `invalid_event` where a value would break out of its line
 */
export function headerLines(event: OutgoingEvent): string {
  const { traceparent, id, source, receivedMs, commitReply } = event
  if (LINE_END.test(id) || LINE_END.test(source) || LINE_END.test(traceparent))
    throw new MillraceError('invalid_event', 'id, source and traceparent travel as headers and hold no line end')
  const reply = commitReply === '' ? '' : `\r\n${HEADER.commitReply}: ${commitReply}`
  return `\r\n${HEADER.traceparent}: ${traceparent}\r\n${HEADER.id}: ${id}\r\n${HEADER.source}: ${source}\r\n${HEADER.received}: ${receivedMs}${reply}`
}

const LINE_END = /[\r\n]/

const utf8 = new TextDecoder('utf-8', { fatal: true })

/** Reads a delivered message. Another producer may omit our headers; then the payload says which event it is. */
export function decode(message: Msg): ReceivedEvent {
  const { seq, deliveries, storedMs: publishedMs } = deliveryInfo(message)
  const block = headerBlock(message)
  const event: ReceivedEvent = {
    message,
    id: headerOf(block, HEADER.id),
    source: headerOf(block, HEADER.source),
    payload: '',
    receivedMs: Number(headerOf(block, HEADER.received) || publishedMs),
    publishedMs,
    seq,
    deliveries,
    traceparent: headerOf(block, HEADER.traceparent),
    commitReply: headerOf(block, HEADER.commitReply),
    unreadable: '',
  }
  try {
    event.payload = utf8.decode(message.data)
    if (event.id === '' || event.source === '') {
      const { id, source } = JSON.parse(event.payload)
      if (typeof id !== 'string' || typeof source !== 'string' || id === '' || source === '')
        event.unreadable = 'the event has no id or no source'
      else Object.assign(event, { id, source })
    }
  } catch (error) {
    event.unreadable = (error as Error).message
  }
  return event
}

/** The 32 hexadecimal digits of a W3C traceparent, or null. */
export const traceIdOf = (traceparent: string): string | null =>
  /^[0-9a-f]{2}-([0-9a-f]{32})-/.exec(traceparent)?.[1] ?? null

/** What names an event for ever, as one text: no stored id or source holds U+001E (insert.ts). */
export const identityOf = ({ source, id }: { source: string; id: string }): string => `${source}\x1e${id}`
