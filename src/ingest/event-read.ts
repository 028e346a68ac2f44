/**
 * `GET /v1/events` and `GET /v1/events/:source/:id`: committed events. Postgres writes their JSON, so that numbers come
 * back as they were sent, beyond double precision too.
 */

import { Router } from '@koa/router'
import { sql } from 'drizzle-orm'
import { type Database, inTransaction, sqlStateOf } from '../db/connect.ts'
import { MillraceError } from '../errors.ts'
import type { RequestState } from '../http/caller.ts'
import { describeParameters, describeResponses, parameterReader, type Routes } from '../http/routes.ts'
import { eventSchema } from './validate.ts'

/** A filter that no index serves reads row after row; past this a narrower range is the better question. */
const READ_MS_MAX = 5_000
const QUERY_CANCELED = '57014'

const text = eventSchema.properties
const listParameters = {
  type: { description: 'only this type', schema: text.type },
  source: { description: 'only this source', schema: text.source },
  subject: { description: 'only this subject', schema: text.subject },
  trace_id: { description: 'only this W3C trace', schema: { type: 'string', pattern: '^[0-9a-f]{32}$' } },
  from: { description: 'published at this time or later', schema: text.time },
  to: { description: 'published before this time', schema: text.time },
  order: { description: 'newest first is desc', schema: { enum: ['asc', 'desc'], default: 'desc' } },
  limit: { description: 'events per page', schema: { type: 'integer', minimum: 1, maximum: 1_000, default: 100 } },
  cursor: {
    description: '`next` of the page before',
    schema: { type: 'string', maxLength: 100, pattern: '^[0-9]{1,16}-[0-9]{1,16}-[0-9]{1,9}$' },
  },
}
type ListQuery = {
  type?: string
  source?: string
  subject?: string
  trace_id?: string
  from?: string
  to?: string
  order: 'asc' | 'desc'
  limit: number
  cursor?: string
}
const keyParameters = {
  source: { description: 'percent-encoded; slashes as %2F', schema: text.source },
  id: { description: 'percent-encoded', schema: text.id },
}

/** One stored event as the API shows it. `time` goes back in UTC, to the microsecond that Postgres keeps. */
const shown = sql`
  jsonb_build_object(
    'event',
    jsonb_build_object('specversion', '1.0', 'id', id, 'source', source, 'type', type)
      || jsonb_strip_nulls(jsonb_build_object(
           'subject', subject, 'time', to_char(time at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
           'datacontenttype', datacontenttype, 'dataschema', dataschema, 'data_base64', data_base64))
      || coalesce(extensions, '{}')
      || case when data is null then '{}' else jsonb_build_object('data', data) end,
    'trace_id', replace(trace_id::text, '-', ''),
    'received_at', to_char(received_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
    'published_at', to_char(published_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
    'stream_seq', stream_seq,
    'batch_id', batch_id
  )::text as shown`

/** Unset filters are null and fall away; the keyset of the cursor is the index `events_by_time`. */
const filters = (tenant: string, query: ListQuery) => sql`
  tenant = ${tenant}
  and (${query.type ?? null}::text is null or type = ${query.type ?? null})
  and (${query.source ?? null}::text is null or source = ${query.source ?? null})
  and (${query.subject ?? null}::text is null or subject = ${query.subject ?? null})
  and (${query.trace_id ?? null}::uuid is null or trace_id = ${query.trace_id ?? null}::uuid)
  and published_at >= coalesce(${query.from ?? null}::timestamptz, '-infinity')
  and published_at < coalesce(${query.to ?? null}::timestamptz, 'infinity')`

type Row = { shown: string; published_us: string; stream_seq: string; stream_place: number }

export function eventReadRoutes({ db }: { db: Database }): Routes {
  const router = new Router<RequestState>()
  const readQuery = parameterReader<ListQuery>(listParameters)
  const readKey = parameterReader<{ source: string; id: string }>(keyParameters)

  router.get('/v1/events', async (ctx) => {
    const query = readQuery(ctx.query)
    const rows = await listEvents(db, ctx.state.caller.tenant, query)
    const last = rows.length > query.limit ? rows[query.limit - 1]! : undefined
    const next = last === undefined ? null : `${last.published_us}-${last.stream_seq}-${last.stream_place}`
    const events = rows.slice(0, query.limit).map((row) => row.shown)
    ctx.type = 'application/json'
    ctx.body = `{"events":[${events.join(',')}],"next":${JSON.stringify(next)}}`
  })

  router.get('/v1/events/:source/:id', async (ctx) => {
    const { tenant } = ctx.state.caller
    const { source, id } = readKey(ctx.params)
    const { rows } = await db.execute<Row>(sql`
      select ${shown} from event_ids join events using (published_at, stream_seq, stream_place)
      where key = event_key(${tenant}, ${source}, ${id})`)
    if (rows[0] === undefined) throw await missing(db, tenant, source, id)
    ctx.type = 'application/json'
    ctx.body = rows[0].shown
  })

  return { router, paths }
}

