PYTHON ?= python3
BIN := .venv/bin
RUNS ?= runs/demo

.DEFAULT_GOAL := help
.PHONY: help install run test lint types check wheel clean

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

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

# File by file: tests of one file may build on each other, and share what their fixtures make. In the order of their
# names: otherwise the files of the fewest tests, and some of these take the longest, come last.
test: .venv/.installed ## run the tests, as many files at a time as there are cores (but 8)
	@$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

lint: .venv/.installed ## ruff: format and rules
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .

types: .venv/.installed ## mypy
	@$(BIN)/mypy

check: lint types test ## everything that has to be green before a change lands

wheel: .venv/.installed ## build the wheel into dist/
	@$(BIN)/python -m build --wheel --outdir dist .

clean: ## remove the environment and what tools leave behind (runs/ stays)
	rm -rf .venv dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
