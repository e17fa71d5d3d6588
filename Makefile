# make study: the quick study, from nothing to a report.   make test: the tests.
# Both set up .venv with the pinned versions of constraints.txt first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: study test test-slow lint system setup clean

study: setup
	$(BIN)/engram-eval run quick

test: setup
	$(BIN)/python -m pytest -m "not slow" -n auto --dist loadfile

test-slow: setup
	$(BIN)/python -m pytest -m slow

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

system:
	apt-get update
	apt-get install -y --no-install-recommends bubblewrap chromium g++

setup: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "engram-eval needs Python >= 3.11, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,interp]"
	touch $@

clean:
	rm -rf .venv build dist *.egg-info
