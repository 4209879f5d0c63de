# mull: `make run` sets everything up and serves the chat page and the API, `make test` runs the whole test suite.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
NATIVE := $(wildcard mull/kernels/native/*) CMakeLists.txt
# Set-up talks on stderr, so that stdout is the program's own.
PIP    := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: run test lint web bench bench-peers setup setup-dev clean

run: setup
	@exec $(BIN)/mull up

test: setup-dev
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: setup-dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

# The page is committed built (mull/serve/page), so that only those who change it need Node.
web: web/node_modules/.package-lock.json
	@cd web && npm run --silent check && npm run --silent test && npm run --silent build

web/node_modules/.package-lock.json: web/package-lock.json
	@cd web && npm ci --no-audit --no-fund >&2
	@touch $@

# The programs in bench/requirements-peers.txt are compared with; without them mull runs alone.
bench: setup-dev
	@for script in decode prefill longcontext moe rollouts quality speculative start serve_load; do \
	  $(BIN)/python bench/$$script.py || exit 1; done

bench-peers: .venv-peers/.installed

setup: $(VENV)/.installed $(VENV)/.model
setup-dev: $(VENV)/.installed-dev $(VENV)/.model

# The test tools come with the rest where both are asked for: the kernels are then built once.
INSTALLED := $(VENV)/.installed$(if $(filter test lint bench setup-dev,$(MAKECMDGOALS)),-dev)

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "mull needs Python 3.11 or newer: make run PYTHON=python3.11" >&2; exit 2; }
	@echo "mull: making a virtual environment in $(VENV)" >&2
	@$(PYTHON) -m venv $(VENV) >&2 || { rm -rf $(VENV); \
	  echo "mull: $(PYTHON) cannot make one: install python3-venv (Debian, Ubuntu), then make again" >&2; exit 2; }

$(VENV)/.installed: $(VENV)/pyvenv.cfg pyproject.toml $(NATIVE)
	@echo "mull: installing dependencies and building the native kernels (a minute or two, once)" >&2
	@$(PIP) install -qq --editable . >&2
	@touch $@

$(VENV)/.installed-dev: $(VENV)/pyvenv.cfg pyproject.toml $(NATIVE)
	@echo "mull: installing dependencies and test tools, building the native kernels (minutes, once)" >&2
	@$(PIP) install -qq --editable '.[dev]' >&2
	@touch $(VENV)/.installed $@

$(VENV)/.model: $(INSTALLED)
	@echo "mull: fetching the default model, SmolLM2-135M-Instruct (98 MB, Apache-2.0)" >&2
	@$(BIN)/mull pull smollm2-135m >&2
	@touch $@

.venv-peers/.installed: bench/requirements-peers.txt
	@echo "mull: installing the peers, llama.cpp compiled for this processor (about ten minutes, once)" >&2
	@$(PYTHON) -m venv .venv-peers >&2
	@.venv-peers/bin/python -m pip --disable-pip-version-check install -qq -r $< >&2
	@touch $@

clean:
	rm -rf $(VENV) .venv-peers build dist
