# Everything runs from .venv, which is made on first use from the lock file, by hash.
# Paths are relative, so that the checkout may stand in a directory with spaces.

.DEFAULT_GOAL := help
.NOTPARALLEL:

# The first Python in range that can make a virtual environment; `make PYTHON=…` overrides.
PYTHON ?= $(shell for name in python3.13 python3.12 python3.11 python3; do \
	"$$name" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
		2>/dev/null && { echo "$$name"; break; }; done)

BIN := .venv/bin
UV_VERSION := 0.13.9

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-13s %s\n", $$1, $$2 }' Makefile

.PHONY: demo
demo: venv ## See it work: start everything, run jobs, kill a worker, lose nothing
	$(BIN)/python -m worker demo

.PHONY: up
up: venv ## Run the whole service on this machine until Ctrl-C
	$(BIN)/python -m worker up

.PHONY: check
check: formatted lint types imports test k8s ## All that CI checks

.PHONY: test
test: venv ## Run the tests, on real Postgres and Redis
# Most of them wait for something, so two run at once; the chaos run wants the machine for itself.
# tests/k8s has tools of its own, by `make k8s`; tests/compose an engine, by `make compose-test`.
	$(BIN)/python -m pytest -n 2 --dist loadfile --ignore tests/chaos/test_chaos.py \
		--ignore tests/k8s --ignore tests/compose
	$(BIN)/python -m pytest tests/chaos/test_chaos.py

# Needs kubectl too, for kustomize; without it, it says so, and fails in CI only.
.PHONY: k8s
k8s: venv .venv-k8s/installed ## Render k8s/ in every combination, and judge it
	$(BIN)/python -m pytest tests/k8s

.venv-k8s/installed: requirements-k8s.lock
	"$(PYTHON)" -m venv --clear .venv-k8s
	.venv-k8s/bin/python -m pip install --quiet --require-hashes -r requirements-k8s.lock
	@touch $@

# make chaos MINUTES=30 SEED=7 NEMESIS=flushall,kill-worker
# OPTIONS takes any other, such as OPTIONS='--lease 15'; see python -m tests.chaos --help
MINUTES ?= 5
SEED ?=
NEMESIS ?= all
OPTIONS ?=
.PHONY: chaos
chaos: venv ## Break a real service in every way for MINUTES, and judge its history
	$(BIN)/python -m tests.chaos --minutes $(MINUTES) --nemesis $(NEMESIS) \
		$(if $(SEED),--seed '$(SEED)') $(if $(REPORT),--report '$(REPORT)') $(OPTIONS)

.PHONY: recovery
recovery: venv ## Measure how soon a killed worker's jobs run again, beside stock Celery
	$(BIN)/python -m tests.chaos.recovery $(if $(REPORT),--json $(REPORT))

# QUICK=1: only what the first six ratios need, in under 8 minutes. Else about 50 minutes.
# OPTIONS takes any other, such as OPTIONS='--sections latency'; see python -m tests.bench --help
QUICK ?=
.PHONY: bench
bench: .venv/bench ## Measure it beside stock Celery and its peers (QUICK=1: the most of it)
	$(BIN)/python -m tests.bench $(if $(QUICK),--quick) $(if $(REPORT),--json $(REPORT)) $(OPTIONS)

.venv/bench: .venv/installed requirements-bench.lock
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements-bench.lock
	@touch $@

# make image BUILD='--network host'
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
BUILD ?=
.PHONY: image
image: ## Build the container image, tagged with the version
	docker build --file docker/Dockerfile --tag celery-ledger:$(VERSION) \
		--build-arg VERSION=$(VERSION) \
		--build-arg REVISION=$$(git rev-parse HEAD 2>/dev/null || echo unknown) $(BUILD) .

# Needs an engine, and takes minutes; without one it says so and does nothing.
JOBS ?= 2000
.PHONY: compose-test
compose-test: venv ## On a real Docker engine: build, start, scale and kill the stack under JOBS jobs
	COMPOSE_TEST_JOBS=$(JOBS) $(BIN)/python -m pytest -o faulthandler_timeout=1800 tests/compose

.PHONY: compose-smoke
compose-smoke: JOBS = 300
compose-smoke: compose-test ## The same with 300 jobs

.PHONY: format
format: venv ## Format the code
	$(BIN)/python -m ruff format .
	$(BIN)/python -m ruff check --fix-only --quiet .

.PHONY: formatted
formatted: venv
	$(BIN)/python -m ruff format --check .

.PHONY: lint
lint: venv ## Lint
	$(BIN)/python -m ruff check .

.PHONY: types
types: venv ## Check types, strictly
	$(BIN)/python -m mypy

.PHONY: imports
imports: venv ## Check the import contracts between the rooms
# Without its cache: it has said KEPT where a contract was broken.
	$(BIN)/lint-imports --no-cache

.PHONY: venv
venv: .venv/installed ## Make .venv, or bring it up to date

.venv/installed: requirements-dev.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python from 3.11 to 3.13 that can make a virtual" \
		"environment was found; install one (on Debian: apt-get install python3-venv)." >&2; exit 1; }
	@echo "Making .venv with $(PYTHON) ..."
	@"$(PYTHON)" -m venv --clear .venv
	@echo "Installing $$(grep -c '^[a-z].*==' requirements-dev.lock) packages into it; this takes" \
		"a minute or two, and needs the network ..."
	@$(BIN)/python -m pip install --quiet --require-hashes -r requirements-dev.lock
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@echo ".venv is ready."
	@touch $@

.PHONY: lock
lock: venv ## Resolve the dependencies anew, into the lock files
	$(BIN)/python -m pip install --quiet "uv==$(UV_VERSION)"
	$(COMPILE) --extra flower -o requirements.lock pyproject.toml
	$(COMPILE) --extra local --extra flower --extra dev -o requirements-dev.lock pyproject.toml
# The constraint: a bench measures what the tests have tested.
	$(COMPILE) --extra local --extra flower --extra dev --extra bench \
		-c requirements-dev.lock -o requirements-bench.lock pyproject.toml
	$(COMPILE) -o requirements-k8s.lock tests/k8s/tools.txt
COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--upgrade --custom-compile-command "make lock"

.PHONY: clean
clean: ## Remove .venv, .venv-k8s and every cache
	rm -rf .venv .venv-k8s build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# For .ci/run: which Python it would be; nothing when there is none.
.PHONY: python
python:
	@echo "$(PYTHON)"
