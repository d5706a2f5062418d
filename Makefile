# `make demo` shows the whole chain, `make test-fast` is for daily work, `make test` must pass. All create the environment first.
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
# Tests run two at a time, a file's tests in one process, each process with one thread.
WORKERS ?= 2
FAST := not ray and not chaos and not slow
PARALLEL := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: demo test test-fast test-only test-all coverage lint install wheel clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "vadtune needs Python 3.11 or newer: make PYTHON=python3.11 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@

# Search, export the ensemble, retest it and the baselines.
demo: install
	$(BIN)/vadtune search search_spaces/digits.yaml
	$(BIN)/vadtune export digits --out best --overwrite
	$(BIN)/vadtune retest best --ratios 0.1:0.9:0.1 --seeds 5
	@echo "Browse the trials: $(BIN)/vadtune ui"

# Starts no Ray.
test-fast: install
	$(PARALLEL) -m '$(FAST)'

test: lint test-only

# Without lint, which needs the types of the newest numpy. Tests with Ray mostly wait, so two run at a time; those that
# fail beside another are run once more alone, and must pass then.
test-only: install
	$(PARALLEL) -m 'not ray and not chaos'
	$(PARALLEL) -m 'ray and not chaos' || $(BIN)/python -m pytest -m 'ray and not chaos' --last-failed --last-failed-no-failures none

# Also kills nodes, servers and drivers. These tests race with a busy machine, so those that fail are run once more, and
# must pass then.
test-all: test
	$(BIN)/python -m pytest -m chaos || $(BIN)/python -m pytest -m chaos --last-failed --last-failed-no-failures none

# Without Ray: what runs in Ray's workers is not measured.
coverage: install
	$(PARALLEL) -m 'not ray and not chaos' --cov --cov-report=term --cov-report=html

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

wheel: install
	$(BIN)/python -m build --outdir dist

# Results (runs/, best/, mlflow.db, mlruns/) stay.
clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .coverage* htmlcov build dist *.egg-info
