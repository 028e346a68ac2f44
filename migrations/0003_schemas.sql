CREATE TABLE "event_schema_modes" (
	"type" text PRIMARY KEY NOT NULL,
	"mode" text NOT NULL
);
--> statement-breakpoint
CREATE TABLE "event_schemas" (
	"type" text NOT NULL,
	"version" integer NOT NULL,
	"schema" jsonb NOT NULL,
	"updated_at" timestamp (6) with time zone DEFAULT clock_timestamp() NOT NULL,
	CONSTRAINT "event_schemas_type_version_pk" PRIMARY KEY("type","version")
);
