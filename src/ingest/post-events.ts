/**
 * POST /v1/events, from the request to the answer:
 * 1. refuse at once what cannot be stored: JetStream away or too far behind
 * 2. read the body in its form (content-mode.ts), admitting event by event (intake.ts)
 * 3. wait for the stream, and with ?wait=committed for the rows (commit-wait.ts)
 * 4. answer with an outcome per event, in order
 */

import { Readable } from 'node:stream'
import { Router } from '@koa/router'
import type { Context } from 'koa'
import type { Config } from '../config.ts'
import { describe, MillraceError } from '../errors.ts'
import { type BodyMemory, createBodyMemory, decodedChunks, readWhole, tooLarge } from '../http/body.ts'
import type { RequestState } from '../http/caller.ts'
import { errorBody, errorHeaders, statusOf } from '../http/errors.ts'
import { parameterReader, type Routes } from '../http/routes.ts'
import type { CommitWait } from './commit-wait.ts'
import { contentModeOf, eventOfBinary } from './content-mode.ts'
import type { Depth } from './depth.ts'
import { admit, type Intake, type IntakeDeps, reject, room, settle, startIntake } from './intake.ts'
import { decodeText, type Json, type Problem, parseJson } from './json.ts'
import { createLineSplitter } from './lines.ts'
import type { Log } from './log.ts'
import { type Counts, countOutcomes, type Outcome } from './outcomes.ts'
import { postEventsOperation, postEventsParameters } from './post-events.openapi.ts'
import { tooLargeEvent } from './validate.ts'

export type PostEventsDeps = IntakeDeps & { depth: Depth; commits: CommitWait; log: Log }
type Reading = PostEventsDeps & { memory: BodyMemory }

/** Outcomes are turned into text this many at a time, so that the answer to a huge request is never held twice. */
const OUTCOMES_PER_CHUNK = 1_000

export function postEventsRoutes(deps: PostEventsDeps, config: Config): Routes {
  const router = new Router<RequestState>()
  const reading: Reading = { ...deps, memory: createBodyMemory(config) }
  const readQuery = parameterReader<{ wait?: 'committed' }>(postEventsParameters)

  router.post('/v1/events', async (ctx) => {
    const wait = ctx.querystring === '' ? undefined : readQuery(ctx.query).wait
    deps.depth.refuseWhenBehind()
    const heardBefore = deps.commits.heard()
    const intake = startIntake(ctx.state.caller, ctx.state.trace, wait === 'committed' ? deps.commits.reply : '')
    try {
      await readEvents(reading, config, ctx, intake)
    } catch (error) {
      intake.failure ??= error
    }
    await settle(deps, intake)
    if (intake.failure !== undefined) return answerFailure(deps, ctx, intake)
    if (intake.awaited !== undefined && intake.awaited.length > 0)
      await deps.commits.wait(intake.awaited, heardBefore, closing(ctx))
    answer(ctx, intake)
  })

  return { router, paths: { '/v1/events': { post: postEventsOperation } } }
}

async function readEvents(deps: Reading, config: Config, ctx: Context, intake: Intake): Promise<void> {
  const mode = contentModeOf(ctx.req.headers)
  if (mode === 'ndjson') return readLines(deps, config, ctx, intake)
  const limits =
    mode === 'binary'
      ? { bytesMax: config.EVENT_BYTES_MAX, limit: 'EVENT_BYTES_MAX' }
      : { bytesMax: config.JSON_BYTES_MAX, limit: 'JSON_BYTES_MAX' }
  const body = await readWhole(ctx.req, { ...limits, memory: deps.memory }, config)
  try {
    if (mode === 'binary') {
      intake.caller.spend?.(1)
      return admit(deps, config, intake, eventOfBinary(ctx.req.headers, body))
    }
    const json = parseJson(decodeText(body))
    if (!Array.isArray(json.value)) {
      if (mode === 'batch') throw new MillraceError('invalid_request', 'A CloudEvents batch is a JSON array')
      intake.caller.spend?.(1)
      return admit(deps, config, intake, json)
    }
    if (mode === 'structured') throw new MillraceError('invalid_request', 'A structured CloudEvent is one JSON object')
    await admitAll(deps, config, intake, json, json.value)
  } finally {
    deps.memory.give(body.length)
  }
}

