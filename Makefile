# `make demo` and `make test` do everything on a fresh machine with Python >= 3.11.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
READY := $(VENV)/.ready
# Processes that test, of one thread each and up to 1.5 GB.
JOBS ?= $(shell $(PYTHON) -c 'import os; print(min(8, os.cpu_count() or 1))')

.PHONY: demo test slow soak check lint types floors docs bench clean

demo: $(INSTALLED)
	$(BIN)/multirobust demo

test: $(READY)
	$(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal

slow: $(READY)
	$(BIN)/python -m pytest -q -m slow

soak: $(READY)
	MULTIROBUST_FAULTS=long $(BIN)/python -m pytest -q tests/faults
	$(BIN)/python benchmarks/soak.py --kills 60 --output results/soak.json

check: lint types floors

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/pyright

floors: $(READY)
	$(BIN)/lint-imports

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

bench: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench.py --output results/bench.json

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("multirobust needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; set PYTHON=..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

# What tests and checks need besides; make demo does not wait for it.
$(READY): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) runs build
