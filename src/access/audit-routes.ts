/** `GET /v1/audit`: who did what. A key of the operators' tenant sees all tenants. */

import { Router } from '@koa/router'
import type { Database } from '../db/connect.ts'
import type { RequestState } from '../http/caller.ts'
import { describeParameters, describeResponses, instantSchema, parameterReader, type Routes } from '../http/routes.ts'
import { type ActFilter, listActs } from './audit.ts'
import { tenantMeant } from './reach.ts'

const PLAIN = '^[^\\u0000-\\u001f\\u007f]+$'
const text = { type: 'string', minLength: 1, maxLength: 512, pattern: PLAIN }
const parameters = {
  tenant: { description: 'only of this tenant', schema: text },
  actor: { description: 'only by this actor, as it stands in the trail', schema: text },
  action: { description: 'only this action, or all of its kind: `key` finds `key.revoke`', schema: text },
  target: { description: 'only on this target', schema: text },
  from: { description: 'at this time or later', schema: instantSchema },
  to: { description: 'before this time', schema: instantSchema },
  limit: { description: 'acts per page', schema: { type: 'integer', minimum: 1, maximum: 1_000, default: 100 } },
  before: {
    description: '`next` of the page before',
    schema: { type: 'integer', minimum: 1, maximum: Number.MAX_SAFE_INTEGER },
  },
}

export function auditRoutes({ db }: { db: Database }): Routes {
  const router = new Router<RequestState>()
  const readQuery = parameterReader<Omit<ActFilter, 'tenant'> & { tenant?: string }>(parameters)
  router.get('/v1/audit', async (ctx) => {
    const { tenant, ...query } = readQuery(ctx.query)
    const acts = await listActs(db, { ...query, tenant: tenantMeant(ctx.state.caller, tenant) })
    ctx.body = { acts, next: acts.length === query.limit ? acts.at(-1)!.seq : null }
  })
  return { router, paths }
}

const act = {
  type: 'object',
  required: ['seq', 'at', 'tenant', 'actor', 'action'],
  properties: {
    seq: { type: 'integer' },
    at: { type: 'string', format: 'date-time' },
    tenant: { type: 'string' },
    actor: { type: 'string', description: '`key <name> <prefix>`, `cli <user>`, or `anyone` where keys are off' },
    keyId: { type: ['string', 'null'], format: 'uuid' },
    action: { type: 'string' },
    target: { type: ['string', 'null'] },
    detail: {},
  },
}
const problem = { $ref: '#/components/schemas/Error' }

const paths = {
  '/v1/audit': {
    get: {
      summary: 'Who did what, newest first',
      parameters: describeParameters('query', parameters),
      responses: describeResponses({
        200: [
          'a page',
          {
            type: 'object',
            required: ['acts', 'next'],
            properties: { acts: { type: 'array', items: act }, next: { type: ['integer', 'null'] } },
          },
        ],
        400: ['a parameter is wrong', problem],
        503: ['Postgres is away', problem],
      }),
    },
  },
}
