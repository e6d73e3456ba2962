PYTHON ?= python3
BIN := .venv/bin
RUNS ?= runs/demo

.DEFAULT_GOAL := help
.PHONY: help install run test test-all lint types check wheel clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

# The stamp makes every later call start at once: pip runs again only when what it would install has changed.
.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11, 4) and "Python 3.11.4 or newer is needed, but $(PYTHON) is " + sys.version.split()[0] + ": call make PYTHON=<path of a newer one>")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable '.[dev]' --constraint constraints.txt
	@touch $@

install: .venv/.installed ## create .venv and install the package with all it needs

run: .venv/.installed ## compare source, bn_adapt, EM and AdaDEM on the demo stream (runs in RUNS=runs/demo)
	@$(BIN)/tta --multirun method=source,bn_adapt,tent,adadem runs_dir=$(RUNS)
	@$(BIN)/tta-compare $(RUNS) --figures --html

# File by file: tests of one file share what its fixtures make. In the order of their names: xdist would otherwise begin
# with the files of the most tests, and end with one that takes long.
PYTEST := $(BIN)/python -m pytest --quiet --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder
NUMERICAL := tests/methods tests/corruptions tests/test_objectives.py tests/test_outcomes.py

test: .venv/.installed ## run the fast tests, as many files at a time as there are cores (but 8)
	@$(PYTEST) -m "not slow"

test-all: .venv/.installed ## run all tests, the numerical ones also for other instruction sets and two threads
	@$(PYTEST)
	@ATEN_CPU_CAPABILITY=default $(PYTEST) -m "not slow" $(NUMERICAL)
	@ATEN_CPU_CAPABILITY=avx2 $(PYTEST) -m "not slow" $(NUMERICAL)
	@OMP_NUM_THREADS=2 $(PYTEST) -m "not slow" --numprocesses 1 $(NUMERICAL)

lint: .venv/.installed ## ruff: format and rules
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .

types: .venv/.installed ## mypy
	@$(BIN)/mypy

check: lint types test-all ## everything that has to be green before a change lands

wheel: .venv/.installed ## build the wheel into dist/
	@$(BIN)/python -m build --wheel --outdir dist .

clean: ## remove the environment and what tools leave behind (runs/ stays)
	rm -rf .venv dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
