# The entry points for people and CI alike. `make serve` and `make test` need nothing but Python 3.11 or newer; the
# first call creates .venv and installs the pinned packages into it.

VENV    := .venv
BIN     := $(VENV)/bin
STAMP   := $(VENV)/.installed
DEV     := $(VENV)/.installed-dev
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
NODE    := tests/http/node
CLIENTS := .venv-clients
ARGS    ?=

# The first interpreter that works and is new enough (a pyenv shim may exist without working).
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo "$$p"; break; }; done)

.DEFAULT_GOAL := help
.PHONY: help serve test test-slow check format benchmarks clean node clients

help:
	@echo 'make serve       start the server on the embedded demo model; flags: make serve ARGS="--port 9000"'
	@echo 'make test        run the test suite; flags: make test ARGS="-k scheduler -x"'
	@echo 'make test-slow   run the long tests'
	@echo 'make check       check with ruff (lint and format) and mypy'
	@echo 'make format      fix and format the code with ruff'
	@echo 'make benchmarks  run the benchmarks; writes one JSON document to bench-results/'
	@echo 'make clean       remove .venv, caches and build output'

serve: $(STAMP)
	$(BIN)/python -m server serve $(ARGS)

test: $(DEV) node clients
	$(BIN)/python -m pytest $(ARGS)

test-slow: $(DEV) node clients
	$(BIN)/python -m pytest -m slow $(ARGS)

check: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmarks: $(DEV)
	@mkdir -p bench-results
	@file=bench-results/$$(date -u +%Y%m%dT%H%M%SZ).json; status=0; \
		$(BIN)/python -m benchmarks $(ARGS) >"$$file" || status=$$?; cat "$$file"; exit $$status

clean:
	rm -rf $(VENV) $(CLIENTS) $(NODE)/node_modules build dist bench-results *.egg-info \
		.pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last, so an interrupted installation is run again. If pip does not run, the creation of the
# venv was interrupted or its interpreter is gone, and it is created again.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo 'SpecVLM needs Python 3.11 or newer; set its path: make PYTHON=/path/to/python3' >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || { \
		echo 'This Python cannot create virtual environments (on Debian and Ubuntu: apt install python3-venv)' >&2; exit 1; }
	$(INSTALL) setuptools
	$(INSTALL) --no-build-isolation -e '.[client]'
	@touch $@

# What serving does not need: linters, test tools, plots, file formats of training data.
$(DEV): $(STAMP)
	$(INSTALL) --no-build-isolation -e '.[dev]'
	@touch $@

# The npm client is used by one test file, which reports when it has to be skipped.
node:
	@if command -v npm >/dev/null 2>&1; then $(MAKE) --no-print-directory $(NODE)/node_modules/.package-lock.json \
		|| echo 'npm packages could not be installed: the Node client tests will be skipped' >&2; fi

$(NODE)/node_modules/.package-lock.json: $(NODE)/package.json $(NODE)/package-lock.json
	npm ci --prefix $(NODE) --no-audit --no-fund --loglevel=error
	@touch $@

# Third-party clients and their dependencies, in an environment of their own because their pins would conflict with
# ours. The list is complete and pinned, so nothing is resolved; their tests report when they have to be skipped.
clients: $(STAMP)
	@$(MAKE) --no-print-directory $(CLIENTS)/.installed \
		|| echo 'the client libraries could not be installed: their tests will be skipped' >&2

$(CLIENTS)/.installed: tests/clients/requirements.txt
	@rm -f $@
	@test -x $(CLIENTS)/bin/python || $(BIN)/python -m venv --without-pip $(CLIENTS)
	$(BIN)/python -m pip --python $(CLIENTS) install --quiet --disable-pip-version-check --no-deps --no-compile -r $<
	@touch $@
