/** Who sends this telemetry. */

import { hostname } from 'node:os'
import type { Resource } from '@opentelemetry/resources'
import {
  ATTR_SERVICE_INSTANCE_ID,
  ATTR_SERVICE_NAME,
  ATTR_SERVICE_NAMESPACE,
} from '@opentelemetry/semantic-conventions'

/** The name of this process among all of them, as worker reports, spans and metrics give it. */
export const PROCESS_NAME = `${hostname()}/${process.pid}`

/** An exporter's tries at one export, in all: as long as a process that is asked to stop may wait for a collector. */
export const EXPORT_MS_MAX = 3_000

/** @param service  `millrace-api`, `millrace-worker` ... */
export async function identify(service: string): Promise<Resource> {
  const { resourceFromAttributes } = await import('@opentelemetry/resources')
  return resourceFromAttributes({
    [ATTR_SERVICE_NAME]: service,
    [ATTR_SERVICE_NAMESPACE]: 'millrace',
    [ATTR_SERVICE_INSTANCE_ID]: PROCESS_NAME,
  })
}
