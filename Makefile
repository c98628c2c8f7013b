# Everything that is done here, by its name: `make help` lists it.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
LOCK := $(BIN)/pip-compile --quiet --generate-hashes --allow-unsafe --strip-extras \
	--no-emit-index-url --no-emit-find-links --no-emit-trusted-host

.PHONY: help demo test check coverage fuzz lint types dev bench bench-api bench-webhooks chaos-small openapi docs histories \
	screenshots lock clean distclean

help: ## List what can be done
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# The virtual environment; made up to date when what is pinned has changed.
$(READY): requirements-dev.lock pyproject.toml
	scripts/system-packages venv
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

demo: $(READY) ## Run the end-to-end demo (KEEP=1 keeps it running)
	$(BIN)/deployerp demo $(if $(KEEP),--keep)

check: lint types ## Check style and types, and run the unit and API tests on SQLite
	$(BIN)/pytest -n 2 --sqlite tests/core tests/database tests/domain tests/api \
		--ignore tests/api/reference/test_playground.py

test: lint types ## Check and test everything, with real parts
	scripts/system-packages postgres sshd busybox compose chromium curl openssl
	$(BIN)/python -m tests.provide
	$(BIN)/pytest -n 2 --durations 15

coverage: ## Run everything that `make test` runs and report the lines that no test reaches
	$(MAKE) test PYTEST_ADDOPTS="--cov=deployerp --cov-report=term:skip-covered --cov-report=html:.coverage-html"

fuzz: $(READY) ## Try the API's contract at random (FUZZ_SECONDS=600)
	FUZZ_SECONDS=$(or $(FUZZ_SECONDS),600) $(BIN)/pytest tests/fuzz --capture=no

lint: $(READY) ## Style and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(READY) ## mypy --strict
	$(BIN)/mypy

dev: $(READY) ## Run the embedded control plane, with reload
	$(BIN)/deployerp dev --reload

bench: $(READY) ## Measure; the last line of each is one JSON object
	$(BIN)/python bench/operations.py
	$(BIN)/python bench/deploy.py

bench-api: $(READY) ## Measure the API on PostgreSQL with a million instances (QUICK=1 tries it out)
	scripts/system-packages postgres
	$(BIN)/python bench/api.py $(if $(QUICK),--quick)

bench-webhooks: $(READY) ## Measure deliveries beside bare POSTs (QUICK=1 tries it out)
	scripts/system-packages postgres
	$(BIN)/python bench/webhooks.py $(if $(QUICK),--quick)

chaos-small: $(READY) ## Order 100 operations while all is killed and frozen, then audit (SEED=7, or SEEDS="1 2 3")
	scripts/system-packages postgres
	$(BIN)/python -m tests.chaos $(or $(SEED),$(SEEDS),1 2 3)

openapi: $(READY) ## Write openapi.json
	$(BIN)/python docs/openapi.py

docs: $(READY) ## Write the pages that come from the code
	$(BIN)/python docs/generate.py

histories: $(READY) ## Record the workflow histories that the tests replay
	$(BIN)/python -m tests.workflows.record_histories

screenshots: $(READY) ## Take the pictures of Temporal's UI that the documentation shows
	scripts/system-packages chromium
	$(BIN)/python -m tests.workflows.take_screenshots

lock: ## Pin the dependencies of pyproject.toml
	$(LOCK) --extra dev --extra embedded --output-file requirements-dev.lock pyproject.toml
	$(LOCK) --build-deps-for wheel --only-build-deps --output-file requirements-build.lock pyproject.toml
	$(LOCK) --constraint requirements-dev.lock --output-file requirements.lock pyproject.toml

clean: ## Stop what was kept; remove servers, state and caches
	scripts/clean

distclean: clean ## The same, and the images and the virtual environment
	scripts/clean --images
	rm -rf .venv
