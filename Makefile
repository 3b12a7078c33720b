# Two commands do everything: `make demo` and `make test`. `make help` lists the rest.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO ?=

# What is installed is what the lock files say, hashes checked; nothing is resolved here.
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed (PYTHON=…)"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "cannot make a virtual environment; on Debian: apt-get install python3-venv"; exit 1; }

$(VENV)/.run: requirements.lock pyproject.toml | $(BIN)/python
	@echo "installing…"
	@$(PIP) install --require-hashes --only-binary :all: -r requirements.lock
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: tests/requirements.lock $(VENV)/.run
	@echo "installing what tests and checks need…"
	@$(PIP) install --require-hashes --only-binary :all: --no-binary forbiddenfruit -r tests/requirements.lock
	@touch $@

# Programs that tests drive as they are, as `command` or `command:package`, by Debian's names. Without
# them their tests are skipped, loudly; in CI they fail. Any other Chromium will do for Debian's.
CHROMIUM := $(or $(TOKEN_BROKER_CHROMIUM),$(shell command -v chromium-browser google-chrome))
SYSTEM := redis-server haproxy faketime cpulimit node:nodejs npm $(if $(CHROMIUM),,chromium)
.PHONY: system
system:
	@missing=""; for name in $(SYSTEM); do command -v $${name%:*} >/dev/null || missing="$$missing $${name#*:}"; done; \
	test -z "$$missing" && exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "installing$$missing…"; \
	  export RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive; \
	  (apt-get install -y -qq $$missing || { apt-get update -qq && apt-get install -y -qq $$missing; }) >/dev/null 2>&1 </dev/null && exit 0; \
	fi; \
	echo "NOT INSTALLED:$$missing. What needs them is skipped. As root: apt-get install$$missing" >&2

# TypeScript checks the browser's module. The lock file names no host: npm's own settings do.
TYPESCRIPT := .tools/typescript
TSC := $(TYPESCRIPT)/node_modules/.bin/tsc
.PHONY: typescript
typescript: system ## install the pinned TypeScript into .tools/
	@cmp -s tests/typescript/package-lock.json $(TYPESCRIPT)/package-lock.json && test -x $(TSC) && exit 0; \
	rm -rf $(TYPESCRIPT) $(TYPESCRIPT).new; mkdir -p $(TYPESCRIPT).new; \
	echo "installing TypeScript…"; \
	cp tests/typescript/{package.json,package-lock.json,.npmrc} $(TYPESCRIPT).new; \
	if why=$$(cd $(TYPESCRIPT).new && npm ci --ignore-scripts --loglevel=error 2>&1 </dev/null); then \
	  mv $(TYPESCRIPT).new $(TYPESCRIPT); \
	else \
	  echo "NOT INSTALLED: TypeScript. What needs it is skipped. $${why:0:400}" >&2; \
	fi

.PHONY: demo
demo: $(VENV)/.run ## run broker, sandbox and identity provider; DEMO="--port 8181 …" passes options
	@exec $(BIN)/token-broker demo $(DEMO)

# What drives a browser waits more than it works, and so runs beside the rest: alone it would be half of
# the time. The chaos rows need the machine for themselves. With ARGS there is one run, of what they say.
# Ctrl-C (2 is pytest's word for it) ends them all; without the trap it would not reach what is behind "&".
BROWSER := $(wildcard tests/test_client*.py tests/test_demo_*.py tests/test_browsing.py tests/test_sandbox_report.py)
CHAOS := tests/test_chaos.py
PYTEST := $(BIN)/python -m pytest
.PHONY: test
test: $(VENV)/.dev system typescript ## run all tests; ARGS="tests/test_x.py -q" some
ifdef ARGS
	@$(PYTEST) $(ARGS)
else
	@$(PYTEST) $(CHAOS); chaos=$$?; test $$chaos != 2 || exit 2; \
	log=$$(mktemp); trap 'rm -f $$log' EXIT; \
	(trap - INT; exec $(PYTEST) -p no:cacheprovider $(BROWSER)) >$$log 2>&1 </dev/null & browser=$$!; \
	$(PYTEST) $(addprefix --ignore=,$(CHAOS) $(BROWSER)); rest=$$?; \
	wait $$browser; browser=$$?; echo "At the same time, in Chromium:"; cat $$log; \
	exit $$((chaos | browser | rest))
endif

.PHONY: chaos
chaos: $(VENV)/.dev system ## break everything under load, and write down what held; ARGS="--soak 600 …"
	$(BIN)/python -m tests.chaos $(ARGS)

.PHONY: check
check: $(VENV)/.dev typescript ## format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@if test -x $(TSC); then echo "$(TSC) -p tests/typescript"; $(TSC) -p tests/typescript; \
	else echo "NOT CHECKED: broker/client/client.js, for want of TypeScript" >&2; test -z "$$CI"; fi

.PHONY: format
format: $(VENV)/.dev ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix-only --quiet .

.PHONY: client-types
client-types: typescript ## write broker/client/client.d.ts anew, from client.js
	@$(TSC) -p tests/typescript --noEmit false --emitDeclarationOnly --outDir broker/client

.PHONY: bench
bench: $(VENV)/.dev ## measure against bare Starlette and a naive broker, in one run
	$(BIN)/python -m benchmarks.run $(ARGS)

.PHONY: overload
overload: $(VENV)/.dev system ## offered load against goodput, two replicas; ARGS="--against DIR --plot X.png …"
	$(BIN)/python -m benchmarks.overload $(ARGS)

.PHONY: audit
audit: $(VENV)/.dev ## look the locked packages up in the vulnerability databases (needs the network)
	$(BIN)/pip-audit --require-hashes --disable-pip -r requirements.lock

.PHONY: lock
lock: $(BIN)/python ## resolve the ranges of pyproject.toml anew (needs the network)
	@$(PIP) install uv
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --no-emit-index-url --no-emit-find-links pyproject.toml --extra redis --group build -o requirements.lock
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --no-emit-index-url --no-emit-find-links -c requirements.lock pyproject.toml --extra redis --group build --group dev -o tests/requirements.lock

.PHONY: clean
clean: ## remove what was installed and cached
	rm -rf $(VENV) .tools .cache .artefacts .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
