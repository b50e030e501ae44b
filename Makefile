# `make demo` and `make test` are all a fresh machine needs: Python 3.10 or newer with venv and headers, a C compiler, make.
# `make test PYTHON=python3.12` uses that interpreter, in a virtual environment of its own (.venv-3.12).

NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 10))
ifeq ($(origin PYTHON),undefined)
  PYTHON := $(shell for name in python3 python3.15 python3.14 python3.13 python3.12 python3.11 python3.10 python; do \
    $$name -c '$(NEW_ENOUGH)' 2>/dev/null && echo $$name && break; done)
  VENV ?= .venv
endif
# As in names of wheels: 3.14, or 3.14t for the free-threaded build.
VERSION := $(shell '$(PYTHON)' -c 'import sys, sysconfig; print("%d.%d%s" % (sys.version_info[0], sys.version_info[1], \
  "t" if sysconfig.get_config_var("Py_GIL_DISABLED") else ""))' 2>/dev/null)
VENV ?= .venv-$(VERSION)
BUILD ?= build/$(VERSION)
BIN := $(VENV)/bin
# Stamps name the version: a system whose python3 has become a newer one gets a new environment.
READY := $(VENV)/.ready-$(VERSION)
INSTALLED := $(VENV)/.installed-$(VERSION)
TOOLS := $(VENV)/.tools-$(VERSION)
CORES := $(shell nproc 2>/dev/null || echo 2)
C_SOURCES := $(wildcard shm/*.c shm/*.h tests/shm/*.c tests/shm/*.h)
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check

.PHONY: demo test lint format sanitize bench build wheel matrix fresh clean machine shm FORCE
.DELETE_ON_ERROR:

demo: $(INSTALLED) shm
	@$(BIN)/python examples/identifiers.py $(ARGS)

test: $(INSTALLED) $(TOOLS)-test shm
	$(BIN)/python -m pytest -n $(CORES) $(ARGS)

lint: $(INSTALLED) $(TOOLS)-lint
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/python -m mypy.stubtest --mypy-config-file pyproject.toml --ignore-disjoint-bases --allowlist tests/typed/stubtest.txt multisocket.shm
	$(BIN)/clang-format --dry-run --Werror $(C_SOURCES)

format: $(INSTALLED) $(TOOLS)-lint
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .
	$(BIN)/clang-format -i $(C_SOURCES)

sanitize: machine
	$(MAKE) -C tests/shm sanitize

bench: $(INSTALLED) $(TOOLS)-bench shm
	$(BIN)/python -m bench $(ARGS)

build: $(INSTALLED)

# Installed in place: Python files count at once, and an import rebuilds the native core when its sources changed. The
# environment's meson, ninja and cython come first on the PATH: no other ones are needed, nor used.
$(INSTALLED): $(READY) $(wildcard shm/*.c shm/*.h shm/*.pyx shm/*.pxi shm/meson.build) meson.build pyproject.toml
	@PATH="$$(cd '$(BIN)' && pwd):$$PATH" $(PIP) install --no-build-isolation --no-deps --config-settings=build-dir='$(BUILD)' --editable .
	@touch $@

# What has been installed elsewhere, or was copied with its folder, is made anew.
ifneq ($(shell cat '$(READY)' 2>/dev/null),$(CURDIR))
$(READY): FORCE
endif
$(READY):
	@$(MAKE) --no-print-directory machine
	@echo 'multisocket: sets up $(VENV) with Python $(VERSION), then builds the native core'
	@rm -rf '$(BUILD)'
	@'$(PYTHON)' -m venv --clear '$(VENV)'
	@$(BIN)/python .ci/prepare.py requirements build-system >'$(VENV)/build-system.txt'
	@$(PIP) install 'pip>=22.1' -r '$(VENV)/build-system.txt' || $(BIN)/python .ci/prepare.py no-packages
	@echo '$(CURDIR)' >$@

# The tools of an extra in pyproject.toml: test, lint, wheel, bench.
$(TOOLS)-%: $(READY) pyproject.toml
	@echo 'multisocket: installs what `make $*` needs'
	@$(BIN)/python .ci/prepare.py requirements $* >'$(VENV)/$*.txt'
	@$(PIP) install -r '$(VENV)/$*.txt' || $(BIN)/python .ci/prepare.py no-packages
	@touch $@

# Says in one line what this machine lacks.
machine:
ifeq ($(VERSION),)
	@echo "multisocket needs Python 3.10 or newer: $(or $(PYTHON),python3) was not found, or does not run (apt install python3 python3-venv python3-dev, dnf install python3-devel; or set PYTHON=...)" >&2; exit 1
else
	@'$(PYTHON)' -c '$(NEW_ENOUGH)' || { echo "multisocket needs Python 3.10 or newer: $(PYTHON) is $(VERSION) (install a newer one, and set PYTHON=...)" >&2; exit 1; }
	@'$(PYTHON)' .ci/prepare.py machine '$(VENV)' '$(BUILD)'
endif

shm: $(READY)
	@$(BIN)/python .ci/prepare.py shm

clean:
	rm -rf .venv .venv-* build dist
