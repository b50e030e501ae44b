# `make demo` and `make test` are all a fresh machine needs: Python 3.10 or newer with venv and headers, a C compiler, make.
# `make test PYTHON=python3.12` uses that interpreter, in a virtual environment of its own (.venv-3.12).

NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 10))
ifeq ($(origin PYTHON),undefined)
  PYTHON := $(or $(shell for name in python3 python3.15 python3.14 python3.13 python3.12 python3.11 python3.10 python; do \
    $$name -c '$(NEW_ENOUGH)' 2>/dev/null && echo $$name && break; done),python3)
  VENV ?= .venv
else
  GIVEN := $(PYTHON)
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

.PHONY: demo test soak lint format sanitize bench build wheel matrix fresh clean shm FORCE
.DELETE_ON_ERROR:

demo: $(INSTALLED) shm
	@$(BIN)/python examples/identifiers.py $(ARGS)

test: $(INSTALLED) $(TOOLS)-test shm
	$(BIN)/python -m pytest -n $(CORES) $(ARGS)

# The README's programs, many times: how each ends. Takes some minutes.
soak: $(INSTALLED) shm
	@$(BIN)/python tests/soak/exits.py $(RUNS)

lint: $(INSTALLED) $(TOOLS)-lint
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/basedpyright
	$(BIN)/python -m mypy.stubtest --mypy-config-file pyproject.toml --ignore-disjoint-bases --allowlist tests/typed/stubtest.txt multisocket.shm
	$(BIN)/clang-format --dry-run --Werror $(C_SOURCES)

format: $(INSTALLED) $(TOOLS)-lint
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .
	$(BIN)/clang-format -i $(C_SOURCES)

sanitize:
	$(check_machine)
	$(MAKE) -C tests/shm sanitize

bench: $(INSTALLED) $(TOOLS)-bench shm
	$(BIN)/python -m bench $(ARGS)

build: $(INSTALLED)

# The tests under every interpreter that is installed, each in an environment of its own.
matrix:
	@ARGS='$(ARGS)' .ci/matrix

# All that a new user does, on a bare Debian in a folder: SUITE=trixie, or another, with PYTHON=python3.15, or its python3.
fresh:
	@SUITE='$(or $(SUITE),trixie)' PYTHON='$(GIVEN)' .ci/fresh

# dist/ gets the source distribution, and from it a wheel for this interpreter that others of this architecture can use, too.
wheel: $(TOOLS)-wheel
	@PYTHON='$(BIN)/python' .ci/wheel

# Says in one line what this machine lacks.
define check_machine
  @'$(PYTHON)' -c '' 2>/dev/null || { echo "multisocket needs Python 3.10 or newer: $(PYTHON) was not found, or does not \
  run (apt install python3 python3-venv python3-dev, or dnf install python3-devel; or set PYTHON=...)" >&2; exit 1; }
  @'$(PYTHON)' -c '$(NEW_ENOUGH)' || { echo "multisocket needs Python 3.10 or newer: $(PYTHON) is $(VERSION) (install a newer one, \
  and set PYTHON=...)" >&2; exit 1; }
  @'$(PYTHON)' .ci/prepare.py machine '$(VENV)' '$(BUILD)'
endef

# Installed in place: Python files count at once, and an import rebuilds the native core when its sources changed, with
# a ninja that finds the environment's meson, ninja and cython before any other ones.
$(INSTALLED): $(BIN)/ninja-with-tools $(wildcard shm/*.c shm/*.h shm/*.pyx shm/*.pxi shm/meson.build) meson.build pyproject.toml
	@NINJA="$$(cd '$(BIN)' && pwd)/ninja-with-tools" PATH="$$(cd '$(BIN)' && pwd):$$PATH" $(PIP) install --no-build-isolation --no-deps --config-settings=build-dir='$(BUILD)' --editable .
	@touch $@

$(BIN)/ninja-with-tools: $(TOOLS)-build-system
	@cd '$(BIN)' && printf '#!/bin/sh\nPATH="%s:$$PATH" exec "%s/ninja" "$$@"\n' "$$PWD" "$$PWD" >ninja-with-tools
	@chmod +x $@

# What has been installed elsewhere, or was copied with its folder, is made anew.
ifneq ($(shell cat '$(READY)' 2>/dev/null),$(CURDIR))
$(READY): FORCE
endif
$(READY):
	$(check_machine)
	@echo 'multisocket: sets up $(VENV) with Python $(VERSION), then builds the native core'
	@rm -rf '$(BUILD)'
	@'$(PYTHON)' -m venv --clear '$(VENV)'
	@$(PIP) install 'pip>=22.1' || $(BIN)/python .ci/prepare.py no-packages
	@echo '$(CURDIR)' >$@

# The packages of an extra in pyproject.toml (test, lint, wheel, bench), or of its build-system.
$(TOOLS)-%: $(READY) pyproject.toml
	@echo 'multisocket: installs the packages for $*'
	@$(BIN)/python .ci/prepare.py requirements $* >'$(VENV)/$*.txt'
	@$(PIP) install -r '$(VENV)/$*.txt' || $(BIN)/python .ci/prepare.py no-packages
	@touch $@

shm: $(READY)
	@$(BIN)/python .ci/prepare.py shm

clean:
	rm -rf .venv .venv-* build dist
