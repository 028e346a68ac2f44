DROP INDEX "events_by_time";--> statement-breakpoint
ALTER TABLE "events" ADD COLUMN "stream_place" integer DEFAULT 0 NOT NULL;--> statement-breakpoint
CREATE INDEX "events_by_time" ON "events" USING btree ("published_at","stream_seq","stream_place");