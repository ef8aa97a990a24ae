# `make run` and `make test` need Python 3.11 or later, git and make; everything else goes into .venv.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: run test lint check clean

run: $(READY)  ## run the recipe of params.yaml and print the report
	dvc repro
	compress report

test: $(READY)  ## the whole test suite
	python -m pytest -n 2 --dist loadgroup

lint: $(READY)  ## style, types and the arrows between the packages
	ruff check .
	ruff format --check .
	mypy
	lint-imports

check: lint test  ## all that CI runs

clean:  ## remove the environment and caches, and nothing that a run has made
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo 'compress needs Python 3.11 or later: make PYTHON=python3.11'; exit 2; }
	$(PYTHON) -m venv .venv
	python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(READY)
