CREATE TABLE "event_archives" (
	"n" integer PRIMARY KEY GENERATED ALWAYS AS IDENTITY (sequence name "event_archives_n_seq" INCREMENT BY 1 MINVALUE 1 MAXVALUE 2147483647 START WITH 1 CACHE 1),
	"lower" timestamp (6) with time zone,
	"upper" timestamp (6) with time zone NOT NULL,
	"detached_at" timestamp (6) with time zone DEFAULT clock_timestamp() NOT NULL,
	"rows" bigint,
	"file" text,
	"bytes" bigint,
	"sha256" text,
	"done_at" timestamp (6) with time zone
);
