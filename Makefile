# quantkit: make demo (set up, quantize the embedded model), make test (set up, run the tests).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup demo test lint format docs bench peers tasks clean

setup: $(VENV)/.installed

# torch first: constraints.txt pins the version that the tests ran with.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: setup
	$(BIN)/python examples/demo.py

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup
	$(BIN)/python scripts/cli_reference.py docs/cli.md
	$(BIN)/python scripts/recipe_schema.py recipes/schema

# What --tasks needs, and with accelerate the harness's own model as a witness: minutes that setup does not take.
tasks: $(VENV)/.tasks

$(VENV)/.tasks: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[tasks]' accelerate
	touch $@

peers:
	bash scripts/make_peers.sh

bench: setup peers
	$(BIN)/python benchmarks/gptq_vs_peers.py

clean:
	rm -rf $(VENV) .venv-peers* build dist
