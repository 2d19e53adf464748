# make demo · make test · make bench · make atlas: each installs what it needs into .venv first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint atlas clean

demo: .venv/.installed
	$(BIN)/seal demo

test: .venv/.installed lint
	$(BIN)/python -m pytest

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

atlas: .venv/.installed
	PYTHONPATH=tools/atlas $(BIN)/python tools/atlas/pretrain.py

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("SEAL needs Python 3.11 or later; say make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache
