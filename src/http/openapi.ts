/** `/openapi.json`: OpenAPI 3.1 of every route, put together from the schemas that check its requests. */

import { Router } from '@koa/router'
import type { RequestState } from './caller.ts'
import { describeResponses, type Routes } from './routes.ts'

const errorSchema = {
  type: 'object',
  required: ['error', 'message'],
  properties: {
    error: { type: 'string', description: 'stable code' },
    message: { type: 'string', description: 'what to do' },
    limit: { type: 'string', description: 'the configuration variable that was exceeded' },
    max: { type: 'number', description: 'its value' },
  },
}

/** Serves the description of `parts` and of itself. */
export function openapiRoutes(parts: Routes[]): Routes {
  const router = new Router<RequestState>()
  const paths: Routes['paths'] = {
    '/openapi.json': {
      get: {
        summary: 'This description',
        responses: describeResponses({ 200: ['OpenAPI 3.1', { type: 'object' }] }),
      },
    },
  }
  for (const part of parts)
    for (const [path, item] of Object.entries(part.paths)) paths[path] = { ...paths[path], ...item }
  const description = JSON.stringify({
    openapi: '3.1.0',
    info: {
      title: 'Millrace',
      version: '1',
      description: 'Durable events and workflows on NATS JetStream and Postgres.',
      license: { name: 'Apache-2.0', identifier: 'Apache-2.0' },
    },
    paths,
    components: {
      schemas: { Error: errorSchema },
      securitySchemes: {
        apiKey: { type: 'http', scheme: 'bearer', description: 'an API key: `mr_<prefix>_<secret>`' },
      },
    },
  })
  router.get('/openapi.json', (ctx) => {
    ctx.type = 'application/json'
    ctx.body = description
  })
  return { router, paths }
}
