# The commands to learn. LANDING=<folder> names another folder of photographs, one sub-folder per label.

PYTHON := $(or $(PYTHON),$(shell python3.11 -c '' 2>/dev/null && echo python3.11 || echo python3))
BIN := .venv/bin

ifdef LANDING
export IMAGE_ASSETS_LANDING := $(LANDING)
endif

.PHONY: help install s3 demo dev cluster test check check-data audit doctor bench docs
.DEFAULT_GOAL := help

help: ## the commands
	@sed -n 's/^\([a-z0-9-]*\):[^#]*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

install: ## set everything up in .venv; does nothing where nothing changed
	@$(PYTHON) -m scripts.install

s3: install ## the jars with which Spark reads and writes s3://
	@$(BIN)/python -m scripts.jars s3

demo: install ## materialize the whole graph on sample images, or on LANDING=<folder>
	@$(BIN)/python -m scripts.demo

dev: install ## the Dagster and MLflow UIs and the gallery, with the sensors running
	@$(BIN)/python -m scripts.dev

cluster: install ## a Spark cluster of two workers on this machine, until Ctrl-C
	@$(BIN)/python -m scripts.cluster

check: install ## formatting, lint, types, import rules
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/pyright
	$(BIN)/lint-imports

test: check ## the checks, then every test that this machine can run, kind by kind
	$(BIN)/pytest -n 2 --dist loadfile -m "not spark and not training and not path and not gpu"
	$(BIN)/pytest -n 2 --dist loadfile -m "spark and not training"
	$(BIN)/pytest -n 2 --dist loadfile -m training
	$(BIN)/pytest -m path

check-data: install ## every asset check on the tables as they are; fails when one of severity ERROR does
	@$(BIN)/python -m scripts.checks check-data

audit: install ## read every file and row: is every table true to the landing folder?
	@$(BIN)/python -m scripts.checks audit

doctor: install ## try each part of the set-up: ok or failed, and the remedy
	@$(BIN)/python -m scripts.doctor

bench: install ## measure: ONLY=<benchmark> SIZE=<images> REPEATS=<runs> PHOTOGRAPHS=<folder>
	@$(BIN)/python -m benchmarks $(if $(ONLY),--only $(ONLY)) $(if $(SIZE),--size $(SIZE)) \
		$(if $(REPEATS),--repeats $(REPEATS)) $(if $(PHOTOGRAPHS),--photographs $(abspath $(PHOTOGRAPHS)))

docs: install ## these pages as a site in build/site, with a reference of settings, jobs, assets and tables
	@$(BIN)/python -m scripts.reference
	@$(BIN)/zensical build --strict
