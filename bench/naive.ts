/** The naive peer: Koa and one INSERT per request, as most services begin. Prints its port. */

import type { AddressInfo } from 'node:net'
import Koa from 'koa'
import pg from 'pg'

const pool = new pg.Pool({ connectionString: process.env.DATABASE_URL, max: 10 })
await pool.query(
  'drop table if exists naive_events; create table naive_events (like events including defaults, primary key (source, id))',
)
const app = new Koa()
app.use(async (ctx) => {
  const chunks: Buffer[] = []
  for await (const chunk of ctx.req) chunks.push(chunk)
  const body = JSON.parse(Buffer.concat(chunks).toString())
  for (const event of Array.isArray(body) ? body : [body])
    await pool.query({
      name: 'insert',
      text: `insert into naive_events (source, id, type, subject, time, data, received_at, published_at, stream_seq, batch_id)
             values ($1, $2, $3, $4, $5, $6, now(), now(), 0, '00000000-0000-0000-0000-000000000000')
             on conflict (source, id) do nothing`,
      values: [event.source, event.id, event.type, event.subject, event.time, event.data],
    })
  ctx.status = 202
  ctx.body = { accepted: 1 }
})
const server = app.listen(0, '127.0.0.1', () => console.log((server.address() as AddressInfo).port))
