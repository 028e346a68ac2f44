-- The identities of events, apart from their rows. The trigger keeps them complete for processes of the version before
-- this one, while those of the rows already there are added in steps (src/db/migrate.ts); 0010 drops it.
CREATE TABLE "event_ids" (
	"key" uuid PRIMARY KEY NOT NULL,
	"published_at" timestamp (6) with time zone NOT NULL,
	"stream_seq" bigint NOT NULL,
	"stream_place" integer DEFAULT 0 NOT NULL
);
--> statement-breakpoint
-- The lengths keep two identities from being one text. Stable, as convert_to is, so that it is inlined: called, it would
-- cost several times as much.
CREATE FUNCTION "event_key"(tenant text, source text, id text) RETURNS uuid
LANGUAGE sql STABLE PARALLEL SAFE
RETURN encode(substring(sha256(convert_to(
	octet_length(tenant) || ':' || octet_length(source) || ':' || tenant || source || id, 'UTF8')) FOR 16), 'hex')::uuid;
--> statement-breakpoint
CREATE FUNCTION "identify_events"() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO event_ids (key, published_at, stream_seq, stream_place)
	SELECT event_key('default', source, id) AS key, published_at, stream_seq, stream_place FROM added ORDER BY key
	ON CONFLICT DO NOTHING;
	RETURN NULL;
END $$;
--> statement-breakpoint
CREATE TRIGGER "identify_events" AFTER INSERT ON "events"
REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION identify_events();
