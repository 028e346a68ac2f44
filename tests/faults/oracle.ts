/**
 * Judges a run: what the ledger says was answered against what plain SQL finds. A statement trigger of its own notes
 * every row that enters `events`, so that "stored once" does not rest on the table's primary key alone.
 */

import pg from 'pg'
import { type Record, readLedger } from './ledger.ts'

/** An event of type fault.locked is inserted only while nobody else holds this advisory lock. */
export const LOCK = 42

export const ORACLE_SQL = `
  create schema if not exists oracle;
  create table if not exists oracle.inserts (source text, id text, at timestamptz default clock_timestamp());
  create index if not exists inserts_by_id on oracle.inserts (source, id);
  create or replace function oracle.note() returns trigger language plpgsql as $$
    begin
      insert into oracle.inserts (source, id) select source, id from added;
      return null;
    end $$;
  create or replace trigger oracle_note after insert on public.events
    referencing new table as added for each statement execute function oracle.note();
  create or replace function oracle.wait() returns trigger language plpgsql as $$
    begin
      perform pg_advisory_lock(${LOCK});
      perform pg_advisory_unlock(${LOCK});
      return new;
    end $$;
  create or replace trigger oracle_wait before insert on public.events
    for each row when (new.type = 'fault.locked') execute function oracle.wait();
  alter table public.events drop constraint if exists no_poison;
  alter table public.events add constraint no_poison check (type <> 'fault.poison');`

export type Verdict = {
  /** Events that were answered 202, each once however often it was sent. */
  answered: number
  committed: number
  deadLettered: number
  /** Answered and neither committed nor dead-lettered. */
  lost: string[]
  /** Rows stored twice, messages dead-lettered twice, events that are row and dead letter. */
  duplicated: string[]
  /** Rows nobody sent, payloads that changed on the way, good events dead-lettered, answers no fault excuses. */
  wrong: string[]
  /** Stored although nobody was told so, which is allowed. */
  unanswered: number
  refused: number
  record: Record
  /** When each event was stored, in ms since 1970. */
  storedMs: Map<string, number>
}

type DeadLetter = { id: string; event: string }

/** @param poisonEvery as the load's: which events Postgres refuses */
export async function judge(
  databaseUrl: string,
  run: string,
  ledgerFile: string,
  poisonEvery: number,
): Promise<Verdict> {
  const record = readLedger(ledgerFile)
  const client = new pg.Client({ connectionString: databaseUrl })
  await client.connect()
  try {
    const sent = new Set(
      record.sent.flatMap(({ first, count }) => Array.from({ length: count }, (_, i) => `${run}-${first + i}`)),
    )
    const answered = new Set(record.accepted.flatMap(({ numbers }) => numbers.map((n) => `${run}-${n}`)))
    const stored = await client.query<{ id: string; intact: boolean }>(
      `select id, type = 'fault.good' and data->>'check' = md5(id) as intact from events where source = $1`,
      [run],
    )
    const inserts = await client.query<{ id: string; times: number; ms: number }>(
      `select id, count(*)::int as times, extract(epoch from min(at))::float8 * 1000 as ms
       from oracle.inserts where source = $1 group by id`,
      [run],
    )
    const letters = await client.query<DeadLetter>(
      `select event_id as id, (detail->>'streamSeq') || '.' || coalesce(detail->>'streamPlace', '0') as event
       from dead_letter_audit where source = $1 and action = 'recorded'`,
      [run],
    )
    const committed = new Set(stored.rows.map((row) => row.id))
    const dead = new Set(letters.rows.map((row) => row.id))
    const lost = [...answered].filter((id) => !committed.has(id) && !dead.has(id))
    const duplicated = [
      ...inserts.rows.filter((row) => row.times > 1).map((row) => row.id),
      // A bad event that its client sent twice was stored twice, and may die twice; each stored one dies once.
      ...letters.rows.map((row) => `stored at ${row.event}`).filter((event, i, all) => all.indexOf(event) !== i),
      ...[...dead].filter((id) => committed.has(id)),
    ]
    const wrong = [
      ...record.wrong,
      ...stored.rows.filter((row) => !row.intact).map((row) => `${row.id} changed on the way`),
      ...[...committed, ...dead].filter((id) => !sent.has(id)).map((id) => `${id} was never sent`),
    ]
    // Only these may be dead letters; none of them can be a row, for the table refuses them.
    const isPoison = (id: string) =>
      poisonEvery > 0 && Number(id.slice(id.lastIndexOf('-') + 1)) % poisonEvery === poisonEvery - 1
    wrong.push(...[...dead].filter((id) => !isPoison(id)).map((id) => `${id} is a good event and a dead letter`))
    return {
      answered: answered.size,
      committed: committed.size,
      deadLettered: dead.size,
      lost,
      duplicated,
      wrong,
      unanswered: [...committed, ...dead].filter((id) => !answered.has(id)).length,
      refused: record.refused.length,
      record,
      storedMs: new Map(inserts.rows.map((row) => [row.id, row.ms])),
    }
  } finally {
    await client.end()
  }
}
