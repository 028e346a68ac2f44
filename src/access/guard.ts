/**
 * What each route asks of its caller, in one list. A route that is not in it does not start: `guardRoutes` goes through
 * all of them, puts its check before each handler, and tells the same in /openapi.json.
 */

import type { Context, Next } from 'koa'
import type { Config } from '../config.ts'
import { MillraceError } from '../errors.ts'
import { OPERATOR_TENANT, type RequestState, type Scope } from '../http/caller.ts'
import { describeResponses, type Routes } from '../http/routes.ts'
import { ANYONE, type Keyring } from './keyring.ts'

/**
 * `ours` routes tell of, or change, the whole installation, whatever its tenants: they take a key of the operators'
 * tenant. All others show and touch only what is the tenant's.
 */
type Need = 'open' | Scope | `ours ${Scope}`

const NEEDS: Record<string, Need> = {
  'GET /healthz': 'open',
  'GET /readyz': 'open',
  'GET /openapi.json': 'open',
  'GET /metrics': 'ours read',
  'GET /v1/workers': 'ours read',

  'POST /v1/events': 'ingest',
  'GET /v1/events': 'read',
  'GET /v1/events/:source/:id': 'read',
  'GET /v1/stats/latency': 'read',

  'GET /v1/dead-letters': 'read',
  'GET /v1/dead-letters/causes': 'read',
  'GET /v1/dead-letters/:id': 'read',
  'POST /v1/dead-letters/actions/replay': 'operate',
  'POST /v1/dead-letters/actions/discard': 'operate',

  'GET /v1/schemas': 'read',
  'GET /v1/schemas/:type': 'read',
  'GET /v1/schemas/:type/:version': 'read',
  'PUT /v1/schemas/:type': 'admin',
  'PUT /v1/schemas/:type/:version': 'admin',
  'DELETE /v1/schemas/:type/:version': 'admin',

  'GET /v1/workflows': 'read',
  'GET /v1/runs': 'read',
  'GET /v1/runs/:id': 'read',
  'GET /v1/runs/:id/history': 'read',
  'GET /v1/runs/:id/state': 'read',
  'GET /v1/runs/:id/result': 'read',
  'POST /v1/workflows/:name/runs': 'operate',
  'POST /v1/dead-runs/replay': 'operate',
  'POST /v1/runs/:id/signals/:signal': 'operate',
  'POST /v1/runs/:id/cancel': 'operate',
  'POST /v1/runs/:id/terminate': 'operate',
  'POST /v1/runs/:id/resume': 'operate',
  'POST /v1/runs/:id/restart': 'operate',

  'GET /v1/queues': 'ours read',
  'PUT /v1/queues/:queue': 'ours operate',
  'DELETE /v1/queues/:queue': 'ours operate',

  'GET /v1/schedules': 'read',
  'GET /v1/schedules/:name': 'read',
  'PUT /v1/schedules/:name': 'operate',
  'DELETE /v1/schedules/:name': 'operate',
  'POST /v1/schedules/:name/pause': 'operate',
  'POST /v1/schedules/:name/resume': 'operate',
  'POST /v1/schedules/:name/trigger': 'operate',
  'POST /v1/schedules/:name/backfill': 'operate',

  'GET /v1/keys': 'admin',
  'POST /v1/keys': 'admin',
  'POST /v1/keys/:id/rotate': 'admin',
  'DELETE /v1/keys/:id': 'admin',
  'GET /v1/audit': 'admin',
}

/**
 * Puts a check before every route.
 * @param keyring  null where API_KEYS is off: everyone may do everything
 * @returns the routes with `security` in their description
 * @throws Error for a route that is not in the list
 */
export function guardRoutes(
  parts: Routes[],
  keyring: Keyring | null,
  { METRICS_OPEN }: Pick<Config, 'METRICS_OPEN'>,
): Routes[] {
  return parts.map(({ router, paths }) => {
    const described: Routes['paths'] = { ...paths }
    for (const layer of router.stack)
      for (const method of layer.methods) {
        if (method === 'HEAD') continue
        const route = `${method} ${layer.path}`
        const need = METRICS_OPEN && route === 'GET /metrics' ? 'open' : NEEDS[route]
        if (need === undefined) throw new Error(`${route} stands in no list: say in src/access/guard.ts who may use it`)
        if (need === 'open') continue
        layer.stack.unshift(checkOf(need, keyring))
        if (keyring !== null) describe(described, String(layer.path), method.toLowerCase(), need)
      }
    return { router, paths: described }
  })
}

function checkOf(need: Exclude<Need, 'open'>, keyring: Keyring | null) {
  const ours = need.startsWith('ours ')
  const scope = (ours ? need.slice(5) : need) as Scope
  return (ctx: Context & { state: RequestState }, next: Next) => {
    const caller = keyring === null ? ANYONE : keyring.identify(ctx.req.headers.authorization ?? '')
    if (!caller.scopes.includes(scope))
      throw new MillraceError(
        'forbidden',
        `This needs a key with the scope ${scope}; yours has ${caller.scopes.join(', ')}`,
        {
          details: { scope },
        },
      )
    if (ours && caller.tenant !== OPERATOR_TENANT)
      throw new MillraceError('forbidden', 'This concerns the whole installation: only the operators have a key for it')
    ctx.state.caller = caller
    return next()
  }
}

const problem = { $ref: '#/components/schemas/Error' }

function describe(paths: Routes['paths'], layerPath: string, method: string, need: Exclude<Need, 'open'>): void {
  const path = layerPath.replaceAll(/:(\w+)/g, '{$1}')
  const item = paths[path] as Record<string, { responses: object }> | undefined
  const operation = item?.[method]
  if (operation === undefined) throw new Error(`${method} ${path} is not in the description of its routes`)
  const denials = describeResponses({
    401: ['no key, or one that is not valid', problem],
    403: [denialOf(need), problem],
  })
  paths[path] = {
    ...item,
    [method]: {
      ...operation,
      // OpenAPI 3.1: for a scheme without flows these are the names of what the caller must have.
      security: [{ apiKey: [need.replace('ours ', '')] }],
      responses: { ...operation.responses, ...denials },
    },
  }
}

const denialOf = (need: string) =>
  need.startsWith('ours ')
    ? `the key lacks the scope ${need.slice(5)}, or is not the operators'`
    : `the key lacks the scope ${need}`
