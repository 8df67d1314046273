# The commands of this project. Every one that needs the environment makes it: see requirements/install.sh.
# PYTHON=/path/to/python3.11 chooses the interpreter of a new .venv.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
SOURCES := toolkit kernels catalog tests

# The environment of a moved or copied checkout points at the old place: install again.
ifneq (usable,$(shell grep -qsF "$(realpath .)/$(VENV)" $(BIN)/activate && echo usable))
.PHONY: $(READY)
endif

.PHONY: help
help:  ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

$(READY): requirements/lock.txt requirements/install.sh pyproject.toml
	@bash requirements/install.sh

.PHONY: install
install: $(READY)  ## make .venv with everything in it

.PHONY: quickstart
quickstart: $(READY)  ## install, then run specs/quickstart.yaml on the bundled model
	$(BIN)/ptk run specs/quickstart.yaml

.PHONY: test
test: lint  ## install, lint, then run the tests
	$(BIN)/python -m pytest

.PHONY: test-slow
test-slow: $(READY)  ## run the tests that take long
	$(BIN)/python -m pytest -m slow

.PHONY: bench
bench: $(READY)  ## run the benchmarks and print what they measure
	$(BIN)/python -m pytest tests/benches -m bench -s

.PHONY: lint
lint: $(READY)  ## ruff, mypy --strict and the import contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: format
format: $(READY)  ## format the code and mend what ruff can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: docs
docs: $(READY)  ## make the documentation site in docs/_build
	$(BIN)/python -m sphinx -b html -W --keep-going -q docs docs/_build

.PHONY: build
build: $(READY)  ## make the source archive and the wheel in dist/
	$(BIN)/python -m build --no-isolation

.PHONY: lock
lock:  ## recompile requirements/lock.txt (maintainers: needs uv)
	@bash requirements/compile.sh

.PHONY: clean
clean:  ## remove .venv, build outputs and caches; results and catalogs stay
	rm -rf $(VENV) dist build .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
