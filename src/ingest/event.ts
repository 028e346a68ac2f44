/** An event on its way into a message. */

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

/** The 32 hexadecimal digits of a W3C traceparent, or null. */
export const traceIdOf = (traceparent: string): string | null =>
  /^[0-9a-f]{2}-([0-9a-f]{32})-/.exec(traceparent)?.[1] ?? null

/** What names an event for ever, as one text. */
export const identityOf = ({ tenant, source, id }: { tenant: string; source: string; id: string }): string =>
  `${tenant}\x1e${source}\x1e${id}`
