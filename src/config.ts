/**
 * Every environment variable Millrace reads, with its unit, default and check. Nothing else reads process.env.
 * The table in README.md is what `millrace config` prints.
 */

import { MillraceError } from './errors.ts'
import { withoutSecrets } from './secrets.ts'

type Variable<T> = { fallback: T; says: string; read: (text: string) => T }

const text = (fallback: string, says: string): Variable<string> => ({ fallback, says, read: (value) => value })

const flag = (fallback: boolean, says: string): Variable<boolean> => ({
  fallback,
  says,
  read: (value) => {
    if (/^(true|1|on|yes)$/i.test(value)) return true
    if (/^(false|0|off|no)$/i.test(value)) return false
    throw new Error('say true or false')
  },
})

const number = (fallback: number, min: number, max: number, says: string, whole = true): Variable<number> => ({
  fallback,
  says,
  read: (value) => {
    const parsed = Number(value)
    if (value.trim() === '' || !Number.isFinite(parsed)) throw new Error('not a number')
    if (whole && !Number.isInteger(parsed)) throw new Error('not a whole number')
    if (parsed < min || parsed > max) throw new Error(`outside ${min} to ${max}`)
    return parsed
  },
})

const choice = <T extends string>(fallback: T, options: readonly T[], says: string): Variable<T> => ({
  fallback,
  says,
  read: (value) => {
    const found = options.find((option) => option === value.toLowerCase())
    if (found === undefined) throw new Error(`say ${options.join(' or ')}`)
    return found
  },
})

const MiB = 1024 * 1024

