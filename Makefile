# Two commands for a stranger: `make demo`, `make test`. What each of the others proves: CONTRIBUTING.md.
# `make demo PYTHON=python3.12` names another Python. GNU make 3.81, which macOS ships, is enough.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready
WHEEL = build/wheel

.PHONY: help dev demo test test-long check docs wheel clean

help:
	@echo "make demo        install into $(VENV) and run the main job on a small checkpoint"
	@echo "make test        the test suite"
	@echo "make test-long   the tests that take minutes; writes tests/LONG_RESULTS.md"
	@echo "make docs        docs/commands.md and the outputs that documents show, anew"
	@echo "make check       format, lint, types, import rules"
	@echo "make clean       delete what the others made"

# The environment: made once, and again when pyproject.toml changes.
dev: $(READY)

$(READY): pyproject.toml
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "error: there is no $(PYTHON)" >&2; \
	  echo "  next: install Python 3.11 or newer, or name one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; \
	  exit 2; }
	@"$(PYTHON)" .ci/python_check.py
	"$(PYTHON)" -m venv "$(VENV)"
	"$(BIN)/python" -m pip install --quiet --disable-pip-version-check "pip>=25.1"
	"$(BIN)/python" -m pip install --quiet --disable-pip-version-check --editable . --group dev
	@touch "$@"

demo: $(READY)
	"$(BIN)/dsv4-mlx" demo

test: $(READY)
	"$(BIN)/python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-long: $(READY)
	"$(BIN)/python" tests/run_long.py

check: $(READY)
	"$(BIN)/ruff" format --check .
	"$(BIN)/ruff" check .
	"$(BIN)/mypy" -p dsv4_mlx
	MYPYPATH=".:tests" "$(BIN)/mypy" --explicit-package-bases tests
	"$(BIN)/python" -m pytest -q tests/test_architecture.py tests/test_names.py tests/test_sizes.py tests/test_docs.py tests/test_package.py

docs: $(READY)
	"$(BIN)/python" tests/generated_docs.py

wheel: $(READY)
	@rm -rf $(WHEEL)
	"$(BIN)/python" -m build --wheel --no-isolation --outdir $(WHEEL) . >build.log || { cat build.log; exit 1; }
	@rm -f build.log
	@cd $(WHEEL) && "$(abspath $(BIN))/python" -m zipfile -e *.whl .

clean:
	rm -rf build dist .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