/** Its identity outlives its row: retention has archived that, or is about to. */
async function missing(db: Database, tenant: string, source: string, id: string): Promise<MillraceError> {
  const { rows } = await db.execute<{ published_at: string; files: string[] }>(sql`
    select to_char(published_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as published_at,
      array(select file from event_archives
            where coalesce(lower, '-infinity') <= published_at and published_at < upper and file is not null order by n) as files
    from event_ids where key = event_key(${tenant}, ${source}, ${id})`)
  if (rows[0] === undefined)
    return new MillraceError('not_found', 'No such event is committed; it may wait in the stream or be a dead letter')
  const { published_at, files } = rows[0]
  return new MillraceError(
    'archived',
    'The event is older than events are kept; its identity stays, so sent again it is a duplicate',
    {
      details: { published_at, archives: files },
    },
  )
}

/** One row more than the limit, which tells whether there is a next page. */
async function listEvents(db: Database, tenant: string, query: ListQuery): Promise<Row[]> {
  const [afterUs, afterSeq, afterPlace] = query.cursor?.split('-') ?? [null, null, null]
  const after = sql`to_timestamp(0) + ${afterUs}::bigint * interval '1 microsecond', ${afterSeq}::bigint,
    ${afterPlace}::int`
  const columns = sql`${shown}, (extract(epoch from published_at) * 1000000)::bigint as published_us, stream_seq,
    stream_place`
  const limit = query.limit + 1
  const page =
    query.order === 'asc'
      ? sql`select ${columns} from events
            where ${filters(tenant, query)} and (${afterSeq}::bigint is null or (published_at, stream_seq, stream_place) > (${after}))
            order by published_at, stream_seq, stream_place limit ${limit}`
      : sql`select ${columns} from events
            where ${filters(tenant, query)} and (${afterSeq}::bigint is null or (published_at, stream_seq, stream_place) < (${after}))
            order by published_at desc, stream_seq desc, stream_place desc limit ${limit}`
  try {
    return await inTransaction(db, async (tx) => {
      await tx.execute(sql`select set_config('statement_timeout', ${String(READ_MS_MAX)}, true)`)
      return (await tx.execute<Row>(page)).rows
    })
  } catch (error) {
    if (sqlStateOf(error) !== QUERY_CANCELED) throw error
    throw new MillraceError('overloaded', `The search took longer than ${READ_MS_MAX} ms; narrow it by from and to`, {
      cause: error,
    })
  }
}

const storedEvent = {
  type: 'object',
  required: ['event', 'trace_id', 'received_at', 'published_at', 'stream_seq', 'batch_id'],
  properties: {
    event: { type: 'object', required: ['specversion', 'id', 'source', 'type'], description: 'CloudEvents 1.0' },
    trace_id: { type: ['string', 'null'], description: 'W3C trace id' },
    received_at: { type: 'string', format: 'date-time' },
    published_at: { type: 'string', format: 'date-time' },
    stream_seq: { type: 'integer' },
    batch_id: { type: 'string', format: 'uuid' },
  },
}
const problem = { $ref: '#/components/schemas/Error' }

const paths = {
  '/v1/events': {
    get: {
      summary: 'Searches committed events',
      parameters: describeParameters('query', listParameters),
      responses: describeResponses({
        200: [
          'a page',
          {
            type: 'object',
            required: ['events', 'next'],
            properties: {
              events: { type: 'array', items: storedEvent },
              next: { type: ['string', 'null'], description: 'cursor of the next page' },
            },
          },
        ],
        400: ['a parameter is wrong', problem],
        503: ['the search took too long, or Postgres is away', problem],
      }),
    },
  },
  '/v1/events/{source}/{id}': {
    get: {
      summary: 'One committed event',
      parameters: describeParameters('path', keyParameters),
      responses: describeResponses({
        200: ['the event', storedEvent],
        400: ['source or id is wrong', problem],
        404: ['not committed', problem],
        410: ['committed once, and archived since: older than events are kept', problem],
        503: ['Postgres is away', problem],
      }),
    },
  },
}
