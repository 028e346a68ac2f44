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

/** @param service  `millrace-api`, `millrace-worker` ... */
export async function identify(service: string): Promise<Resource> {
  const { resourceFromAttributes } = await import('@opentelemetry/resources')
  return resourceFromAttributes({
    [ATTR_SERVICE_NAME]: service,
    [ATTR_SERVICE_NAMESPACE]: 'millrace',
    [ATTR_SERVICE_INSTANCE_ID]: PROCESS_NAME,
  })
}
