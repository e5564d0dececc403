# Every target does its own set-up: only Python 3.11 to 3.13 (with venv), git and make are needed.
#   make demo             start Vidlex, tag a real video over HTTP, leave the service running until Ctrl-C
#   make demo DEMO_EXIT=1 the same, but end by itself (status 0 if the answer was right)
#   make test             lint, types, tests
#   make serve            run the service; ARGS="--port 9000" passes flags on
#   make lint             ruff and mypy only
#   make lint-openapi     check the OpenAPI document with Redocly and Spectral; skipped if npx is not installed
#   make docs             write the generated tables of the documents and the diagram of the folders
#   make test-images      build the image and try compose on a container engine (12 minutes, 20 GB; see docker/RESULTS.md)
#   make test-integrations  exported files in the real Label Studio and FiftyOne (1.6 GB, 3 minutes)
#   make fuzz             send hostile and mutated videos to a service; ARGS="--num-files 10000" sets their number
# VENV=path uses (or makes) a virtual environment elsewhere; PYTHON=python3.12 chooses the interpreter.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV ?= .venv
BIN := $(abspath $(VENV))/bin
PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.13; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null \
	&& { echo $$p; break; }; done)
ARGS ?=
PYTEST_ARGS ?=

.PHONY: help setup setup-dev demo test test-images test-integrations serve lint lint-openapi docs fuzz format

help:
	@sed -n '2,12s/^#  \{0,2\}//p' Makefile

setup setup-dev:
	@if [ -z "$(PYTHON)" ]; then \
		echo "Python 3.11, 3.12 or 3.13 with its venv module is needed (on Debian: the package python3-venv)." >&2; exit 1; fi
	@$(PYTHON) .ci/setup_venv.py "$(VENV)" $(if $(filter setup-dev,$@),--dev)

demo: setup
	@exec $(BIN)/vidlex demo $(if $(filter-out 0 no false,$(DEMO_EXIT)),--exit) $(ARGS)

serve: setup
	@exec $(BIN)/vidlex serve $(ARGS)

lint: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lint-openapi: setup-dev
	@command -v npx >/dev/null || { echo "npx is not installed: skipped" >&2; exit 0; }; \
	document=$$(mktemp -d)/openapi.json; trap 'rm -r "$$(dirname "$$document")"' EXIT; \
	$(BIN)/python -m vidlex.service.print_openapi > "$$document"; \
	REDOCLY_TELEMETRY=off npx --yes @redocly/cli@2 lint --config .redocly.yaml "$$document"; \
	npx --yes @stoplight/spectral-cli@6 lint --ruleset .spectral.yaml --fail-severity warn "$$document"

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile $(PYTEST_ARGS)

test-images: setup-dev
	@PYTHONPATH=tests exec $(BIN)/python -m images $(ARGS)

test-integrations: setup-dev
	@PYTHONPATH=tests exec $(BIN)/python -m integrations $(ARGS)

docs: setup-dev
	@PYTHONPATH=tests $(BIN)/python -m house.tables

fuzz: setup-dev
	@PYTHONPATH=tests exec $(BIN)/python -m fuzz $(ARGS)

format: setup-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
