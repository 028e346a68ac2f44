/** Figures of the process itself: processor, memory, file descriptors, and how late its event loop runs. */

import { readdirSync } from 'node:fs'
import { type EventLoopUtilization, monitorEventLoopDelay, performance } from 'node:perf_hooks'
import type { Meter } from '@opentelemetry/api'

const DELAY_RESOLUTION_MS = 20
/** Delays are told for the last window, so that an old stall does not look like a present one. */
const DELAY_WINDOW_MS = 10_000

export function observeProcess(meter: Meter): void {
  const delay = monitorEventLoopDelay({ resolution: DELAY_RESOLUTION_MS })
  delay.enable()
  let window = { p50: 0, p99: 0, max: 0 }
  let since: EventLoopUtilization = performance.eventLoopUtilization()
  let utilization = 0
  setInterval(() => {
    // The monitor measures from timer to timer, so its own resolution is no delay.
    const late = (nanos: number) => Math.max(0, nanos / 1e9 - DELAY_RESOLUTION_MS / 1e3)
    window = { p50: late(delay.percentile(50)), p99: late(delay.percentile(99)), max: late(delay.max) }
    delay.reset()
    const now = performance.eventLoopUtilization()
    utilization = performance.eventLoopUtilization(now, since).utilization
    since = now
  }, DELAY_WINDOW_MS).unref()

  const gauge = (name: string, description: string, unit = '') =>
    meter.createObservableGauge(name, { description, unit })
  const cpu = meter.createObservableCounter('process_cpu_seconds', { description: 'Processor time', unit: 's' })
  const resident = gauge('process_resident_memory_bytes', 'Memory the process holds', 'By')
  const heap = gauge('nodejs_heap_used_bytes', 'JavaScript heap in use', 'By')
  const files = gauge('process_open_fds', 'Open file descriptors')
  const loop = gauge('nodejs_eventloop_delay_seconds', `Event loop delay over ${DELAY_WINDOW_MS / 1_000} s`, 's')
  const busy = gauge('nodejs_eventloop_utilization', 'Share of time the event loop was busy')
  meter.addBatchObservableCallback(
    (result) => {
      const { user, system } = process.cpuUsage()
      result.observe(cpu, user / 1e6, { mode: 'user' })
      result.observe(cpu, system / 1e6, { mode: 'system' })
      const memory = process.memoryUsage()
      result.observe(resident, memory.rss)
      result.observe(heap, memory.heapUsed)
      for (const [stat, seconds] of Object.entries(window)) result.observe(loop, seconds, { stat })
      result.observe(busy, utilization)
      const open = openFiles()
      if (open !== undefined) result.observe(files, open)
    },
    [cpu, resident, heap, files, loop, busy],
  )
}

/** Only Linux tells. */
function openFiles(): number | undefined {
  try {
    return readdirSync('/proc/self/fd').length
  } catch {
    return undefined
  }
}
