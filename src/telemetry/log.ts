/** The log of a process: JSON lines, each looked through for secrets before it is written. */

import pino, { type Logger } from 'pino'
import type { Config } from '../config.ts'
import { withoutSecrets } from '../secrets.ts'

/** @param file  1 is stdout; commands that print results log to 2 */
export const createLog = ({ LOG_LEVEL }: Pick<Config, 'LOG_LEVEL'>, name: string, file: 1 | 2 = 1): Logger =>
  pino({ level: LOG_LEVEL, name, hooks: { streamWrite: withoutSecrets } }, pino.destination(file))
