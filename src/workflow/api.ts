/** `/v1/workflows`, `/v1/runs` and `/v1/dead-runs`: start, look, steer. */

import { Router } from '@koa/router'
import type { Context } from 'koa'
import { recordActOn } from '../access/audit.ts'
import type { Config } from '../config.ts'
import { MillraceError } from '../errors.ts'
import type { RequestState } from '../http/caller.ts'
import { jsonBodies, type ReadBody } from '../http/json-body.ts'
import { bodyReader, parameterReader, type Routes } from '../http/routes.ts'
import {
  historyParameters,
  idParameters,
  type ListQuery,
  listParameters,
  nameParameters,
  type ReplayBody,
  type RestartBody,
  replayBody,
  restartBody,
  resultParameters,
  runPaths,
  type StartBody,
  signalParameters,
  startBody,
} from './api.openapi.ts'
import { startDefined } from './client.ts'
import { cancelRuns, resumeRun, signalRun, terminateRun } from './control.ts'
import { findDefinition, listDefinitions } from './definitions.ts'
import { actingFor, type Engine } from './engine.ts'
import { replayRuns, restartFrom } from './replay.ts'
import { getRun, listRuns, readHistory } from './runs.ts'
import { VALUE_LIMIT } from './values.ts'

const readName = parameterReader<{ name: string }>(nameParameters)
const readId = parameterReader<{ id: string }>(idParameters)
const readSignal = parameterReader<{ id: string; signal: string }>(signalParameters)
const readList = parameterReader<ListQuery>(listParameters)
const readHistoryQuery = parameterReader<{ after: number; limit: number }>(historyParameters)
const readResultQuery = parameterReader<{ wait: number }>(resultParameters)
const readStart = bodyReader<StartBody>(startBody)
const readRestart = bodyReader<RestartBody>(restartBody)
const readReplay = bodyReader<ReplayBody>(replayBody)

/** @param engine  need not have loaded any workflow */
export function workflowRoutes(engine: Engine, config: Config): Routes {
  const router = new Router<RequestState>()
  const readBody = jsonBodies(config, VALUE_LIMIT)
  startRoutes(router, engine, readBody)
  lookRoutes(router, engine)
  steerRoutes(router, engine, readBody)
  return { router, paths: runPaths }
}

const controlFor = (engine: Engine, ctx: { state: RequestState }) => actingFor(engine, ctx.state.caller).control

function startRoutes(router: Router<RequestState>, engine: Engine, readBody: ReadBody): void {
  const { pool } = engine.control

  router.get('/v1/workflows', async (ctx) => {
    ctx.body = { workflows: await listDefinitions(pool) }
  })

  router.post('/v1/workflows/:name/runs', async (ctx) => {
    const { name } = readName(ctx.params)
    const { input, version, ...options } = readStart(await readBody(ctx, {}))
    refuseUnstorable(options.attributes)
    const definition = await findDefinition(pool, name, version ?? null)
    const { traceparent } = ctx.state.trace
    const acting = actingFor(engine, ctx.state.caller)
    const { runId, id } = await startDefined(acting, definition, input, { ...options, traceparent })
    await recordActOn(pool, ctx.state.caller, { action: 'run.start', target: runId, detail: { workflow: name, id } })
    ctx.status = 201
    ctx.set('Location', `/v1/runs/${runId}`)
    ctx.body = { runId, id }
  })
}

function lookRoutes(router: Router<RequestState>, engine: Engine): void {
  const { pool } = engine.control

  router.get('/v1/runs', async (ctx) => {
    const { status, attributes, ...filter } = readList(ctx.query)
    ctx.body = await listRuns(controlFor(engine, ctx), {
      ...filter,
      ...(status === undefined ? {} : { status: status.split(',') }),
      ...(attributes === undefined ? {} : { attributes: readAttributes(attributes) }),
    })
  })

  router.get('/v1/runs/:id', async (ctx) => {
    ctx.body = await getRun(controlFor(engine, ctx), readId(ctx.params).id)
  })

  router.get('/v1/runs/:id/history', async (ctx) => {
    const page = readHistoryQuery(ctx.query)
    const { runId } = await getRun(controlFor(engine, ctx), readId(ctx.params).id)
    ctx.body = { runId, ...(await readHistory(pool, runId, page)) }
  })

  router.get('/v1/runs/:id/state', async (ctx) => {
    const { runId, status, state } = await getRun(controlFor(engine, ctx), readId(ctx.params).id)
    ctx.body = { runId, status, state }
  })

  router.get('/v1/runs/:id/result', async (ctx) => {
    const { wait } = readResultQuery(ctx.query)
    const { runId, status } = await getRun(controlFor(engine, ctx), readId(ctx.params).id)
    const open = OPEN.has(status)
    const ended = open && wait === 0 ? null : await resultWithin(engine, runId, open ? wait * 1_000 : READ_MS_MAX, ctx)
    ctx.status = ended === null ? 202 : 200
    ctx.body = { runId, ...(ended ?? { status }) }
  })
}

