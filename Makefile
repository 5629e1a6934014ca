PYTHON ?= python3
.PHONY: test clean

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install -q -c constraints.txt -e ".[serve,fit,dev]"
	touch .venv/ready

test: .venv/ready
	.venv/bin/python -m pytest -q -m "not slow" tests

clean:
	rm -rf .venv
