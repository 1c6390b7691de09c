# Set-up, tests and the demonstration. Everything lives in .venv of this checkout.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: all demo test check lint types unit bench conformance clean

all: test

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $(STAMP)

demo: $(STAMP)  ## simulate three kernels on trn2, check them against NumPy, and report
	mkdir -p out
	$(BIN)/trnsim run --chip trn2 --html out/demo.html --json out/demo.json examples/demo.py

test: $(STAMP)  ## lint, types and all tests
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 -q

lint: $(STAMP)
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy

unit: $(STAMP)
	$(BIN)/python -m pytest -n 2 -q tests/unit

conformance: $(STAMP)  ## public kernels from local checkouts: make conformance SDK=... SAMPLES=...
	TRNSIM_SDK="$(SDK)" TRNSIM_SAMPLES="$(SAMPLES)" $(BIN)/python -m pytest -q tests/conformance -rs

bench: $(STAMP)  ## speed against peers, in one run
	$(BIN)/python bench/run.py

clean:
	rm -rf $(VENV) out build dist .pytest_cache .mypy_cache .ruff_cache
