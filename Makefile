# Every target sets up what it needs: a virtual environment with pinned versions, made once.
VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := $(VENV)/bin
READY := $(VENV)/.ready

export HF_HUB_OFFLINE ?= 1

.PHONY: demo test test-thorough test-vllm lint format schemas bench browser clean

demo: $(READY)
	$(BIN)/qsplit demo

# Two files at a time: each worker loads the bundled checkpoint, and takes some 2 GB.
TESTS_AT_ONCE ?= 2
PYTEST = $(BIN)/python -m pytest --numprocesses $(TESTS_AT_ONCE) --dist loadfile

test: $(READY) browser
	$(PYTEST)

# What `make test` leaves out, and every property with many more examples.
test-thorough: $(READY) browser
	$(PYTEST) -m 'thorough or hypothesis' --hypothesis-profile thorough --timeout 7200

# vLLM has its own versions of torch and transformers, so its server runs in an environment of its own.
VLLM := .venv-vllm

test-vllm: $(READY) $(VLLM)/.ready
	VLLM_PYTHON=$(abspath $(VLLM))/bin/python $(BIN)/python -m pytest --timeout 3600 tests/with_vllm

$(VLLM)/.ready: tests/with_vllm/requirements.txt tests/with_vllm/sitecustomize.py
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/pip install --quiet --requirement tests/with_vllm/requirements.txt
	# Of qsplit the part that serves vLLM from a store runs there; the rest wants a newer transformers.
	$(VLLM)/bin/pip install --quiet --no-deps --editable .
	# They are built for other libraries than the CPU's torch, and not needed for pictures.
	$(VLLM)/bin/pip uninstall --quiet --yes torchaudio torchcodec
	cp tests/with_vllm/sitecustomize.py $$($(VLLM)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
	touch $@

# The album page is tested in a real browser: Debian's Chromium, and a font for its Chinese.
browser:
	command -v chromium >/dev/null || (apt-get update && apt-get install -y chromium fonts-noto-cjk)

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python schemas/generate.py --check
	$(BIN)/python -m benchmarks.qa.tables --check
	$(BIN)/python docs/sizing.py --check

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

schemas: $(READY)
	$(BIN)/python schemas/generate.py

bench: $(READY)
	$(BIN)/python -m benchmarks.models.bench_memory
	$(BIN)/python -m benchmarks.store.bench_store --prefill
	$(BIN)/python -m benchmarks.qa.bench_ask
	$(BIN)/python -m benchmarks.models.bench_encode
	$(BIN)/python -m benchmarks.server.bench_serve

clean:
	rm -rf $(VENV) $(VLLM) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "qsplit needs Python 3.11 or later: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	# Tests compile a library that fails writes; where there is no C compiler, PyPI has one.
	command -v cc >/dev/null || $(BIN)/pip install --quiet --constraint constraints.txt ziglang
	touch $@
