# Two commands do everything on a fresh machine: `make demo` and `make test`. Both make their own environment.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SEED ?= 0
READY := $(VENV)/.ready

.PHONY: demo test lint docs install clean

demo: $(READY)
	$(BIN)/rlver demo --seed $(SEED)

test: $(READY)
	OMP_WAIT_POLICY=PASSIVE OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The documentation as a site in site/. It needs no network, and a broken link is an error.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

install: $(READY)

# torch comes first, so that nothing that depends on it can choose another build.
$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --upgrade pip
	$(BIN)/pip install -q torch==2.13.0
	$(BIN)/pip install -q -e '.[dev,docs]'
	touch $@

clean:
	rm -rf $(VENV) .venvs build site *.egg-info
