# Everything is installed into .venv and .nox.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help test test-matrix check demo bench screenshots clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s  %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

test: $(VENV)/nox-installed ## lint, types, layers, and the tests on every Python and Datasette found here
	$(BIN)/nox

test-matrix: $(VENV)/nox-installed ## the tests on both Datasettes, each in an environment of its own
	$(BIN)/nox --session tests tests_datasette1

check: $(VENV)/nox-installed ## lint and the tests on one Python, for while you work
	$(BIN)/nox --session lint tests

demo: $(VENV)/installed ## search Python's own documentation by meaning; SERVE=0 ends after the answers
	$(BIN)/datasette vec demo demo.db $(if $(filter 0,$(SERVE)),--no-serve)

bench: $(VENV)/bench-installed ## print the figures; DATA=dir holds the retrieval sets
	$(BIN)/python -m benchmarks $(if $(DATA),--data "$(DATA)")

screenshots: $(VENV)/nox-installed ## take the README's pictures anew; needs Chromium
	$(BIN)/nox --session screenshots

clean: ## remove what the other targets made
	rm -rf $(VENV) .nox .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build dist
	rm -f demo.db demo.db-wal demo.db-shm
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

# Stamps: installing again is needed only when pyproject.toml changed.
$(VENV)/installed: pyproject.toml | $(BIN)/python
	@echo "Installing into $(VENV): a minute or so the first time"
	@$(PIP) install --quiet --editable .
	@touch $@

$(VENV)/bench-installed: pyproject.toml | $(BIN)/python
	@echo "Installing into $(VENV): a minute or so the first time"
	@$(PIP) install --quiet --editable '.[mcp,sqlalchemy,peewee]'
	@touch $@

$(VENV)/nox-installed: pyproject.toml | $(BIN)/python
	@$(PIP) install --quiet 'nox>=2025.2.9'
	@touch $@
