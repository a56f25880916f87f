# Everything a fresh machine needs beyond Python 3.11 and a C++ compiler is installed into .venv.
PYTHON ?= python3
VENV   ?= .venv
OUT    ?= demo
BIN    := $(VENV)/bin
SOURCES := pyproject.toml CMakeLists.txt constraints.txt README.md LICENSE \
           $(shell find ditpress -type f ! -name '*.pyc' ! -name '*.so')

.DEFAULT_GOAL := help
.PHONY: help install test lint browser demo bench-large bench-speed bench-fidelity bench-pruning bench-gate clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(BIN)/python $(SOURCES)
	$(BIN)/pip install --disable-pip-version-check --quiet --constraint constraints.txt '.[test]'
	@touch $@

install: $(VENV)/installed  ## the package, its tests' tools and the compiled kernels, into .venv

lint: $(VENV)/installed  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

browser: $(BIN)/python  ## a Chromium for the tests of the report pages, into .venv
	@test -x $(VENV)/browser/chromium || sh tests/get_browser.sh $(VENV)/browser

test: lint browser  ## lint, types and all tests
	$(BIN)/pytest

demo: $(VENV)/installed  ## ditpress w4a8 on the bundled model; prints where the report is
	$(BIN)/ditpress w4a8 -o $(OUT)

bench-large: $(VENV)/installed  ## size, time and memory of compressing DiT-XL/2; an hour on one core
	$(BIN)/python benchmarks/large.py --write

$(VENV)/installed-bench: $(VENV)/installed
	$(BIN)/pip install --disable-pip-version-check --quiet --constraint constraints.txt '.[bench]'
	@touch $@

bench-speed: $(VENV)/installed-bench  ## ditpress against ONNX Runtime, OpenVINO and PyTorch; one to two hours
	$(BIN)/python benchmarks/speed --write

bench-fidelity: $(VENV)/installed-bench  ## every recipe against plain rounding and other tools; several hours
	$(BIN)/python benchmarks/fidelity --write

bench-pruning: $(VENV)/installed  ## pruning, distillation and their chains; several hours on one core
	$(BIN)/python benchmarks/pruning --write

bench-gate: $(VENV)/installed  ## whether the gate catches planted regressions and passes other seeds; minutes
	$(BIN)/python benchmarks/gate --write

clean:  ## remove what make made
	rm -rf $(VENV) build $(OUT) .mypy_cache .pytest_cache .ruff_cache .hypothesis
