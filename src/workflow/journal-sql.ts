/**
 * The statements of the journal: static text, each over a set of rows, each safe to repeat, each fenced.
 * `$1` is the worker. Holding its row for key share lets renewals pass and makes the end of the lease wait.
 * `offset 0` and `is not distinct from` keep the planner to the primary key: all other indexes of workflow_runs hold
 * every running run, and reading one for each row would make the cost of a commit quadratic.
 */

export type StartRow = {
  runId: string
  id: string | null
  generation: number
  name: string
  version: string
  queue: string
  priority: number
  concurrencyKey: string | null
  /** `running`: this worker starts it at once. `waiting`: it has a delay. */
  status: 'running' | 'queued' | 'waiting'
  input: string | null
  attributes: string | null
  traceparent: string | null
  delayMs: number | null
  timeoutMs: number | null
  parentId: string | null
  /** The first run of a chain of continuations. */
  chainId: string | null
  /** The run that starts it, as its child or its continuation: it must still be this worker's. */
  starter: { runId: string; epoch: number } | null
  /** ms since 1970 on the database's clock, just before the insert: the run's first `now()`. */
  createdAt: number
  tenant: string
}

export type StepRow = {
  runId: string
  epoch: number
  pos: number
  ord: number | null
  kind: string
  name: string
  output: string | null
  error: string | null
  attempt: number
  /** ms since 1970 on the database's clock */
  dueAt: number | null
  at: number
  ms: number | null
}

export type WaitRow = {
  runId: string
  pos: number
  type: string
  path: string
  key: string
  sinceMs: number
  after: number
  tenant: string
}
export type ParkRow = { runId: string; epoch: number; wakes: number; dueAt: number | null }
export type FinishRow = {
  runId: string
  epoch: number
  status: 'completed' | 'failed' | 'cancelled' | 'continued' | 'stuck'
  output: string | null
  error: string | null
}
/** Waits and signals that a call has taken: they are in the journal now. */
export type MoveRow = { from: string; to: string }
export type TakenRow = { runId: string; waitPos: number | null; signalSeq: string | null }
export type StateRow = { runId: string; epoch: number; state: string | null }

type Statement<Row> = {
  name: string
  text: string
  values: (worker: string | null, rows: Row[]) => (string | null)[]
  /** Fewer rows than handed in: look who was lost. */
  counted: boolean
}

const statement = <Row>(spec: Statement<Row>): Statement<Row> => spec

type Scalar = string | number | null

/** An array of Postgres, of numbers, UUIDs or fixed words: nothing in it needs quotes. */
const bare = (values: Scalar[]) => `{${values.map((value) => value ?? 'NULL').join(',')}}`

/** An array of any text. The client's own way of writing arrays takes three times as long, half of a worker's time. */
const quoted = (values: (string | null)[]) =>
  `{${values.map((value) => (value === null ? 'NULL' : SPECIAL.test(value) ? `"${value.replace(SPECIALS, '\\$&')}"` : `"${value}"`)).join(',')}}`
