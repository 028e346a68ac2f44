/** An event on its way: before its message, and after it where it stands alone. */

import type { Msg } from 'nats'

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
  /** Whose it is. */
  tenant: string
  /** Its message, and its place there; 0 until the publisher has stored it. */
  seq: number
  place: number
}

/** An event that has a message to itself. */
export type ReceivedEvent = {
  message: Msg
  id: string
  source: string
  payload: string
  receivedMs: number
  /** JetStream's own store time, in ms since 1970. */
  publishedMs: number
  seq: number
  /** Its place in the message `seq`: not 0 where it was taken out of a parcel. */
  place: number
  /** How often JetStream has delivered it, this time included. */
  deliveries: number
  traceparent: string
  tenant: string
}

/** The 32 hexadecimal digits of a W3C traceparent, or null. */
export const traceIdOf = (traceparent: string): string | null =>
  /^[0-9a-f]{2}-([0-9a-f]{32})-/.exec(traceparent)?.[1] ?? null

/** What names an event for ever, as one text. */
export const identityOf = ({ tenant, source, id }: { tenant: string; source: string; id: string }): string =>
  `${tenant}\x1e${source}\x1e${id}`
