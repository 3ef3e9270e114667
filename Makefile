# The two commands are `make book` and `make test`; `make help` lists the rest.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
# The stages of `make test` follow one another even under -j: they share two cores' worth of time budget.
.NOTPARALLEL:

# Where the environment lives; VENV=path reuses one.
VENV ?= .venv
# An interpreter that already has everything: used as it is, nothing is set up. PYTHON=python make book
PYTHON ?=
# The interpreter that creates the environment.
BASE_PYTHON ?= python3
PORT ?= 8000
WORKERS ?= 2
# For `make pair`: --execute runs every notebook again, 01 treats that one alone.
ARGS ?=

# Paths reach the shell through its environment, so that spaces and quotes in them are characters like others.
# make splits names at spaces: no function of make that reads a list of names, as abspath does, may see them.
FIRST := $(firstword $(VENV))
IN_HOME := $(subst ^~,$(HOME),^$(VENV))
export PITOME_VENV := $(if $(filter /%,$(FIRST)),$(VENV),$(if $(filter ~/%,$(FIRST)),$(IN_HOME),$(CURDIR)/$(VENV)))
export PITOME_BASE_PYTHON := $(BASE_PYTHON)
export PITOME_PYTHON := $(if $(PYTHON),$(PYTHON),$(PITOME_VENV)/bin/python)
PY := "$$PITOME_PYTHON"
BASE := "$$PITOME_BASE_PYTHON"
STAGE := @tools/stage.sh
HTML := _build/html
TEST_HTML := _build/test/_build/html

.PHONY: help setup book open test lint spelling pair pairing browser test-book pytest nbval test-all budgets pdf colab fuzz results text-weights retrieval-weights vqa-weights bench gpu lock clean

help: ## list the targets
	@echo 'usage: make TARGET [VENV=path | PYTHON=interpreter]'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## create the environment, install the locked requirements, fetch the assets
ifeq ($(PYTHON),)
	@$(BASE) tools/setup_env.py "$$PITOME_VENV"
endif

book: setup ## execute the notebooks and build the book into _build/html
	$(STAGE) book env PITOME_PROFILE=$${PITOME_PROFILE:-embedded} $(PY) tools/build_book.py
	@echo 'Open $(HTML)/index.html in a browser, or run `make open`.'

open: ## serve the built book on localhost
	@if command -v $(PY) >/dev/null; then exec $(PY) tools/open_book.py $(HTML) $(PORT); else exec $(BASE) tools/open_book.py $(HTML) $(PORT); fi

# -k: every stage runs and reports, and one failure is enough to fail the whole.
test: ## run everything: lint, spelling, book in the smoke tier, unit, notebook and browser tests
	$(STAGE) 'make test' $(MAKE) --no-print-directory -k setup lint spelling browser test-book pytest

lint: setup ## ruff, and who may import whom
	$(STAGE) lint $(PY) -m ruff check .
	$(STAGE) 'import contracts' $(PY) -c 'from importlinter.cli import lint_imports_command; lint_imports_command()' --no-cache

spelling: setup ## codespell on the tracked text
	$(STAGE) spelling tools/spelling.sh $(PY)

pair: setup ## after editing notebooks/*.py: rewrite the .ipynb and its checked outputs
	@PITOME_PROFILE=smoke $(PY) tools/pair.py $(ARGS)

pairing: setup ## check that every .ipynb agrees with its .py
	$(STAGE) pairing $(PY) tools/pair.py --check

browser: ## find chromium and its driver; install them from Debian where that is allowed
	$(STAGE) browser tools/ensure_browser.sh

test-book: setup ## build the book from nothing in the smoke tier, into its own folder
	$(STAGE) 'book from an empty cache' env PITOME_PROFILE=smoke $(PY) tools/build_book.py --fresh --output _build/test

# In the order of the folders: the long files of tests/book begin first, and the many notebooks fill both workers to the end.
pytest: setup ## unit tests, notebooks (nbval) and tests of the pages that test-book built
	$(STAGE) pytest env PITOME_PROFILE=smoke PITOME_BOOK_HTML=$(TEST_HTML) OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations=25