const OPEN = new Set(['queued', 'running', 'waiting', 'stuck'])
/** For reading the end of a run that has ended. */
const READ_MS_MAX = 5_000

/** @returns null when the run has not ended within `waitMs`, or the client has gone */
async function resultWithin(engine: Engine, runId: string, waitMs: number, ctx: Context) {
  const gone = new AbortController()
  ctx.res.once('close', () => gone.abort())
  const signal = AbortSignal.any([gone.signal, AbortSignal.timeout(waitMs)])
  try {
    return { status: 'completed', output: (await engine.results.wait(runId, signal)) ?? null }
  } catch (error) {
    if (signal.aborted) return null
    if (!(error instanceof MillraceError) || error.code === 'unavailable') throw error
    const { code, name, message, details } = error
    const status = code === 'cancelled' || code === 'terminated' ? code : 'failed'
    return { status, error: { name, message, code, details } }
  }
}

function steerRoutes(router: Router<RequestState>, engine: Engine, readBody: ReadBody): void {
  router.post('/v1/dead-runs/replay', async (ctx) => {
    const options = readReplay(await readBody(ctx, {}))
    refuseUnstorable(options.attributes)
    ctx.body = await replayRuns(controlFor(engine, ctx), options)
  })

  router.post('/v1/runs/:id/signals/:signal', async (ctx) => {
    const { id, signal } = readSignal(ctx.params)
    const payload = await readBody(ctx)
    const { runId } = await getRun(controlFor(engine, ctx), id)
    await signalRun(controlFor(engine, ctx), runId, signal, payload)
    ctx.status = 202
    ctx.body = { runId }
  })

  router.post('/v1/runs/:id/cancel', async (ctx) => {
    const { runId, status } = await getRun(controlFor(engine, ctx), readId(ctx.params).id)
    if ((await cancelRuns(controlFor(engine, ctx), [runId])).length === 0)
      throw new MillraceError('conflict', `Run ${runId} is ${status}, which is no longer cancelled`)
    ctx.status = 202
    ctx.body = { runId }
  })

  router.post('/v1/runs/:id/terminate', async (ctx) => {
    const { runId } = await getRun(controlFor(engine, ctx), readId(ctx.params).id)
    await terminateRun(controlFor(engine, ctx), runId)
    ctx.body = { runId }
  })

  router.post('/v1/runs/:id/resume', async (ctx) => {
    const { runId } = await getRun(controlFor(engine, ctx), readId(ctx.params).id)
    await resumeRun(controlFor(engine, ctx), runId)
    ctx.status = 202
    ctx.body = { runId }
  })

  router.post('/v1/runs/:id/restart', async (ctx) => {
    const { id } = readId(ctx.params)
    const { from, version } = readRestart(await readBody(ctx, {}))
    const run = await getRun(controlFor(engine, ctx), id)
    const runId = await restartFrom(controlFor(engine, ctx), run.runId, { from, version })
    ctx.status = 201
    ctx.set('Location', `/v1/runs/${runId}`)
    ctx.body = { runId, id: run.id ?? runId }
  })
}

/** `tenant:acme,attempt:2` */
const readAttributes = (text: string): Record<string, string> =>
  Object.fromEntries(
    text.split(',').map((pair) => [pair.slice(0, pair.indexOf(':')), pair.slice(pair.indexOf(':') + 1)]),
  )

/** Attributes are jsonb, so that they can be searched; jsonb takes neither NUL nor half a surrogate pair. */
export function refuseUnstorable(attributes: object | undefined): void {
  for (const text of Object.entries(attributes ?? {}).flat())
    if (typeof text === 'string' && (text.includes('\u0000') || !text.isWellFormed()))
      throw new MillraceError('invalid_request', 'Attributes cannot hold NUL or half a surrogate pair')
}
