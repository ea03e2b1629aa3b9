# Everything runs in one virtual environment: the active one, else .venv, which is made here.
# uv makes it in seconds where it is installed; otherwise Python's own venv and pip do.
VENV := $(or $(VIRTUAL_ENV),.venv)
BIN := $(VENV)/bin
STAMP := $(VENV)/.cdchub-installed
DEV := $(VENV)/.cdchub-dev-installed
LOAD := $(VENV)/.cdchub-load-installed
PYTHON ?= python3
UV := $(shell command -v uv 2>/dev/null)
# Test processes side by side, one more than there are cores: tests mostly wait.
WORKERS ?= $(shell echo $$(($$(getconf _NPROCESSORS_ONLN) + 1)))

# Containers often set this; then each start of a hub compiles all of its modules, half a second.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test lint soak conformance simulate kills bench bench-capture bench-fanout compare loadtest \
	plots clean

demo: $(STAMP)  ## serve a ready-made database with a live page
	$(BIN)/cdchub demo $(ARGS)

test: $(DEV)  ## all tests; ARGS="-k name" runs some
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

lint: $(DEV)  ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

soak: $(DEV)  ## the long run: 50,000 changes while the hub is killed ten times
	$(BIN)/python loadtest/soak.py $(ARGS)

conformance: $(DEV)  ## 100,000 random SQL programs, replayed and compared; ARGS="--programs 5000"; "--older": writers on 3.35
	$(BIN)/python -m tests.conformance $(ARGS)

simulate: $(DEV)  ## a million random steps of the fan-out: cuts, slow readers, breaks; ARGS="--steps 50000"
	$(BIN)/python -m tests.fanout.simulate $(ARGS)

kills: $(DEV)  ## 200 times kill -9 while three writers write, and `cdchub verify` after each
	$(BIN)/python loadtest/kills.py $(ARGS)

bench: $(DEV)  ## latency, idle cost, restart time and disturbance of writers
	$(BIN)/python loadtest/spine.py $(ARGS)

bench-capture: $(DEV)  ## speed and memory of capture: a backlog, one large transaction, a large table
	$(BIN)/python loadtest/capture_speed.py $(ARGS)

bench-fanout: $(STAMP)  ## filters, a stalled reader, storms, memory, catch-up; ARGS="--small" or "stall"
	$(BIN)/python loadtest/fanout.py $(ARGS)

compare: $(STAMP)  ## the hub beside nchan, a naive hub and a bare loop; ARGS="--small" or "S1 --rounds 5"
	$(BIN)/python loadtest/compare.py $(ARGS)

loadtest: $(LOAD)  ## Locust: 200 readers for a minute, every LSN checked; ARGS="--web" opens its page
	$(BIN)/python -m loadtest.locust_run $(ARGS)

plots: $(LOAD)  ## SVGs in docs/images from results; ARGS="results.jsonl"
	$(BIN)/python loadtest/plots.py $(ARGS)

$(STAMP): pyproject.toml
ifeq ($(UV),)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
else
	test -x $(BIN)/python || $(UV) venv --quiet --python $(PYTHON) $(VENV)
	$(UV) pip install --quiet --python $(BIN)/python --editable .
endif
	touch $@

$(DEV): $(STAMP)
ifeq ($(UV),)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --group dev
else
	$(UV) pip install --quiet --python $(BIN)/python --group dev
endif
	touch $@

$(LOAD): $(STAMP)
ifeq ($(UV),)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --group load
else
	$(UV) pip install --quiet --python $(BIN)/python --group load
endif
	touch $@

clean:  ## remove what make made here
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
