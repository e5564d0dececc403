# Every target does its own set-up: only Python >= 3.11 (with venv), git and make are needed.
#   make demo             start Vidlex, tag a real video over HTTP, leave the service running until Ctrl-C
#   make demo DEMO_EXIT=1 the same, but end by itself (status 0 if the answer was right)
#   make test             lint, types, tests
#   make serve            run the service; ARGS="--port 9000" passes flags on
#   make lint             ruff and mypy only
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

.PHONY: help setup demo test serve lint format

help:
	@sed -n '2,7s/^#  \{0,2\}//p' Makefile

setup:
	@if [ -z "$(PYTHON)" ]; then \
		echo "Python 3.11, 3.12 or 3.13 with its venv module is needed (on Debian: the package python3-venv)." >&2; exit 1; fi
	@$(PYTHON) .ci/setup_venv.py "$(VENV)"

demo: setup
	@exec $(BIN)/vidlex demo $(if $(filter-out 0 no false,$(DEMO_EXIT)),--exit) $(ARGS)

serve: setup
	@exec $(BIN)/vidlex serve $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest $(PYTEST_ARGS)

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
