# Two commands: `make demo` and `make test`. Both create the environment first.
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: demo test test-all lint install clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "vadtune needs Python 3.11 or newer: make PYTHON=python3.11 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@

# Search, export the ensemble, retest it beside the baselines.
demo: install
	$(BIN)/vadtune search search_spaces/digits.yaml
	$(BIN)/vadtune export digits --out best --overwrite
	$(BIN)/vadtune retest best --ratios 0.1:0.9:0.1 --seeds 5
	@echo "Browse the trials: $(BIN)/vadtune ui"

test: install lint
	$(BIN)/python -m pytest -m 'not chaos'

# Also what causes failures for real: nodes, servers and drivers that are killed. These race with a busy machine, so what
# fails is run once more, and must pass then.
test-all: test
	$(BIN)/python -m pytest -m chaos || $(BIN)/python -m pytest -m chaos --last-failed --last-failed-no-failures none

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Results (runs/, best/, mlflow.db, mlruns/) stay.
clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build *.egg-info
