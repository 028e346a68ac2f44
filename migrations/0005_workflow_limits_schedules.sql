CREATE TABLE "workflow_definitions" (
	"name" text NOT NULL,
	"version" text NOT NULL,
	"queue" text NOT NULL,
	"priority" smallint NOT NULL,
	"timeout_ms" bigint,
	"first_seen_at" timestamp (6) with time zone DEFAULT clock_timestamp() NOT NULL,
	CONSTRAINT "workflow_definitions_name_version_pk" PRIMARY KEY("name","version")
);
--> statement-breakpoint
CREATE TABLE "workflow_queues" (
	"queue" text PRIMARY KEY NOT NULL,
	"concurrency" integer,
	"per_key" integer,
	"rate" integer,
	"rate_ms" bigint,
	"tokens" double precision DEFAULT 0 NOT NULL,
	"refilled_at" timestamp (6) with time zone DEFAULT clock_timestamp() NOT NULL
);
--> statement-breakpoint
CREATE TABLE "workflow_schedules" (
	"name" text PRIMARY KEY NOT NULL,
	"workflow" text NOT NULL,
	"version" text,
	"input" json,
	"options" jsonb DEFAULT '{}'::jsonb NOT NULL,
	"cron" text,
	"every_ms" bigint,
	"timezone" text DEFAULT 'UTC' NOT NULL,
	"overlap" text NOT NULL,
	"catch_up_ms" bigint NOT NULL,
	"paused" boolean DEFAULT false NOT NULL,
	"revision" integer DEFAULT 1 NOT NULL,
	"next_at" timestamp (6) with time zone NOT NULL,
	"running" uuid[] DEFAULT '{}' NOT NULL,
	"buffered_at" timestamp (6) with time zone,
	"last_at" timestamp (6) with time zone,
	"last_run_id" uuid,
	"started" bigint DEFAULT 0 NOT NULL,
	"skipped" bigint DEFAULT 0 NOT NULL,
	"created_at" timestamp (6) with time zone DEFAULT clock_timestamp() NOT NULL
);
--> statement-breakpoint
ALTER TABLE "workflow_runs" ADD COLUMN "holds" boolean DEFAULT false NOT NULL;--> statement-breakpoint
CREATE INDEX "workflow_runs_holding" ON "workflow_runs" USING btree ("queue","concurrency_key") WHERE "workflow_runs"."holds" and "workflow_runs"."finished_at" is null;--> statement-breakpoint
CREATE INDEX "workflow_runs_dead" ON "workflow_runs" USING btree ("run_id") WHERE "workflow_runs"."status" in ('failed', 'stuck');--> statement-breakpoint
CREATE INDEX "workflow_runs_by_attributes" ON "workflow_runs" USING gin ("attributes" jsonb_path_ops) WHERE "workflow_runs"."attributes" is not null;