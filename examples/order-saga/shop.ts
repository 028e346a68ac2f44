/** A stand-in for the shop's neighbours, to try the example: it grants everything, but ships nothing to the moon. */

import { createServer } from 'node:http'

createServer(async (request, response) => {
  let text = ''
  for await (const chunk of request) text += chunk
  const refused = request.url === '/parcels/ship' && JSON.parse(text).customer === 'moon'
  const key = request.headers['idempotency-key']
  console.log(request.url, text, refused ? 'refused' : 'granted')
  response
    .writeHead(refused ? 409 : 200, { 'content-type': 'application/json' })
    .end(JSON.stringify(refused ? { error: 'too far' } : { reservation: key, payment: key, parcel: key }))
}).listen(9090, '127.0.0.1')