nbval: setup ## the notebooks alone, against their stored outputs
	$(STAGE) nbval env PITOME_PROFILE=smoke OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) --dist loadfile notebooks

test-all: test ## `make test`, and compilation with inductor (needs a C++ compiler)
	$(STAGE) inductor env PITOME_INDUCTOR=1 $(PY) -m pytest tests/core/test_inductor.py -rs

budgets: setup ## how long the pages of the built book are, beside what they should be: a report
	$(PY) tools/book_budgets.py

pdf: setup ## print the built book into _build/pitome-companion.pdf (needs Chromium)
	$(PY) tools/print_book.py

colab: setup ## write the notebooks, with Markdown that Colab shows, into _build/colab
	$(PY) tools/colab.py

EXAMPLES ?= 2000
fuzz: setup ## the property tests with EXAMPLES=2000 new examples each
	$(STAGE) fuzz env PITOME_EXAMPLES=$(EXAMPLES) OMP_NUM_THREADS=1 $(PY) -m pytest -m hypothesis -n $(WORKERS) tests

results: setup ## score the test sets by the protocol, resuming; writes results/embedded (hours on two cores)
	$(PY) -m pitome_core.experiments vision --profile embedded --split test
	$(PY) -m pitome_core.experiments text --profile embedded --split test
	$(PY) -m pitome_core.experiments text --profile embedded --time --output results/embedded
	$(PY) -m pitome_core.experiments spectra --profile embedded
	$(PY) -m pitome_core.experiments retrieval --profile embedded --split test
	$(PY) -m pitome_core.experiments vqa --profile embedded --split test
	$(PY) -m pitome_core.experiments law --profile embedded --split test
	$(PY) -m pitome_core.experiments law --profile embedded --phase
	$(PY) -m pitome_core.experiments steps --profile embedded --split test

# Stages of five to ten minutes each; one that is done is not done again. MINUTES=70 begins none after that time.
MINUTES ?= inf
text-weights: setup ## fine-tune the classifiers of the text chapter that are missing (an hour or two on two cores; resumes)
	$(PY) -m pitome_core.experiments text --train --minutes $(MINUTES)

# Features of the towers first, view by view, then the heads: half a minute each. ARGS='--recipe decay-2-installed'
retrieval-weights: setup ## train the heads of the retrieval chapter that are missing (an hour on two cores; resumes)
	$(PY) -m pitome_core.experiments retrieval --train --minutes $(MINUTES) $(ARGS)

# Minutes on a graphics card, hours on two cores: MINUTES=70 stops with a checkpoint, from which the same command goes on.
vqa-weights: setup ## train projector and low-rank updates of the LLaVA of the chapter on questions (resumes)
	$(PY) -m pitome_core.experiments vqa --train --minutes $(MINUTES) $(ARGS)

# Cells that are measured stay; a killed run goes on. MINUTES=10 begins no cell after that time; ARGS=--estimate asks.
bench: setup ## measure what merging costs on this CPU, on two threads; writes results/embedded/cost.json (half an hour)
	env PITOME_DEVICE=cpu OMP_NUM_THREADS=2 $(PY) -m pitome_core.experiments cost --threads 2 --operators --minutes $(MINUTES) --output results/embedded/cost.json $(ARGS)

# No set-up here: it must run on a machine without a network.
gpu: ## GPU tests, notebooks and costs on CUDA; writes results/gpu/
	@command -v $(PY) >/dev/null || { echo no interpreter at $(PY)': run `make setup` or pass VENV= or PYTHON='; exit 1; }
	$(STAGE) gpu $(PY) tools/gpu_check.py

lock: ## resolve pyproject.toml into requirements.lock (needs a network)
	@$(BASE) -m venv _build/uv && _build/uv/bin/python -m pip install --quiet uv
	_build/uv/bin/uv pip compile --quiet --universal --no-header --extra test --extra book pyproject.toml -o requirements.lock

clean: ## remove everything that was built; the environment and the assets stay
	rm -rf _build dist .pytest_cache .ruff_cache .hypothesis
	find pitome_core tests tools book notebooks conftest.py -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
