# make demo | make test | make test-slow | make lint
# The environment is made once per lock file; PYTHON and VENV may be given on the command line.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed-$(shell cat requirements.lock pyproject.toml 2>/dev/null | cksum | cut -d' ' -f1)
TRACKLOOM_DATA ?= $(wildcard ../shared/data)
export TRACKLOOM_DATA
# One thread a worker: two networks that share two cores are slower than one after the other.
export OMP_NUM_THREADS ?= 1

.PHONY: demo test test-slow lint lock environment

demo: environment
	$(BIN)/trackloom run --recipe demo --output runs/demo

# A process for each core; a file's tests stay together, for what they share.
test: lint
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile -m "not slow and not gpu"

test-slow: lint
	$(BIN)/python -m pytest

lint: environment
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

environment: $(STAMP)

# uv is used where it is at hand (a fifth of the time); pip reads the same lock. Both compile what they install, so that
# every process starts in half the time, also where Python is told to write no bytecode itself.
$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Trackloom needs Python 3.10 or newer; this is " + sys.version.split()[0] + ". Give another with: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	if command -v uv >/dev/null 2>&1; then \
	  uv pip install --quiet --compile-bytecode --python $(BIN)/python -r requirements.lock && uv pip install --quiet --python $(BIN)/python --no-deps -e .; \
	else \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock && \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .; \
	fi
	rm -f $(VENV)/.installed-*
	touch $@

# The versions tested, for every platform and Python at once.
lock:
	uv pip compile pyproject.toml --extra test --universal --python-version 3.10 --no-header --no-annotate --output-file requirements.lock
