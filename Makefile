# Two commands matter: `make demo` and `make test`. Both set up everything they need in $(VENV).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet

.PHONY: demo test test-all docs docs-quick install install-test install-docs lint format clean

demo: $(VENV)/.installed
	$(BIN)/kftune run studies/quickstart.yaml
	$(BIN)/kftune dashboard studies/quickstart.yaml --out dashboards/quickstart.html

test: $(VENV)/.installed-test lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

# Everything: whole products of options, processes started afresh, more kills at random moments.
test-all: $(VENV)/.installed-test lint
	OMP_NUM_THREADS=1 KFTUNE_TEST_ALL=1 KFTUNE_TEST_COLD=1 KFTUNE_KILL_ROUNDS=12 \
		$(BIN)/python -m pytest -n 2 --dist worksteal --timeout 900

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The site, its examples executed, in docs/_build/html.
docs: $(VENV)/.installed-docs
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

# Every page and every reference, no example executed.
docs-quick: $(VENV)/.installed-docs
	$(BIN)/python -m sphinx -W --keep-going -q -E -b html -D plot_gallery=0 docs docs/_build/quick

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(VENV)/.installed

install-test: $(VENV)/.installed-test

install-docs: $(VENV)/.installed-docs

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml constraints.txt
	@echo "Installing kftune and what it needs into $(VENV) (a few minutes the first time) ..."
	$(PIP) --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	@echo "Installing the test tools into $(VENV) ..."
	$(PIP) --constraint constraints.txt --editable ".[test]"
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	@echo "Installing what builds the documentation into $(VENV) ..."
	$(PIP) --constraint constraints.txt --editable ".[docs]"
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info docs/_build docs/_generated docs/gallery docs/sg_execution_times.rst
