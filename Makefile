PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# a vLLM server wants other versions of much that pld uses
VLLM_VENV ?= $(VENV)-vllm
VLLM_STAMP := $(VLLM_VENV)/.installed

.PHONY: demo docs test test-slow test-vllm lint clean

demo: $(STAMP)
	$(BIN)/pld demo

test: $(STAMP) lint
	$(BIN)/pytest -q -n 2 -m "not slow and not vllm" -rs

test-slow: $(STAMP)
	$(BIN)/pytest -q -n 2 -m "slow" -rs

test-vllm: $(STAMP) $(VLLM_STAMP)
	PLD_VLLM_VENV="$(abspath $(VLLM_VENV))" $(BIN)/pytest -q -p no:xdist -m "vllm" -rs tests/vllm

docs: $(STAMP)
	$(BIN)/python -m engine.config_reference docs/configuration.md

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/hadolint Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec compose.yaml

$(STAMP): pyproject.toml
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -U "pip>=25.1"
	$(BIN)/pip install -q -e . --group dev
	touch $(STAMP)

# --no-deps: the lock leaves out what a plain install brings and a CPU has no use for
# pld beside it, for vLLM in its own process: what it needs is there, or is added
$(VLLM_STAMP): pyproject.toml tests/vllm/requirements.lock tests/vllm/name_vllm.py
	test -x $(VLLM_VENV)/bin/pip || $(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/pip install -q --no-deps -r tests/vllm/requirements.lock
	$(VLLM_VENV)/bin/python tests/vllm/name_vllm.py
	$(VLLM_VENV)/bin/pip install -q -e .
	touch $(VLLM_STAMP)

clean:
	rm -rf $(VENV) $(VLLM_VENV) .mypy_cache .ruff_cache .hypothesis build dist
