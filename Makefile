# Wraps the plain commands that the README gives; nothing here is needed on Windows.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
MLFLOW_PORT ?= 5000

.DEFAULT_GOAL := help
.PHONY: help install demo quick test coverage check format tables docs ui clean

help: ## Show this help
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $(STAMP)

install: $(STAMP) ## Make .venv and install the package with its development tools

demo: $(STAMP) ## Train and evaluate all three stages on the built-in world
	$(BIN)/python -m panollava.train experiment_name=demo

quick: $(STAMP) ## Run the unit tests alone: a minute and a half on two cores
	$(BIN)/python -m pytest -n logical tests/unit -m "not integration and not slow"

test: $(STAMP) ## Run the whole test suite
	$(BIN)/python -m pytest -n logical

coverage: $(STAMP) ## Run the test suite and measure what it covers
	$(BIN)/python -m pytest -n logical --cov=panollava --cov-report=term-missing:skip-covered

check: $(STAMP) ## Lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP) ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

tables: $(STAMP) ## Update the tables of options in README.md, README.ko.md and conf/README.md, and what --help says is allowed
	$(BIN)/python -m experiments.tables
	$(BIN)/python -m experiments.allowed

docs: $(STAMP) ## Write the API reference into site/ and check its links
	$(BIN)/python -m experiments.reference

ui: $(STAMP) ## Open the MLflow page of the runs in this folder
	$(BIN)/mlflow ui --port $(MLFLOW_PORT)

clean: ## Remove caches (never runs, results or the environment)
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis htmlcov dist build .coverage
