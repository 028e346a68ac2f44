/**
 * The events of one request on their way into the stream:
 * 1. admit   validates an event and notes its outcome, in order
 * 2. parts of some hundred are published while the rest of the body arrives; `room` holds the reader back
 * 3. settle  waits for the parts in flight
 * A part that fails marks its own events as failed, and the request ends there: what was accepted stays accepted.
 */

import { nowMs } from '../clock.ts'
import type { Config } from '../config.ts'
import { MillraceError } from '../errors.ts'
import { tooLarge } from '../http/body.ts'
import type { Caller } from '../http/caller.ts'
import type { Telemetry } from '../telemetry/telemetry.ts'
import { type RequestTrace, startSend } from '../telemetry/tracing.ts'
import type { OutgoingEvent } from './event.ts'
import type { Json, Problem } from './json.ts'
import type { AwaitedEvent, Kept, Outcome } from './outcomes.ts'
import type { Publisher } from './publish.ts'
import { type ValidateDeps, validateEvent } from './validate.ts'

/** Enough that a message is worth its cost, and few enough that the first are stored while the rest still comes in. */
const PART_EVENTS_MAX = 500
const PART_BYTES_MAX = 1024 * 1024
/** Enough to keep the publisher busy while more of the body is parsed; one when many requests do. */
const FLIGHTS_MAX = 4
const FLIGHTS_MAX_CROWDED = 1

const SOURCE_NOT_ALLOWED: Problem = {
  code: 'source_not_allowed',
  pointer: '/source',
  message: 'is no source that this API key may send events of',
}

export type Intake = {
  readonly receivedMs: number
  readonly caller: Caller
  readonly trace: RequestTrace
  readonly commitReply: string
  readonly outcomes: Outcome[]
  /** What ?wait=committed waits for; undefined when it does not. */
  readonly awaited: AwaitedEvent[] | undefined
  part: OutgoingEvent[]
  /** Where the part's outcomes stand in `outcomes`. */
  places: number[]
  bytes: number
  readonly flights: Set<Promise<void>>
  failure: unknown
}

export type IntakeDeps = ValidateDeps & { publisher: Publisher; telemetry: Telemetry }

/** @param commitReply  subject that hears of commits, for ?wait=committed; else empty */
export const startIntake = (caller: Caller, trace: RequestTrace, commitReply: string): Intake => ({
  receivedMs: nowMs(),
  caller,
  trace,
  commitReply,
  outcomes: [],
  awaited: commitReply === '' ? undefined : [],
  part: [],
  places: [],
  bytes: 0,
  flights: new Set(),
  failure: undefined,
})

/** @throws MillraceError `too_large` at the event that is one too many */
export function admit(deps: IntakeDeps, config: Config, intake: Intake, json: Json): void {
  const place = nextPlace(config, intake)
  const admission = validateEvent(deps, json, {
    receivedMs: intake.receivedMs,
    commitReply: intake.commitReply,
    eventBytesMax: config.EVENT_BYTES_MAX,
    tenant: intake.caller.tenant,
  })
  if ('status' in admission) {
    deps.telemetry.metrics.eventRejected(admission.code)
    intake.outcomes.push(admission)
    return
  }
  const { event, warning } = admission
  if (intake.caller.allowsSource?.(event.source) === false) {
    deps.telemetry.metrics.eventRejected(SOURCE_NOT_ALLOWED.code)
    intake.outcomes.push({ status: 'rejected', id: event.id, ...SOURCE_NOT_ALLOWED })
    return
  }
  intake.outcomes.push(
    warning === undefined ? { status: 'accepted', id: event.id } : { status: 'accepted', id: event.id, warning },
  )
  intake.part.push(event)
  intake.places.push(place)
  intake.bytes += event.payload.length
  if (intake.part.length >= PART_EVENTS_MAX || intake.bytes >= PART_BYTES_MAX) dispatch(deps, intake)
}

/** Notes an event that could not even be parsed. */
export function reject(deps: IntakeDeps, config: Config, intake: Intake, problem: Problem): void {
  nextPlace(config, intake)
  deps.telemetry.metrics.eventRejected(problem.code)
  intake.outcomes.push({ status: 'rejected', ...problem })
}

function nextPlace({ EVENTS_PER_REQUEST_MAX }: Config, { outcomes }: Intake): number {
  if (outcomes.length >= EVENTS_PER_REQUEST_MAX)
    throw tooLarge('EVENTS_PER_REQUEST_MAX', EVENTS_PER_REQUEST_MAX, 'The request has too many events')
  return outcomes.length
}

/**
 * Resolves when another part may be filled.
 * @throws what a part in flight failed with: there is no sense in reading on
 */
export async function room({ publisher }: IntakeDeps, intake: Intake): Promise<void> {
  const flightsMax = publisher.crowded() ? FLIGHTS_MAX_CROWDED : FLIGHTS_MAX
  while (intake.flights.size >= flightsMax && intake.failure === undefined) await Promise.race(intake.flights)
  if (intake.failure !== undefined) throw intake.failure
}

/** Publishes what is left and waits until the fate of every admitted event is known; never throws. */
export async function settle(deps: IntakeDeps, intake: Intake): Promise<void> {
  if (intake.part.length > 0) dispatch(deps, intake)
  await Promise.all(intake.flights)
}

function dispatch(deps: IntakeDeps, intake: Intake): void {
  const flight: Promise<void> = publishPart(deps, intake, intake.part, intake.places).finally(() =>
    intake.flights.delete(flight),
  )
  intake.flights.add(flight)
  intake.part = []
  intake.places = []
  intake.bytes = 0
}

/** Under one PRODUCER span, which each event without a trace of its own carries along. */
async function publishPart(
  { publisher, telemetry: { metrics, tracing } }: IntakeDeps,
  intake: Intake,
  part: OutgoingEvent[],
  places: number[],
): Promise<void> {
  const send = startSend(tracing, intake.trace, part.length)
  for (const event of part) if (event.traceparent === '') event.traceparent = send.traceparent()
  try {
    // A part that waited for nothing must not follow one that failed: the client reads the outcomes as a prefix.
    if (intake.failure !== undefined) throw intake.failure
    await publisher.publish(part)
    metrics.eventsAccepted(part.length)
    send.end()
    if (intake.awaited !== undefined)
      for (const [i, { tenant, source, id, seq, place }] of part.entries())
        intake.awaited.push({ tenant, source, id, seq, place, outcome: intake.outcomes[places[i]!] as Kept })
  } catch (error) {
    intake.failure ??= error
    const { code, message } = error instanceof MillraceError ? error : { code: 'internal', message: 'not published' }
    for (const place of places)
      intake.outcomes[place] = { status: 'failed', id: (intake.outcomes[place] as Kept).id, code, message }
    send.end(error)
  }
}
