# `make demo` and `make test` are all a fresh machine needs: Python 3.10 or newer with its headers, a C compiler, make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
CORES := $(shell nproc 2>/dev/null || echo 2)
C_SOURCES := $(wildcard shm/*.c shm/*.h tests/shm/*.c tests/shm/*.h)

.PHONY: demo test lint format sanitize bench build clean

demo: $(INSTALLED)
	$(BIN)/python examples/identifiers.py $(ARGS)

test: $(INSTALLED)
	$(BIN)/python -m pytest -n $(CORES) $(ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(C_SOURCES)

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(C_SOURCES)

sanitize: $(INSTALLED)
	$(MAKE) -C tests/shm sanitize

bench: $(VENV)/.bench
	$(BIN)/python -m bench $(ARGS)

build: $(INSTALLED)

# Installed in place: Python files count at once, and an import rebuilds the native core when its sources changed.
$(INSTALLED): $(VENV)/.ready $(wildcard shm/*.c shm/*.h shm/*.pyx shm/*.pxi shm/meson.build) meson.build pyproject.toml
	$(BIN)/pip install --quiet --no-build-isolation -Cbuild-dir=build --editable '.[dev]'
	@touch $@

$(VENV)/.ready:
	@command -v $(PYTHON) >/dev/null || { echo "multisocket needs Python 3.10 or newer: $(PYTHON) was not found" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "multisocket needs Python 3.10 or newer: $(PYTHON) is older (set PYTHON=...)" >&2; exit 1; }
	@$(PYTHON) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))' || { echo "multisocket needs Python's headers: install your system's python3-dev" >&2; exit 1; }
	@command -v $${CC:-cc} >/dev/null || command -v gcc >/dev/null || { echo "multisocket needs a C compiler: install gcc (or set CC=...)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet 'meson-python>=0.16' 'meson>=1.3' ninja 'Cython>=3.0'
	@touch $@

$(VENV)/.bench: $(INSTALLED)
	$(BIN)/pip install --quiet --no-build-isolation -Cbuild-dir=build --editable '.[bench,dev]'
	@touch $@

clean:
	rm -rf $(VENV) build
