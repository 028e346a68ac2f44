-- Makes the table of events the first partition of a partitioned one. src/db/migrate.ts has added every identity and
-- a validated bound before, so that nothing here reads the rows: the exclusive lock lasts milliseconds.
DO $$
DECLARE stray text;
BEGIN
	SELECT string_agg(DISTINCT view.relname, ', ') INTO stray
	FROM pg_depend d JOIN pg_rewrite r ON r.oid = d.objid JOIN pg_class view ON view.oid = r.ev_class
	WHERE d.classid = 'pg_rewrite'::regclass AND d.refobjid = 'events'::regclass;
	IF stray IS NOT NULL THEN
		RAISE EXCEPTION 'Views read events (%), and would go on reading its first partition only: drop them, start again, and create them anew', stray;
	END IF;
	SELECT string_agg(tgname, ', ') INTO stray FROM pg_trigger
	WHERE tgrelid = 'events'::regclass AND NOT tgisinternal AND tgname <> 'identify_events';
	IF stray IS NOT NULL THEN
		RAISE EXCEPTION 'Triggers stand on events (%), and would see its first partition only: drop them, start again, and create them anew', stray;
	END IF;
END $$;
--> statement-breakpoint
DROP TRIGGER "identify_events" ON "events";
--> statement-breakpoint
DROP FUNCTION "identify_events";
--> statement-breakpoint
ALTER TABLE "events" DROP CONSTRAINT "events_source_id_pk";
--> statement-breakpoint
ALTER TABLE "events" ADD COLUMN "tenant" text DEFAULT 'default' NOT NULL;
--> statement-breakpoint
ALTER TABLE "events" RENAME TO "events_first";
--> statement-breakpoint
ALTER INDEX "events_by_time" RENAME TO "events_first_by_time";
--> statement-breakpoint
ALTER INDEX "events_by_trace" RENAME TO "events_first_by_trace";
--> statement-breakpoint
CREATE TABLE "events" (LIKE "events_first" INCLUDING DEFAULTS) PARTITION BY RANGE ("published_at");
--> statement-breakpoint
CREATE INDEX "events_by_time" ON "events" USING btree ("published_at","stream_seq","stream_place");
--> statement-breakpoint
CREATE INDEX "events_by_trace" ON "events" USING btree ("trace_id");
--> statement-breakpoint
-- Rights and constraints that its owner gave the table. A constraint that is not validated stays so.
DO $$
DECLARE change text;
BEGIN
	FOR change IN
		SELECT format('ALTER TABLE events ADD CONSTRAINT %I %s', conname, pg_get_constraintdef(oid))
		FROM pg_constraint WHERE conrelid = 'events_first'::regclass AND contype = 'c' AND conname <> 'events_first_bound'
		UNION ALL
		SELECT format('GRANT %s ON events TO %s', privilege_type, CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END)
		FROM pg_class, aclexplode(relacl) WHERE pg_class.oid = 'events_first'::regclass AND grantee <> relowner
	LOOP
		EXECUTE change;
	END LOOP;
END $$;
--> statement-breakpoint
CREATE TABLE "events_default" PARTITION OF "events" DEFAULT;
--> statement-breakpoint
DO $$
DECLARE bound text;
BEGIN
	SELECT substring(pg_get_constraintdef(oid) FROM '''([^'']+)''') INTO bound
	FROM pg_constraint WHERE conrelid = 'events_first'::regclass AND conname = 'events_first_bound';
	IF EXISTS (SELECT FROM events_first) THEN
		EXECUTE format('ALTER TABLE events ATTACH PARTITION events_first FOR VALUES FROM (MINVALUE) TO (%L)', bound);
		ALTER TABLE events_first DROP CONSTRAINT events_first_bound;
	ELSE
		DROP TABLE events_first;
	END IF;
END $$;
--> statement-breakpoint
-- Migrations after which older processes cannot work: one that does not know such a migration refuses to start.
CREATE TABLE "schema_breaks" ("migration" text PRIMARY KEY NOT NULL);
--> statement-breakpoint
INSERT INTO "schema_breaks" VALUES ('0010_event_partitions');