const variables = {
  DATABASE_URL: text(
    'postgres://postgres@127.0.0.1:5432/millrace',
    'Postgres (15 or newer); ?sslmode=verify-full for TLS, &sslrootcert=FILE for an authority of your own',
  ),
  DATABASE_POOL_SIZE: number(10, 2, 200, 'connections to Postgres per process'),
  NATS_URL: text(
    'nats://127.0.0.1:4222',
    'NATS servers (2.12 or newer), comma-separated; nats://, or tls:// for TLS; user:password@ or token@ before a host',
  ),
  NATS_CA_FILE: text(
    '',
    'PEM of the authority that signed the certificate of NATS; asks for TLS, as tls:// in NATS_URL does',
  ),
  NATS_CERT_FILE: text('', 'PEM of a certificate to show to NATS (mutual TLS)'),
  NATS_KEY_FILE: text('', 'PEM of its private key'),
  NATS_CREDS_FILE: text('', 'credentials for NATS: a .creds file (JWT and seed)'),
  NATS_NKEY_FILE: text('', 'or the seed of an nkey'),
  NATS_REPLICAS: number(1, 1, 5, 'copies of the stream; 3 on a cluster'),
  STREAM_BYTES_MAX: number(10 * 1024 * MiB, MiB, 2 ** 50, 'bytes the stream may hold; beyond it the API answers 503'),
  WORKFLOW_TENANT: text('default', 'whose runs and schedules the command line and the library start and find'),
  LOG_LEVEL: text('info', 'trace, debug, info, warn, error or silent'),

  PORT: number(8080, 0, 65535, 'port of the HTTP API; 0 takes a free one'),
  HOST: text('0.0.0.0', 'address the HTTP API listens on; `millrace dev`: 127.0.0.1'),
  API_KEYS: choice('required', ['required', 'off'], 'whether requests need an API key; `millrace dev`: off'),
  METRICS_OPEN: flag(false, 'serve /metrics without a key'),
  HSTS_MAX_AGE_S: number(
    0,
    0,
    2 ** 31,
    's for which browsers come by https only, where TLS ends before the API; 0: unsaid',
  ),
  BODY_BYTES_MAX: number(128 * MiB, 1024, 2 ** 40, 'bytes of one request body as sent'),
  BODY_DECODED_BYTES_MAX: number(512 * MiB, 1024, 2 ** 40, 'bytes of one request body after decompression'),
  JSON_BYTES_MAX: number(16 * MiB, 1024, 2 ** 30, 'bytes of a JSON body, which is parsed whole; NDJSON is streamed'),
  BODIES_HELD_BYTES_MAX: number(
    64 * MiB,
    MiB,
    2 ** 40,
    'bytes of JSON bodies held at once; beyond it the API answers 503',
  ),
  BODY_IDLE_MS: number(20_000, 10, 300_000, 'ms without a byte after which an unfinished body is answered 408'),
  EVENTS_PER_REQUEST_MAX: number(200_000, 1, 10_000_000, 'events in one request'),
  EVENT_BYTES_MAX: number(512 * 1024, 256, 8 * MiB, 'bytes of one event'),
  PUBLISH_PENDING_BYTES_MAX: number(
    32 * MiB,
    MiB,
    2 ** 40,
    'bytes waiting to be published; beyond it the API answers 503',
  ),
  PUBLISH_TIMEOUT_MS: number(5_000, 100, 120_000, 'ms to wait for JetStream to store a batch'),
  QUEUE_DEPTH_MAX: number(5_000_000, 1, 2 ** 50, 'events the workers may be behind; beyond it the API answers 503'),
  SCHEMA_DIR: text('', 'folder of JSON Schemas, <type>/<version>.json, stored at start; empty: none'),
  COMMIT_WAIT_MS: number(10_000, 1, 300_000, 'ms that ?wait=committed waits before it answers 202'),

  WORKER_PORT: number(0, 0, 65535, 'port of a worker process for /healthz, /readyz and /metrics; 0 takes a free one'),
  WORKER_POOL_SIZE: number(4, 1, 256, 'pull workers per process'),
  WORKER_ADAPTIVE: flag(true, 'let batch size and linger follow the load; false keeps the fixed values below'),
  WORKER_BATCH_SIZE: number(
    50,
    1,
    10_000,
    'events per transaction when not adaptive, and the size adaptive workers start from',
  ),
  WORKER_BATCH_SIZE_MAX: number(1_000, 1, 10_000, 'the most events per transaction when adaptive'),
  WORKER_BATCH_TIMEOUT: number(0.5, 0, 60, 's a batch lingers for more events when not adaptive', false),
  NATS_PULL_BATCH_SIZE: number(100, 1, 10_000, 'messages per pull when not adaptive'),
  MAX_DELIVER: number(3, 1, 100, 'attempts before a poison event becomes a dead letter'),
  ACK_WAIT_MS: number(30_000, 1_000, 3_600_000, 'ms before JetStream redelivers what was not acknowledged'),
  MAX_ACK_PENDING: number(1_000, 1, 100_000, 'unacknowledged messages per worker'),
  RETRY_DELAY_MS: number(1_000, 1, 600_000, 'ms before a failed batch is delivered again; doubles with each attempt'),

  EVENTS_PARTITION_DAYS: number(
    7,
    1,
    366,
    'days of events per partition, for partitions yet to be made; what is dropped at once',
  ),
  EVENTS_RETENTION_DAYS: number(
    0,
    0,
    36_500,
    'days after which events are archived and dropped, whole partitions at a time; 0 keeps them',
  ),
  ARCHIVE_DIR: text('', 'folder for archives of dropped events, kept and shared by all workers; none: drop without'),
  WORKFLOW_RETENTION_DAYS: number(0, 0, 36_500, 'days after their end that workflow runs are kept; 0 keeps them'),

  OTEL_EXPORTER_OTLP_ENDPOINT: text(
    '',
    'OTLP/HTTP collector for traces, such as http://127.0.0.1:4318; empty: no traces',
  ),
  OTEL_TRACES_SAMPLER_ARG: number(
    0.01,
    0,
    1,
    'share of requests traced where the caller did not decide; measured: 1% costs no throughput and 7% more processor time, 100% 5% and 12%',
    false,
  ),
  OTEL_EXPORTER_OTLP_METRICS_ENDPOINT: text(
    '',
    'OTLP/HTTP address for metrics, such as http://127.0.0.1:4318/v1/metrics',
  ),
  JAEGER_QUERY_URL: text('http://127.0.0.1:16686', 'where `millrace trace` asks for spans'),
} satisfies Record<string, Variable<string> | Variable<number> | Variable<boolean>>

export type Config = { [K in keyof typeof variables]: (typeof variables)[K]['fallback'] }

/**
 * Reads and checks every variable.
 * @param fallbacks  in place of the defaults
 * @throws MillraceError `invalid_config` that names each wrong variable and what it takes
 */
export function loadConfig(
  env: Record<string, string | undefined> = process.env,
  fallbacks: Partial<Config> = {},
): Config {
  const wrong: string[] = []
  const entries = Object.entries<Variable<string | number | boolean>>(variables).map(([name, variable]) => {
    const given = env[name]
    if (given === undefined || given === '') return [name, fallbacks[name as keyof Config] ?? variable.fallback]
    try {
      return [name, variable.read(given)]
    } catch (error) {
      wrong.push(`${name}=${withoutSecrets(given)}: ${(error as Error).message} (${variable.says})`)
      return [name, variable.fallback]
    }
  })
  if (wrong.length > 0) throw new MillraceError('invalid_config', `Fix these variables: ${wrong.join('; ')}`)
  return Object.fromEntries(entries) as Config
}

/** The variables as a Markdown table. */
export function configTable(): string {
  const rows = Object.entries<Variable<string | number | boolean>>(variables).map(
    ([name, { fallback, says }]) => `| \`${name}\` | ${fallback === '' ? '' : `\`${fallback}\``} | ${says} |`,
  )
  return ['| variable | default | what it sets |', '|---|---|---|', ...rows].join('\n')
}
