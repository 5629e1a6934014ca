# Needs Python 3.11 or later and make; everything else is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help demo test test-slow lint format docs bench clean

help:
	@echo "make demo       set everything up and ask the embedded model, guarded and bare"
	@echo "make test       set everything up and run the tests"
	@echo "make test-slow  the tests that need the embedded model and minutes"
	@echo "make lint       ruff, mypy --strict, import contracts, stale docs"
	@echo "make bench      tokens per second, guarded beside bare"
	@echo "make docs       write docs/cli.md from the program"

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed, this is %d.%d: make PYTHON=python3.11 ..." % sys.version_info[:2])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[serve,diffusers,fit,dev]"
	touch .venv/ready

demo: .venv/ready
	@$(BIN)/guard demo $(ARGS)

test: .venv/ready
	$(BIN)/python -m pytest -q -m "not slow" tests

test-slow: .venv/ready
	$(BIN)/guard models add smollm2
	$(BIN)/python -m pytest -q -m slow tests

lint: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/write_cli.py --check

format: .venv/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: .venv/ready
	$(BIN)/python docs/write_cli.py

bench: .venv/ready
	$(BIN)/guard models add smollm2
	$(BIN)/python -m benchmarks.throughput

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
