import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { measureBatch, measurePicture } from '../../examples/fan-out/workflows.ts'
import { findRun } from '../../src/index.ts'
import { startServers } from '../servers.ts'
import { startService } from '../service.ts'
import { enginesOf, until } from '../workflow/engine.ts'

/** The first 24 bytes of a PNG. */
function pngHead(width: number, height: number): Buffer {
  const head = Buffer.from('89504e470d0a1a0a0000000d494844520000000000000000', 'hex')
  head.writeUInt32BE(width, 16)
  head.writeUInt32BE(height, 20)
  return head
}

const asked: string[] = []
const pictures = createServer((request, response) => {
  asked.push(request.url!)
  if (request.url === '/gone.png') response.writeHead(404).end()
  else if (request.url === '/text.png') response.end('once upon a time there was a text file')
  else response.writeHead(206).end(pngHead(Number(/\d+/.exec(request.url!)![0]), 10))
})
await new Promise<void>((resolve) => pictures.listen(0, '127.0.0.1', resolve))
const url = `http://127.0.0.1:${(pictures.address() as AddressInfo).port}`

const servers = await startServers()
const service = await startService(servers)
const engines = enginesOf(servers)
const engine = await engines.start([measureBatch, measurePicture])
test.after(async () => {
  await engines.stop()
  await service.stop()
  await servers.stop()
  await new Promise((resolve) => pictures.close(resolve))
})

test('each picture of a batch gets a run of its own, and a bad one spoils only its line', async () => {
  const names = [...Array.from({ length: 40 }, (_, n) => `${n + 1}.png`), 'gone.png', 'text.png']
  await service.post({
    source: 'camera',
    type: 'pictures.uploaded',
    data: { batchId: 'b1', pictures: names.map((name) => ({ name, url: `${url}/${name}` })) },
  })
  const run = await until(() => findRun(engine, 'measure-batch:b1').catch(() => null))
  const result = (await run.result()) as { measured: number; failed: number; pixels: number; lines: object[] }
  assert.equal(
    { ...result, lines: result.lines.slice(-3) },
    {
      batchId: 'b1',
      measured: 40,
      failed: 2,
      pixels: 40 * 41 * 5,
      lines: [
        { name: '40.png', size: { width: 40, height: 10 } },
        { name: 'gone.png', error: 'Child measure-picture failed: there is no gone.png' },
        { name: 'text.png', error: 'Child measure-picture failed: text.png is no PNG' },
      ],
    },
  )
  assert.equal(asked.toSorted(), names.map((name) => `/${name}`).toSorted())
  const { rows } = await servers.database.pool.query(
    `select status, count(*)::int as n from workflow_runs where name = 'measure-picture' group by status order by status`,
  )
  assert.equal(rows, [
    { status: 'completed', n: 40 },
    { status: 'failed', n: 2 },
  ])
})

test.run()
