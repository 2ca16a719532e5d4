# `make` lists the targets. ARGS reaches the command: make run ARGS="--for 60"
.DEFAULT_GOAL := help
.PHONY: help setup run test test-pythons lint chaos chaos-landers outage soak fuzz fuzz-records flood docs bench \
	bench-streams bench-ingest bench-warehouse bench-alerts bench-checks lock clean

PYTHON ?= python3
BIN := .venv/bin
ARGS ?=

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# The stamp is newer than every file that determines what is installed, so a second run has nothing to do.
.venv/.stamp: requirements.lock pyproject.toml smspulse/broker/kafka/pom.xml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' || \
		{ echo "Python 3.11, 3.12, 3.13 or 3.14 is needed, this is $$($(PYTHON) -V 2>&1): make PYTHON=/path/to/python3.11 setup"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing the packages of requirements.lock (a minute or two) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@$(BIN)/smspulse broker --fetch
	@touch $@

setup: .venv/.stamp ## create .venv and download Kafka; needed once

run: setup ## run the pipeline with simulated traffic, until Ctrl-C; ARGS="--for 60" ends and reconciles
	@$(BIN)/smspulse up --demo $(ARGS)

.venv/kafka.jsa: .venv/.stamp tests/support/class_archive.py
	@$(BIN)/python tests/support/class_archive.py $@

# Of four processes two wait for Kafka most of the time. They, and the hundreds of processes that tests start, compile
# everything again where an environment keeps Python from writing bytecode.
test: .venv/kafka.jsa ## run every test; ARGS="-k name" selects
	@PYTHONDONTWRITEBYTECODE= $(BIN)/pytest --numprocesses 4 $(ARGS)

test-pythons: setup ## run the unit tests on every other Python from 3.11 to 3.14 that is installed
	@$(BIN)/python tests/support/pythons.py $(ARGS)

chaos: setup ## kill processes under load and compare with the ground truth; ARGS="--kills 100"
	@$(BIN)/python tests/chaos/chaos.py $(ARGS)

outage: setup ## take Kafka away from ingest for ten minutes; ARGS="--seconds 60 --kills 10 --processes 2"
	@$(BIN)/python tests/chaos/outage.py $(ARGS)

chaos-landers: setup ## kill one of two landers a thousand times; ARGS="--kills 50 --concurrent"
	@$(BIN)/python tests/chaos/landers.py $(ARGS)

soak: setup ## run all under steady traffic, and measure files, memory, log and queries; ARGS="--minutes 30 --rate 500"
	@$(BIN)/python tests/chaos/soak.py $(ARGS)

fuzz: setup ## send ingest a million requests that no gateway sends, then run fuzz-records; ARGS="--requests 10000"
	@$(BIN)/python tests/chaos/fuzz.py $(ARGS)
	@$(BIN)/python tests/chaos/fuzz_records.py

fuzz-records: setup ## pass 200,000 odd bodies through every reader, in process and with processes; ARGS="--bodies 20000"
	@$(BIN)/python tests/chaos/fuzz_records.py $(ARGS)

bench: bench-streams bench-ingest bench-warehouse bench-alerts bench-checks ## run every benchmark; ARGS=--quick for short runs

bench-streams: setup ## the stream worker and its peers, some eight minutes
	@$(BIN)/python bench/streams.py $(ARGS)

bench-ingest: setup ## ingest, the bare handler and a peer, some nine minutes; needs wrk
	@$(BIN)/python bench/webhooks.py $(ARGS)

bench-warehouse: setup ## the lander; marts, look-ups, rebuild and size of ten million messages, some fifteen minutes
	@$(BIN)/python bench/lander.py $(ARGS)
	@$(BIN)/python bench/marts.py $(ARGS)

bench-checks: setup ## inject every fault, check a hundred clean days and a million messages; writes docs/faults.md
	@$(BIN)/python bench/checks.py $(ARGS)

bench-alerts: setup ## time to an alert and false alarms, compared with other rules; some ten minutes
	@$(BIN)/python bench/alerts.py $(ARGS)
	@$(BIN)/python bench/alert_cause.py $(ARGS)

lint: setup ## check style, types and imports between packages
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

flood: setup ## attack ingest from one address in some fifteen ways; ARGS="--seconds 20 --only metrics"
	@$(BIN)/python tests/chaos/flood.py $(ARGS)

docs: ## build the documentation as a site in .venv/site; fails on a warning
	@test -x .venv/docs/bin/mkdocs || $(PYTHON) -m venv .venv/docs
	@.venv/docs/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r docs/requirements.txt
	@NO_MKDOCS_2_WARNING=1 .venv/docs/bin/mkdocs build --strict --quiet --site-dir .venv/site

lock: setup ## update requirements.lock to the newest versions that pyproject.toml allows
	@$(BIN)/python -m pip install --quiet --target .venv/lock uv
	@PYTHONPATH=.venv/lock $(BIN)/python -m uv pip compile pyproject.toml --all-extras --universal --upgrade \
		--python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header --quiet -o requirements.lock

clean: ## remove .venv and caches; data folders stay
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
