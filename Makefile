# Every target sets up what it needs: a virtual environment in .venv with the versions of constraints.txt.
#   PYTHON=/path/to/python   another Python (3.11 or newer) than the one found here
#   TORCH=cpu                PyTorch without CUDA, where pip would fetch the (large) CUDA build
#   ARGS="..."               passed on, for example: make demo ARGS="--steps 200"
#   JOBS=2                   test processes; each runs torch on one thread

BIN := .venv/bin
JOBS ?= 2
PYTEST := $(BIN)/pytest -q -n $(JOBS) --dist loadfile
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
ifeq ($(TORCH),cpu)
TORCH_INDEX := --extra-index-url https://download.pytorch.org/whl/cpu
endif

.DEFAULT_GOAL := help
# What rounding touches: these tests also pass as other processors compute.
NUMERICS := tests/golden tests/parity tests/property tests/unit/test_encoder.py tests/unit/test_packed.py \
	tests/unit/test_bias_relu.py tests/unit/test_losses.py tests/unit/test_optim.py tests/e2e/test_shipped.py

.PHONY: help demo test test-all test-cpus check lint fmt docs clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

demo: .venv/.demo ## train, compare and use Dense, Switch and Omni (about ten minutes on two cores)
	$(BIN)/omnirouter demo --output-dir runs/demo $(ARGS)

test: .venv/.dev ## the default tests: no GPU, no network, under five minutes
	OMP_NUM_THREADS=1 $(PYTEST) $(ARGS)

test-all: .venv/.dev ## every test that needs neither a GPU nor the network
	OMP_NUM_THREADS=1 $(PYTEST) -m "not gpu and not network" $(ARGS)

test-cpus: .venv/.dev ## the numerical tests as two other kinds of processor compute
	OMP_NUM_THREADS=1 ATEN_CPU_CAPABILITY=default $(PYTEST) $(NUMERICS) $(ARGS)
	OMP_NUM_THREADS=2 ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 $(PYTEST) $(NUMERICS) $(ARGS)

check: lint test ## lint, types, import layers and the default tests

lint: .venv/.dev ## formatting, lint, types and import layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python .ci/tree.py --check

fmt: .venv/.dev ## format and repair what can be repaired automatically
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: .venv/.docs ## build the documentation in site/, warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict && echo "Open site/index.html"

clean: ## remove caches and built files; .venv and runs/ stay
	rm -rf build dist site .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# --- set-up: one stamp per stage, so that an interrupted installation is taken up again ---

.venv/.python:
	@for python in $(PYTHON) python3 python3.13 python3.12 python3.11; do \
	  $$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	  echo "Creating .venv with $$($$python --version) ..."; \
	  $$python -m venv .venv && touch $@; exit; \
	done; \
	echo "No Python 3.11 or newer with venv found: install one (Debian, Ubuntu: python3 and python3-venv)" \
	  "or name it, for example: make demo PYTHON=/opt/python3.12/bin/python3" >&2; exit 1

.venv/.torch: constraints.txt | .venv/.python
	@echo "Installing PyTorch (about 200 MB; some GB if pip picks the CUDA build, see TORCH=cpu) ..."
	@$(PIP_INSTALL) $(TORCH_INDEX) torch
	@touch $@

.venv/.demo: pyproject.toml constraints.txt .venv/.torch
	@echo "Installing omnirouter and what the demo needs (about 150 MB) ..."
	@$(PIP_INSTALL) -e '.[demo]'
	@touch $@

.venv/.dev: pyproject.toml constraints.txt .venv/.torch
	@echo "Installing omnirouter and the tools for tests, lint and types (about 200 MB) ..."
	@$(PIP_INSTALL) -e '.[dev]'
	@touch $@

.venv/.docs: pyproject.toml constraints.txt .venv/.torch
	@echo "Installing the tools for the documentation ..."
	@$(PIP_INSTALL) -e '.[docs]'
	@touch $@