const SPECIAL = /["\\]/
const SPECIALS = /["\\]/g

const STEPS = `
  with lease as materialized (select id from workflow_workers where id = $1 for key share)
  insert into workflow_steps (run_id, pos, ord, kind, name, output, error, attempt, due_at, at, ms)
  select s.run_id, s.pos, s.ord, s.kind, s.name, s.output, s.error, s.attempt, to_timestamp(s.due_at / 1000),
    to_timestamp(s.at / 1000), s.ms
  from lease, unnest($2::uuid[], $3::int[], $4::int[], $5::int[], $6::text[], $7::text[], $8::json[], $9::json[],
    $10::smallint[], $11::float8[], $12::float8[], $13::float8[])
    s(run_id, epoch, pos, ord, kind, name, output, error, attempt, due_at, at, ms),
    lateral (select epoch, worker, status from workflow_runs where run_id = s.run_id offset 0) r
  where r.epoch = s.epoch and r.worker = $1 and r.status = 'running'`

const stepValues = (worker: string | null, rows: StepRow[]) => [
  worker,
  bare(rows.map((row) => row.runId)),
  bare(rows.map((row) => row.epoch)),
  bare(rows.map((row) => row.pos)),
  bare(rows.map((row) => row.ord)),
  bare(rows.map((row) => row.kind)),
  quoted(rows.map((row) => row.name)),
  quoted(rows.map((row) => row.output)),
  quoted(rows.map((row) => row.error)),
  bare(rows.map((row) => row.attempt)),
  bare(rows.map((row) => row.dueAt)),
  bare(rows.map((row) => row.at)),
  bare(rows.map((row) => row.ms)),
]

/** In the order in which they run within a commit. */
export const STATEMENTS = {
  starts: statement<StartRow>({
    name: 'millrace_starts',
    counted: true,
    text: `
      with lease as materialized (select id from workflow_workers where id = $1 for key share)
      insert into workflow_runs (run_id, id, generation, name, version, queue, priority, concurrency_key, status, input,
        attributes, traceparent, worker, epoch, due_at, deadline_at, parent_id, chain_id, created_at, tenant)
      select s.run_id, s.id, s.generation, s.name, s.version, s.queue, s.priority, s.concurrency_key, s.status, s.input,
        s.attributes, s.traceparent,
        case when s.status = 'running' then $1::uuid end,
        case when s.status = 'running' then 1 else 0 end,
        clock_timestamp() + s.delay_ms * interval '1 ms',
        clock_timestamp() + s.timeout_ms * interval '1 ms',
        s.parent_id, s.chain_id, to_timestamp(s.created_at / 1000), s.tenant
      from unnest($2::uuid[], $3::text[], $4::int[], $5::text[], $6::text[], $7::text[], $8::smallint[], $9::text[],
        $10::text[], $11::json[], $12::jsonb[], $13::text[], $14::float8[], $15::float8[], $16::uuid[],
        $17::uuid[], $18::float8[],
        $19::uuid[], $20::int[], $21::text[])
        s(run_id, id, generation, name, version, queue, priority, concurrency_key, status, input, attributes,
          traceparent, delay_ms, timeout_ms, parent_id, chain_id, created_at, starter_id, starter_epoch, tenant)
      where (s.status <> 'running' or exists (select from lease))
        and (s.starter_id is null or exists (
          select from workflow_runs r
          where r.run_id = s.starter_id and r.epoch = s.starter_epoch and r.worker is not distinct from $1))
      on conflict do nothing`,
    values: (worker, rows) => [
      worker,
      bare(rows.map((row) => row.runId)),
      quoted(rows.map((row) => row.id)),
      bare(rows.map((row) => row.generation)),
      quoted(rows.map((row) => row.name)),
      quoted(rows.map((row) => row.version)),
      quoted(rows.map((row) => row.queue)),
      bare(rows.map((row) => row.priority)),
      quoted(rows.map((row) => row.concurrencyKey)),
      bare(rows.map((row) => row.status)),
      quoted(rows.map((row) => row.input)),
      quoted(rows.map((row) => row.attributes)),
      quoted(rows.map((row) => row.traceparent)),
      bare(rows.map((row) => row.delayMs)),
      bare(rows.map((row) => row.timeoutMs)),
      bare(rows.map((row) => row.parentId)),
      bare(rows.map((row) => row.chainId)),
      bare(rows.map((row) => row.createdAt)),
      bare(rows.map((row) => row.starter?.runId ?? null)),
      bare(rows.map((row) => row.starter?.epoch ?? null)),
      quoted(rows.map((row) => row.tenant)),
    ],
  }),

  /**
   * Lines that are not in the journal, as far as this process knows: without the check for a line that is there this is
   * a quarter faster. Where one is, the commit fails with 23505 and is made again without this statement.
   */
  steps: statement<StepRow>({ name: 'millrace_steps', counted: true, text: STEPS, values: stepValues }),

  lines: statement<StepRow>({
    name: 'millrace_lines',
    counted: true,
    text: `${STEPS}
      on conflict (run_id, pos) do update set
        ord = excluded.ord, output = excluded.output, error = excluded.error, attempt = excluded.attempt,
        due_at = excluded.due_at, at = excluded.at, ms = excluded.ms
      where workflow_steps.ord is null or workflow_steps.ord = excluded.ord`,
    values: stepValues,
  }),

  /** Meets the events of the same key at the mailbox (see start.ts); returns those already there. */
  waits: statement<WaitRow>({
    name: 'millrace_waits',
    counted: false,
    text: `
      with lease as materialized (select id from workflow_workers where id = $1 for key share),
      asked as materialized (
        select s.run_id, s.pos, s.type, array(select json_array_elements_text(s.path::json)) as path, s.key, s.since_ms, s.after, s.tenant
        from lease, unnest($2::uuid[], $3::int[], $4::text[], $5::text[], $6::text[], $7::float8[], $8::float8[], $9::text[])
          s(run_id, pos, type, path, key, since_ms, after, tenant)),
      boxes as (
        insert into workflow_mailboxes as m (type, path, key, tenant, count)
        select distinct type, path, key, tenant, (extract(epoch from statement_timestamp()) * 1000)::bigint from asked
        order by type, key, path, tenant
        on conflict (type, key, path, tenant) do update set touched_at = clock_timestamp()
        returning m.type, m.path, m.key, m.tenant, m.mail),
      found as materialized (
        select distinct on (a.run_id, a.pos) a.run_id, a.pos, (mail.value->>'n')::bigint as n,
          mail.value->>'source' as source, mail.value->>'id' as id
        from asked a join boxes b using (type, path, key, tenant), jsonb_array_elements(b.mail) mail
        where (mail.value->>'n')::bigint > a.after and (mail.value->>'ms')::float8 >= a.since_ms
        order by a.run_id, a.pos, (mail.value->>'n')::bigint),
      waits as (
        insert into workflow_waits (run_id, pos, type, path, key, mail_number, source, event_id, tenant)
        select a.run_id, a.pos, a.type, a.path, a.key, f.n, f.source, f.id, a.tenant
        from asked a left join found f using (run_id, pos)
        on conflict (run_id, pos) do nothing)
      select run_id from found`,
    values: (worker, rows) => [
      worker,
      bare(rows.map((row) => row.runId)),
      bare(rows.map((row) => row.pos)),
      quoted(rows.map((row) => row.type)),
      quoted(rows.map((row) => row.path)),
      quoted(rows.map((row) => row.key)),
      bare(rows.map((row) => row.sinceMs)),
      bare(rows.map((row) => row.after)),
      quoted(rows.map((row) => row.tenant)),
    ],
  }),

  /** Puts runs out of memory, unless something came in that they have not seen. */
  parks: statement<ParkRow>({
    name: 'millrace_parks',
    counted: false,
    text: `
      with lease as materialized (select id from workflow_workers where id = $1 for key share)
      update workflow_runs r set status = 'waiting', due_at = to_timestamp(p.due_at / 1000)
      from lease, unnest($2::uuid[], $3::int[], $4::int[], $5::float8[]) p(run_id, epoch, wakes, due_at)
      where r.run_id = p.run_id and r.epoch = p.epoch and r.worker is not distinct from $1 and r.wakes = p.wakes
        and r.status in ('running', 'waiting')
      returning r.run_id`,
    values: (worker, rows) => [
      worker,
      bare(rows.map((row) => row.runId)),
      bare(rows.map((row) => row.epoch)),
      bare(rows.map((row) => row.wakes)),
      bare(rows.map((row) => row.dueAt)),
    ],
  }),

  states: statement<StateRow>({
    name: 'millrace_states',
    counted: false,
    text: `
      with lease as materialized (select id from workflow_workers where id = $1 for key share)
      update workflow_runs r set state = s.state
      from lease, (
        select distinct on (run_id) run_id, epoch, state
        from unnest($2::uuid[], $3::int[], $4::json[]) with ordinality s(run_id, epoch, state, n)
        order by run_id, n desc) s
      where r.run_id = s.run_id and r.epoch = s.epoch and r.worker is not distinct from $1 and r.status = 'running'`,
    values: (worker, rows) => [
      worker,
      bare(rows.map((row) => row.runId)),
      bare(rows.map((row) => row.epoch)),
      quoted(rows.map((row) => row.state)),
    ],
  }),

  finishes: statement<FinishRow>({
    name: 'millrace_finishes',
    counted: true,
    text: `
      with lease as materialized (select id from workflow_workers where id = $1 for key share)
      update workflow_runs r set status = f.status, output = f.output, error = f.error,
        finished_at = clock_timestamp()
      from lease, unnest($2::uuid[], $3::int[], $4::text[], $5::json[], $6::json[])
        f(run_id, epoch, status, output, error)
      where r.run_id = f.run_id and r.epoch = f.epoch and r.worker is not distinct from $1 and r.status in ('running', f.status)`,
    values: (worker, rows) => [
      worker,
      bare(rows.map((row) => row.runId)),
      bare(rows.map((row) => row.epoch)),
      bare(rows.map((row) => row.status)),
      quoted(rows.map((row) => row.output)),
      quoted(rows.map((row) => row.error)),
    ],
  }),

  taken: statement<TakenRow>({
    name: 'millrace_taken',
    counted: false,
    text: `
      with lease as materialized (select id from workflow_workers where id = $1 for key share),
      taken as materialized (
        select t.* from lease, unnest($2::uuid[], $3::int[], $4::bigint[]) t(run_id, wait_pos, signal_seq)),
      signals as (
        delete from workflow_signals s using taken t where s.run_id = t.run_id and s.seq = t.signal_seq)
      delete from workflow_waits w using taken t where w.run_id = t.run_id and w.pos = t.wait_pos`,
    values: (worker, rows) => [
      worker,
      bare(rows.map((row) => row.runId)),
      bare(rows.map((row) => row.waitPos)),
      bare(rows.map((row) => row.signalSeq)),
    ],
  }),

  /** What nobody will take from runs that have ended. */
  forgets: statement<string>({
    name: 'millrace_forgets',
    counted: false,
    text: `
      with lease as materialized (select id from workflow_workers where id = $1 for key share),
      signals as (
        delete from workflow_signals s using lease, unnest($2::uuid[]) f(run_id) where s.run_id = f.run_id)
      delete from workflow_waits w using lease, unnest($2::uuid[]) f(run_id) where w.run_id = f.run_id`,
    values: (worker, rows) => [worker, bare(rows)],
  }),

  /** Signals that a run has not taken go to the run it continues as. */
  moves: statement<MoveRow>({
    name: 'millrace_moves',
    counted: false,
    text: `
      with lease as materialized (select id from workflow_workers where id = $1 for key share)
      update workflow_signals s set run_id = m.to_id
      from lease, unnest($2::uuid[], $3::uuid[]) m(from_id, to_id)
      where s.run_id = m.from_id`,
    values: (worker, rows) => [worker, bare(rows.map((row) => row.from)), bare(rows.map((row) => row.to))],
  }),

  /** A parent whose child has ended. */
  wakes: statement<string>({
    name: 'millrace_wakes',
    counted: false,
    text: `
      update workflow_runs r set wakes = r.wakes + 1, status = case r.status when 'waiting' then 'queued' else r.status end
      where r.run_id in (select w.run_id from unnest($2::uuid[]) w(run_id), lateral (
          select from workflow_runs t where t.run_id = w.run_id order by t.run_id for update) t)
        and r.status in ('running', 'waiting') and $1::uuid is not null`,
    values: (worker, rows) => [worker, bare([...new Set(rows)].sort())],
  }),
}
