/**
 * What a load generator writes down and the oracle reads: one line per fact, appended the moment it is known. It shares
 * no code with Millrace.
 *   sent <ms> <first> <count>       the first attempt of a request: events number first to first + count - 1
 *   accepted <ms> <latency> <n,n..> a 202 that named these events as accepted
 *   refused <ms> <status> <why>     503, 429 or a broken connection (0): the client may try again
 *   wrong <text>                    an answer that no fault excuses
 */

import { appendFileSync, readFileSync } from 'node:fs'

export function openLedger(file: string) {
  const line = (text: string) => appendFileSync(file, `${text}\n`)
  return {
    sent: (ms: number, first: number, count: number) => line(`sent ${ms} ${first} ${count}`),
    accepted: (ms: number, latencyMs: number, numbers: number[]) =>
      line(`accepted ${ms} ${latencyMs.toFixed(1)} ${numbers.join(',')}`),
    refused: (ms: number, status: number, why: string) => line(`refused ${ms} ${status} ${why.replaceAll('\n', ' ')}`),
    wrong: (text: string) => line(`wrong ${text.replaceAll('\n', ' ')}`),
  }
}

export type Record = {
  sent: { ms: number; first: number; count: number }[]
  accepted: { ms: number; latencyMs: number; numbers: number[] }[]
  refused: { ms: number; status: number; why: string }[]
  wrong: string[]
}

export function readLedger(file: string): Record {
  const record: Record = { sent: [], accepted: [], refused: [], wrong: [] }
  for (const line of readFileSync(file, 'utf8').split('\n')) {
    const [kind, ...rest] = line.split(' ')
    const [a = 0, b = 0, c = 0] = rest.map(Number)
    if (kind === 'sent') record.sent.push({ ms: a, first: b, count: c })
    else if (kind === 'refused') record.refused.push({ ms: a, status: b, why: rest.slice(2).join(' ') })
    else if (kind === 'wrong') record.wrong.push(rest.join(' '))
    else if (kind === 'accepted')
      record.accepted.push({ ms: a, latencyMs: b, numbers: rest[2]!.split(',').map(Number) })
  }
  return record
}
