/** What ingest needs of a logger; pino is one. */
export type Log = { info: LogLine; warn: LogLine; error: LogLine }
type LogLine = (facts: object, message: string) => void
