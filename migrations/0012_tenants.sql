-- Whose row it is. Processes of earlier versions know no tenants, and their statements miss the keys they had: they hold
-- what they cannot write until they are replaced.
ALTER TABLE "dead_letter_audit" ADD COLUMN "tenant" text DEFAULT 'default' NOT NULL;--> statement-breakpoint
ALTER TABLE "event_schema_modes" ADD COLUMN "tenant" text DEFAULT 'default' NOT NULL;--> statement-breakpoint
ALTER TABLE "event_schemas" ADD COLUMN "tenant" text DEFAULT 'default' NOT NULL;--> statement-breakpoint
ALTER TABLE "workflow_mailboxes" ADD COLUMN "tenant" text DEFAULT 'default' NOT NULL;--> statement-breakpoint
ALTER TABLE "workflow_runs" ADD COLUMN "tenant" text DEFAULT 'default' NOT NULL;--> statement-breakpoint
ALTER TABLE "workflow_schedules" ADD COLUMN "tenant" text DEFAULT 'default' NOT NULL;--> statement-breakpoint
ALTER TABLE "workflow_waits" ADD COLUMN "tenant" text DEFAULT 'default' NOT NULL;--> statement-breakpoint
ALTER TABLE "event_schema_modes" DROP CONSTRAINT "event_schema_modes_pkey";--> statement-breakpoint
ALTER TABLE "event_schema_modes" ADD CONSTRAINT "event_schema_modes_pk" PRIMARY KEY("type","tenant");--> statement-breakpoint
ALTER TABLE "event_schemas" DROP CONSTRAINT "event_schemas_type_version_pk";--> statement-breakpoint
ALTER TABLE "event_schemas" ADD CONSTRAINT "event_schemas_pk" PRIMARY KEY("type","version","tenant");--> statement-breakpoint
ALTER TABLE "workflow_mailboxes" DROP CONSTRAINT "workflow_mailboxes_type_key_path_pk";--> statement-breakpoint
ALTER TABLE "workflow_mailboxes" ADD CONSTRAINT "workflow_mailboxes_pk" PRIMARY KEY("type","key","path","tenant");--> statement-breakpoint
ALTER TABLE "workflow_schedules" DROP CONSTRAINT "workflow_schedules_pkey";--> statement-breakpoint
ALTER TABLE "workflow_schedules" ADD CONSTRAINT "workflow_schedules_pk" PRIMARY KEY("name","tenant");--> statement-breakpoint
CREATE UNIQUE INDEX "workflow_runs_by_name" ON "workflow_runs" USING btree ("id","tenant","generation") WHERE "workflow_runs"."id" is not null;--> statement-breakpoint
DROP INDEX "workflow_runs_by_id";
--> statement-breakpoint
INSERT INTO "schema_breaks" VALUES ('0012_tenants');
