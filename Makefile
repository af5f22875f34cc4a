PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo docs test test-slow test-vllm lint clean

demo: $(STAMP)
	$(BIN)/pld demo

test: $(STAMP) lint
	$(BIN)/pytest -q -n 2 -m "not slow and not vllm" -rs

test-slow: $(STAMP)
	$(BIN)/pytest -q -n 2 -m "slow" -rs

test-vllm: $(STAMP)
	@echo "nothing to test against a vLLM server yet"

docs: $(STAMP)
	$(BIN)/python -m engine.config_reference docs/configuration.md

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

$(STAMP): pyproject.toml
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -U "pip>=25.1"
	$(BIN)/pip install -q -e . --group dev
	touch $(STAMP)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .hypothesis build dist
