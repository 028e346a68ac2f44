CREATE TABLE "workflow_listeners" (
	"type" text NOT NULL,
	"path" text[] NOT NULL,
	"workflow" text DEFAULT '' NOT NULL,
	"version" text DEFAULT '' NOT NULL,
	"queue" text DEFAULT 'default' NOT NULL,
	"priority" smallint DEFAULT 0 NOT NULL,
	"reuse" text DEFAULT 'never' NOT NULL,
	"timeout_ms" bigint,
	CONSTRAINT "workflow_listeners_type_workflow_path_pk" PRIMARY KEY("type","workflow","path")
);
--> statement-breakpoint
CREATE TABLE "workflow_mailboxes" (
	"type" text NOT NULL,
	"path" text[] NOT NULL,
	"key" text NOT NULL,
	"count" bigint DEFAULT 0 NOT NULL,
	"mail" jsonb DEFAULT '[]'::jsonb NOT NULL,
	"touched_at" timestamp (6) with time zone DEFAULT clock_timestamp() NOT NULL,
	CONSTRAINT "workflow_mailboxes_type_key_path_pk" PRIMARY KEY("type","key","path")
);
--> statement-breakpoint
CREATE TABLE "workflow_runs" (
	"run_id" uuid PRIMARY KEY NOT NULL,
	"id" text,
	"generation" integer DEFAULT 1 NOT NULL,
	"name" text NOT NULL,
	"version" text DEFAULT '' NOT NULL,
	"queue" text DEFAULT 'default' NOT NULL,
	"priority" smallint DEFAULT 0 NOT NULL,
	"concurrency_key" text,
	"status" text NOT NULL,
	"input" json,
	"output" json,
	"error" json,
	"state" json,
	"attributes" jsonb,
	"traceparent" text,
	"worker" uuid,
	"epoch" integer DEFAULT 0 NOT NULL,
	"wakes" integer DEFAULT 0 NOT NULL,
	"due_at" timestamp (6) with time zone,
	"deadline_at" timestamp (6) with time zone,
	"parent_id" uuid,
	"cancel_requested_at" timestamp (6) with time zone,
	"created_at" timestamp (6) with time zone DEFAULT clock_timestamp() NOT NULL,
	"finished_at" timestamp (6) with time zone
);
--> statement-breakpoint
CREATE TABLE "workflow_signals" (
	"run_id" uuid NOT NULL,
	"seq" bigint GENERATED ALWAYS AS IDENTITY (sequence name "workflow_signals_seq_seq" INCREMENT BY 1 MINVALUE 1 MAXVALUE 9223372036854775807 START WITH 1 CACHE 1),
	"name" text NOT NULL,
	"payload" json,
	"at" timestamp (6) with time zone DEFAULT clock_timestamp() NOT NULL,
	CONSTRAINT "workflow_signals_run_id_seq_pk" PRIMARY KEY("run_id","seq")
);
--> statement-breakpoint
CREATE TABLE "workflow_steps" (
	"run_id" uuid NOT NULL,
	"pos" integer NOT NULL,
	"ord" integer,
	"kind" text NOT NULL,
	"name" text NOT NULL,
	"output" json,
	"error" json,
	"attempt" smallint DEFAULT 1 NOT NULL,
	"due_at" timestamp (6) with time zone,
	"at" timestamp (6) with time zone NOT NULL,
	"ms" double precision,
	CONSTRAINT "workflow_steps_run_id_pos_pk" PRIMARY KEY("run_id","pos")
);
--> statement-breakpoint
CREATE TABLE "workflow_waits" (
	"run_id" uuid NOT NULL,
	"pos" integer NOT NULL,
	"type" text NOT NULL,
	"path" text[] NOT NULL,
	"key" text NOT NULL,
	"mail_number" bigint,
	"source" text,
	"event_id" text,
	CONSTRAINT "workflow_waits_run_id_pos_pk" PRIMARY KEY("run_id","pos")
);
--> statement-breakpoint
CREATE TABLE "workflow_workers" (
	"id" uuid PRIMARY KEY NOT NULL,
	"name" text NOT NULL,
	"expires_at" timestamp (6) with time zone NOT NULL
);
--> statement-breakpoint
CREATE INDEX "workflow_mailboxes_by_time" ON "workflow_mailboxes" USING btree ("touched_at");--> statement-breakpoint
CREATE UNIQUE INDEX "workflow_runs_by_id" ON "workflow_runs" USING btree ("id","generation") WHERE "workflow_runs"."id" is not null;--> statement-breakpoint
CREATE INDEX "workflow_runs_queued" ON "workflow_runs" USING btree ("queue","priority","run_id") WHERE "workflow_runs"."status" = 'queued';--> statement-breakpoint
CREATE INDEX "workflow_runs_running" ON "workflow_runs" USING btree ("worker") WHERE "workflow_runs"."status" = 'running';--> statement-breakpoint
CREATE INDEX "workflow_runs_due" ON "workflow_runs" USING btree ("due_at") WHERE "workflow_runs"."status" = 'waiting';--> statement-breakpoint
CREATE INDEX "workflow_waits_by_key" ON "workflow_waits" USING btree ("type","key","path") WHERE "workflow_waits"."source" is null;