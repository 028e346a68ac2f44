DROP INDEX "dead_letter_audit_by_event";--> statement-breakpoint
ALTER TABLE "dead_letter_audit" ADD COLUMN "type" text;--> statement-breakpoint
ALTER TABLE "dead_letter_audit" ADD COLUMN "code" text;--> statement-breakpoint
CREATE INDEX "dead_letter_audit_by_type" ON "dead_letter_audit" USING btree ("type","seq");--> statement-breakpoint
CREATE INDEX "dead_letter_audit_by_code" ON "dead_letter_audit" USING btree ("code","seq");--> statement-breakpoint
CREATE INDEX "dead_letter_audit_by_time" ON "dead_letter_audit" USING btree ("at");--> statement-breakpoint
CREATE INDEX "dead_letter_audit_by_event" ON "dead_letter_audit" USING hash ("event_id");