async function admitAll(
  deps: Reading,
  config: Config,
  intake: Intake,
  { exact, suspect }: Json,
  values: unknown[],
): Promise<void> {
  if (values.length === 0) throw new MillraceError('invalid_request', 'The array has no event')
  // Known before the first is published, so none is.
  if (values.length > config.EVENTS_PER_REQUEST_MAX)
    throw tooLarge('EVENTS_PER_REQUEST_MAX', config.EVENTS_PER_REQUEST_MAX, 'The request has too many events')
  intake.caller.spend?.(values.length)
  for (let i = 0; i < values.length; i++) {
    admit(deps, config, intake, { value: values[i], exact: (exact as unknown[] | undefined)?.[i], suspect })
    if (intake.flights.size > 0) await room(deps, intake)
  }
}

async function readLines(deps: Reading, config: Config, ctx: Context, intake: Intake): Promise<void> {
  const splitter = createLineSplitter(config.EVENT_BYTES_MAX)
  for await (const chunk of decodedChunks(ctx.req, config)) {
    for (const line of splitter.push(chunk)) {
      admitLine(deps, config, intake, line)
      if (intake.flights.size > 0) await room(deps, intake)
    }
  }
  const last = splitter.end()
  if (last !== undefined) admitLine(deps, config, intake, last)
  if (intake.outcomes.length === 0) throw new MillraceError('invalid_request', 'The body has no event')
}

/** @param line  null for one that was longer than an event may be */
function admitLine(deps: Reading, config: Config, intake: Intake, line: Uint8Array | null): void {
  intake.caller.spend?.(1)
  const json = line === null ? tooLargeEvent(config.EVENT_BYTES_MAX) : readLine(line)
  if ('code' in json) reject(deps, config, intake, json)
  else admit(deps, config, intake, json)
}

function readLine(line: Uint8Array): Json | Problem {
  try {
    return parseJson(decodeText(line))
  } catch (error) {
    const { message, details } = error as MillraceError
    return { code: String(details.reason), pointer: '', message }
  }
}

/** Aborts when the client is gone: then nobody waits. */
function closing(ctx: Context): AbortSignal {
  const gone = new AbortController()
  ctx.res.once('close', () => gone.abort())
  return gone.signal
}

function answer(ctx: Context, intake: Intake): void {
  const counts = countOutcomes(intake.outcomes)
  const kept = intake.outcomes.length - counts.rejected
  ctx.status = kept === 0 ? refusalStatus(intake.outcomes) : counts.accepted === 0 ? 200 : 202
  write(ctx, summaryOf(counts, kept), intake.outcomes)
}

/** All bad is 400; and 413 where size was all that was wrong. */
const refusalStatus = (outcomes: Outcome[]): number =>
  outcomes.every((outcome) => outcome.status === 'rejected' && outcome.code === 'event_too_large') ? 413 : 400

/** Says which events were accepted before the failure; those after the last outcome were not looked at. */
function answerFailure({ log }: PostEventsDeps, ctx: Context, intake: Intake): void {
  if (intake.outcomes.length === 0) throw intake.failure
  const counts = countOutcomes(intake.outcomes)
  ctx.status = statusOf(intake.failure)
  if (ctx.status === 500) log.error({ error: describe(intake.failure) }, 'failed in the middle of a request')
  ctx.set(errorHeaders(intake.failure))
  write(
    ctx,
    { ...errorBody(intake.failure), ...summaryOf(counts, counts.accepted), failed: counts.failed },
    intake.outcomes,
  )
}

const summaryOf = ({ inserted, duplicate, dead_lettered, rejected }: Counts, accepted: number): object =>
  inserted + duplicate + dead_lettered === 0
    ? { accepted, rejected }
    : { accepted, rejected, inserted, duplicate, dead_lettered }

function write(ctx: Context, summary: object, outcomes: Outcome[]): void {
  ctx.type = 'application/json'
  ctx.body =
    outcomes.length <= OUTCOMES_PER_CHUNK
      ? JSON.stringify({ ...summary, events: outcomes })
      : Readable.from(chunksOf(summary, outcomes))
}

function* chunksOf(summary: object, outcomes: Outcome[]): Generator<string> {
  yield `${JSON.stringify(summary).slice(0, -1)},"events":[`
  for (let i = 0; i < outcomes.length; i += OUTCOMES_PER_CHUNK)
    yield `${i > 0 ? ',' : ''}${JSON.stringify(outcomes.slice(i, i + OUTCOMES_PER_CHUNK)).slice(1, -1)}`
  yield ']}'
}
