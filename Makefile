# Installs what a command needs into .venv on first use. LANDING=<folder> selects your own images, one sub-folder per label.

PYTHON := $(or $(PYTHON),$(shell python3.11 -c '' 2>/dev/null && echo python3.11 || echo python3))
BIN := .venv/bin

ifdef LANDING
export IMAGE_ASSETS_LANDING := $(LANDING)
endif

.PHONY: help install tools s3 demo dev cluster test test-fast soak check check-data audit doctor bench docs
.DEFAULT_GOAL := help

help: ## list the commands
	@sed -n 's/^\([a-z0-9-]*\):[^#]*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

install: ## install everything into .venv, for a GPU as well if there is one or CUDA=yes; skips what is there
	@$(PYTHON) -m scripts.install

tools: ## install also what checks and tests need
	@$(PYTHON) -m scripts.install --with test --with docs

s3: install ## download the jars that Spark needs to read and write s3://
	@$(BIN)/image-assets s3

demo: ## run the whole graph on sample images, or on LANDING=<folder>; installs Horovod meanwhile
	@$(PYTHON) -m scripts.install --background
	@$(BIN)/image-assets demo

dev: install ## serve the Dagster and MLflow UIs and the gallery, with the sensors running
	@$(BIN)/image-assets dev

cluster: install ## run a Spark cluster of two workers on this machine, until Ctrl-C
	@$(BIN)/image-assets cluster

check: tools ## check formatting, lint, types and import rules
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/pyright
	$(BIN)/lint-imports

test-fast: tools ## the tests of plain functions, and one small run of each table, in about three minutes
	$(BIN)/pytest -n 2 -m "small_run or not (spark or training or path or gpu or slow)"

# Tests run side by side: with more threads for each library, idle ones would compete for the cores.
test: export OMP_NUM_THREADS = 1
test: check ## run the checks, then every test that this machine can run: WORKERS=<tests at a time>
	$(BIN)/pytest -n $(or $(WORKERS),2) -m "not (spark or training or path or gpu)"
	$(BIN)/pytest -n $(or $(WORKERS),2) -m "spark or training or path"

soak: tools ## simulate faults of disks, tables and registries for longer: SCHEDULES=<number> SEED=<first seed>
	SCHEDULES=$(or $(SCHEDULES),2000) SEED=$(or $(SEED),$(shell date +%s)) $(BIN)/pytest -n 2 tests/test_simulation.py

check-data: install ## evaluate every asset check on the current tables; fails if an ERROR check does
	@$(BIN)/image-assets check-data

audit: install ## read every file and row, and compare each table with its sources
	@$(BIN)/image-assets audit

doctor: install ## test each part of the setup, and print how to fix what fails
	@$(BIN)/image-assets doctor

bench: install ## run the benchmarks: ONLY=<benchmark> SIZE=<images> REPEATS=<runs> PHOTOGRAPHS=<folder> BEFORE=<commit>
	@$(BIN)/image-assets bench $(if $(ONLY),--only $(ONLY)) $(if $(SIZE),--size $(SIZE)) \
		$(if $(REPEATS),--repeats $(REPEATS)) $(if $(PHOTOGRAPHS),--photographs "$(PHOTOGRAPHS)")

docs: ## build the documentation as a site in build/site
	@$(PYTHON) -m scripts.install --with docs
	@$(BIN)/image-assets docs
