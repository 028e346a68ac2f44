/** `/v1/dead-letters`: what `millrace dead-letters` does, over HTTP. */

import { Router } from '@koa/router'
import type { Context } from 'koa'
import type { Config } from '../config.ts'
import { MillraceError } from '../errors.ts'
import { createBodyMemory, readWhole } from '../http/body.ts'
import type { Caller, RequestState } from '../http/caller.ts'
import { bodyReader, parameterReader, type Routes } from '../http/routes.ts'
import {
  type DiscardBody,
  discardSchema,
  type FilterQuery,
  idParameter,
  type ListQuery,
  listParameters,
  paths,
  type ReplayBody,
  replaySchema,
  stateParameters,
} from './dead-letter-routes.openapi.ts'
import {
  countCauses,
  countOpen,
  type LetterFilter,
  type LetterState,
  listLetters,
  showLetter,
} from './dead-letter-search.ts'
import { decodeText, type Json, parseJson } from './json.ts'
import { discardLetters, type LetterOutcome, type ReplayDeps, readPatch, replayLetters } from './replay.ts'

/** A list of ids or a patch fits many times over. */
const BODY_BYTES_MAX = 1024 * 1024
const YEAR_1_MS = Date.parse('0001-01-01T00:00:00Z')
const YEAR_10_000_MS = Date.parse('+010000-01-01T00:00:00Z')

export function deadLetterRoutes(deps: Omit<ReplayDeps, 'config'>, config: Config): Routes {
  const router = new Router<RequestState>()
  const memory = createBodyMemory(config)
  const readList = parameterReader<ListQuery>(listParameters)
  const readFilter = parameterReader<FilterQuery & { state: string }>(stateParameters)
  const readId = parameterReader<{ id: string }>(idParameter)
  const readReplay = bodyReader<ReplayBody>(replaySchema)
  const readDiscard = bodyReader<DiscardBody>(discardSchema)

  async function readBody(ctx: Context): Promise<Json & { value: Record<string, unknown> }> {
    const body = await readWhole(
      ctx.req,
      { bytesMax: BODY_BYTES_MAX, limit: 'DEAD_LETTER_BODY_BYTES_MAX', memory },
      config,
    )
    memory.give(body.length)
    const json = parseJson(decodeText(body))
    const { value } = json
    if (typeof value !== 'object' || value === null || Array.isArray(value))
      throw new MillraceError('invalid_request', 'Send a JSON object')
    return { ...json, value: { ...value } }
  }

  router.get('/v1/dead-letters', async (ctx) => {
    const { state, limit, before, ...query } = readList(ctx.query)
    const letters = await listLetters(deps.db, filterOf(ctx, query), { state: stateOf(state), limit, before })
    ctx.body = { dead_letters: letters, next: letters.length === limit ? letters.at(-1)!.seq : null }
  })

  router.get('/v1/dead-letters/causes', async (ctx) => {
    const { state, ...query } = readFilter(ctx.query)
    ctx.body = { causes: await countCauses(deps.db, filterOf(ctx, query), stateOf(state)) }
  })

  router.get('/v1/dead-letters/:id', async (ctx) => {
    const letter = await showLetter(deps.db, ctx.state.caller.tenant, readId(ctx.params).id)
    if (letter === undefined) throw new MillraceError('not_found', 'There is no such dead letter')
    ctx.body = letter
  })

  router.post('/v1/dead-letters/actions/replay', async (ctx) => {
    const { value, exact } = await readBody(ctx)
    const { patch: given, ...body } = readReplay(value)
    const patch =
      given === undefined ? undefined : readPatch(JSON.stringify((exact as ReplayBody | undefined)?.patch ?? given))
    const how = { ...handlingOf(ctx.state.caller, body), patch, request: ctx.state.trace }
    ctx.body = await gather(deps, how.filter, replayLetters({ ...deps, config }, how))
  })

  router.post('/v1/dead-letters/actions/discard', async (ctx) => {
    const { reason, ...body } = readDiscard((await readBody(ctx)).value)
    const how = { ...handlingOf(ctx.state.caller, body), reason }
    ctx.body = await gather(deps, how.filter, discardLetters(deps, how))
  })

  return { router, paths }
}

type Asked = { state: RequestState }

const stateOf = (name: string) => (name === 'all' ? undefined : (name as LetterState))

const filterOf = ({ state: { caller } }: Asked, { id, ...rest }: FilterQuery): LetterFilter =>
  withInstants({ tenant: caller.tenant, ...rest, ...(id === undefined ? {} : { ids: [id] }) })

/** RFC 3339 has times that Postgres has not: year 0, offsets of a day. */
function withInstants(filter: LetterFilter): LetterFilter {
  for (const name of ['from', 'to'] as const) {
    const given = filter[name]
    if (given === undefined) continue
    const date = new Date(given)
    if (!(date.getTime() >= YEAR_1_MS && date.getTime() < YEAR_10_000_MS))
      throw new MillraceError('invalid_request', `Parameter ${name} is no time between the years 1 and 9999`)
    filter[name] = date.toISOString()
  }
  return filter
}

function handlingOf(caller: Caller, { all, by, dry_run: dryRun, limit, ...filter }: Omit<ReplayBody, 'patch'>) {
  if (!all && Object.keys(filter).length === 0)
    throw new MillraceError('invalid_request', 'Name the dead letters by ids or filters, or say "all": true')
  return { filter: withInstants({ tenant: caller.tenant, ...filter }), by: caller, onBehalfOf: by, dryRun, limit }
}

/** Runs to the end before it answers; `remaining` says whether another request is worth while. */
async function gather(deps: Pick<ReplayDeps, 'db'>, filter: LetterFilter, lots: AsyncGenerator<LetterOutcome[]>) {
  const outcomes: LetterOutcome[] = []
  for await (const lot of lots) outcomes.push(...lot)
  const counts: Record<string, number> = {}
  for (const { outcome } of outcomes) counts[outcome] = (counts[outcome] ?? 0) + 1
  return { counts, outcomes, remaining: await countOpen(deps.db, filter) }
}
