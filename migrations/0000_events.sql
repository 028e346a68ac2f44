CREATE TABLE "batches" (
	"id" uuid PRIMARY KEY NOT NULL,
	"worker" text NOT NULL,
	"size" integer NOT NULL,
	"inserted" integer NOT NULL,
	"fill_ms" double precision NOT NULL,
	"insert_ms" double precision NOT NULL,
	"committed_at" timestamp (6) with time zone NOT NULL
);
--> statement-breakpoint
CREATE TABLE "dead_letter_audit" (
	"seq" bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY (sequence name "dead_letter_audit_seq_seq" INCREMENT BY 1 MINVALUE 1 MAXVALUE 9223372036854775807 START WITH 1 CACHE 1),
	"dead_letter_id" uuid NOT NULL,
	"source" text,
	"event_id" text,
	"action" text NOT NULL,
	"actor" text NOT NULL,
	"at" timestamp (6) with time zone DEFAULT clock_timestamp() NOT NULL,
	"detail" jsonb
);
--> statement-breakpoint
CREATE TABLE "events" (
	"source" text NOT NULL,
	"id" text NOT NULL,
	"type" text NOT NULL,
	"subject" text,
	"time" timestamp (6) with time zone,
	"datacontenttype" text,
	"dataschema" text,
	"data" jsonb,
	"data_base64" text,
	"extensions" jsonb,
	"trace_id" uuid,
	"received_at" timestamp (6) with time zone NOT NULL,
	"published_at" timestamp (6) with time zone NOT NULL,
	"stream_seq" bigint NOT NULL,
	"batch_id" uuid NOT NULL,
	CONSTRAINT "events_source_id_pk" PRIMARY KEY("source","id")
);
--> statement-breakpoint
CREATE INDEX "batches_by_time" ON "batches" USING btree ("committed_at");--> statement-breakpoint
CREATE INDEX "dead_letter_audit_by_event" ON "dead_letter_audit" USING btree ("source","event_id");--> statement-breakpoint
CREATE INDEX "dead_letter_audit_by_letter" ON "dead_letter_audit" USING btree ("dead_letter_id");--> statement-breakpoint
CREATE INDEX "events_by_time" ON "events" USING btree ("published_at","stream_seq");--> statement-breakpoint
CREATE INDEX "events_by_trace" ON "events" USING btree ("trace_id");