# Everything for a clone: `make demo` shows what mlimg makes, `make test` runs what CI runs.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

PYTHON ?= python3
PYTEST_ARGS ?=
RUN := .venv/bin
CODE := $(wildcard mlimg templates tests tools examples hatch_build.py)
export PYTHON

.PHONY: help
help: ## Say what there is to make
	@sed -nE 's/^([a-z-]+):.*## (.*)/make \1\t\2/p' Makefile | expand -t 22

.PHONY: demo
demo: venv engine base ## Train, build in both patterns, serve, predict and compare
	$(RUN)/python tools/demo.py

.PHONY: test
test: venv engine base test-packages lint types unit integration ## Everything that CI runs

.PHONY: venv
venv: .venv/.made ## The virtual environment with mlimg and its development tools

.venv/.made: pyproject.toml hatch_build.py mlimg/hashing/both.c tools/venv.sh
	tools/venv.sh
	@touch $@

.PHONY: engine
engine: ## A Docker Engine with buildx and compose: the one that answers, else (root, Debian) an installed one
	tools/engine.sh

.PHONY: base
base: engine ## A slim Python base image: pulled, or built from Debian's packages
	tools/base-image.sh

.PHONY: test-packages
test-packages: ## The registry and the clients that the integration tests use
	tools/test-packages.sh

.PHONY: lint
lint: venv ## ruff
	$(RUN)/ruff check $(CODE)
	$(RUN)/ruff format --check $(CODE)

.PHONY: types
types: venv ## mypy, strict
	$(RUN)/mypy

.PHONY: unit
unit: venv ## Unit and golden tests: no Docker, no network
	$(RUN)/python -m pytest --numprocesses auto $(wildcard tests/unit tests/golden) $(PYTEST_ARGS)

.PHONY: integration
integration: venv engine base test-packages ## Tests with real engines and registries, one example of each template
	$(RUN)/python -m pytest -m "not extensive" tests/integration $(PYTEST_ARGS)

.PHONY: examples
examples: venv engine base ## Every example, every way to spoil its model, every template's server; not in `make test`
	$(RUN)/python -m pytest tests/integration/test_examples.py tests/integration/test_template_sizes.py $(PYTEST_ARGS)

.PHONY: bench
bench: ## Print the commands of the benchmarks
	@grep -l __main__ tests/bench/*.py | sed 's|^|$(RUN)/python |'

.PHONY: clean-dev
clean-dev: ## Remove what the targets above made; the engine and python:3.13-slim stay
	tools/clean-dev.sh
