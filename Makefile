# Everything runs in .venv, which the first target makes with the exact versions that were tested;
# two more environments stand at the ends of what pyproject.toml allows. Two threads suit two cores.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/.ready
BROWSER := .venv/.browser
# Torch's oldest release is a CUDA build on Linux: 3 GB to fetch and 7 GB on disk, for that lane only.
# Newest means today's, so that environment is made anew each day.
NEWEST := .venv-newest/.ready-$(shell date +%F)
OLDEST := .venv-oldest/.ready
PEERS := .venv-peers/.ready
PINS := constraints/newest.txt
FLOORS := constraints/oldest.txt
# The tests that touch other libraries: loading, sites, steering, generation, probes, SAEs and
# patching, then a file each for what is drawn, typed, stored and sent with others' help.
LIBRARIES := tests/models tests/steering tests/probes tests/saes tests/patching/test_cells.py \
	tests/patching/test_attribution.py tests/evaluation/test_effect.py \
	tests/report/test_figures.py tests/cli/test_main.py tests/sweeps/test_worker.py \
	tests/tracking/test_wandb.py
export OMP_NUM_THREADS ?= 2
export TOKENIZERS_PARALLELISM ?= false

.PHONY: help setup demo test torture test-newest test-oldest pins format lint type bench \
	bench-peers docs tutorials clean

help:
	@echo "make demo    set up and run the main job on the bundled model, SAE and pairs"
	@echo "make test    set up and run every test"
	@echo "make torture kills, full disks, spoiled files, bad servers: half an hour, writes docs/trust.md"
	@echo "make test-newest test-oldest    the tests that touch other libraries, on the newest and"
	@echo "                                the oldest releases that pyproject.toml allows"
	@echo "make pins    write constraints/newest.txt from what test-newest has installed"
	@echo "make docs    the documentation, into site/"
	@echo "make bench-peers    saesteer beside other libraries, each as its own bounds want it"
	@echo "make format lint type bench tutorials    what they say"

setup: $(READY)

$(READY): pyproject.toml $(PINS) scripts/setup
	@scripts/setup $(PYTHON) .venv -c $(PINS)
	@touch $@

$(NEWEST): pyproject.toml scripts/setup
	@rm -rf .venv-newest
	@scripts/setup $(PYTHON) .venv-newest
	@touch $@

$(OLDEST): pyproject.toml $(FLOORS) scripts/setup
	@rm -rf .venv-oldest
	@scripts/setup $(PYTHON) .venv-oldest -c $(FLOORS)
	@touch $@

$(PEERS): $(READY) scripts/setup-peers
	@scripts/setup-peers .venv .venv-peers
	@touch $@

# A browser to look at the report with, where this machine's packages can be had without asking; its
# tests skip otherwise.
$(BROWSER): $(READY)
	@command -v chromedriver >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
		&& echo "installing a browser for the report's tests (log: .venv/browser.log) ..." \
		&& { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y \
		--no-install-recommends chromium chromium-driver; } >.venv/browser.log 2>&1 </dev/null; } \
		|| echo "no browser: its tests skip"
	@touch $@

demo: $(READY)
	HF_HUB_OFFLINE=1 $(BIN)/saesteer steer optimism

# Two processes of one thread each: sums, and with them last digits, depend on the threads.
test: $(READY) $(BROWSER)
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist worksteal

# What each part takes alone: $(BIN)/python scripts/torture.py --only kills --count 10
torture: $(READY)
	HF_HUB_OFFLINE=1 $(BIN)/python scripts/torture.py

test-newest: $(NEWEST)
	HF_HUB_OFFLINE=1 .venv-newest/bin/python -m pytest $(LIBRARIES)

test-oldest: $(OLDEST)
	HF_HUB_OFFLINE=1 .venv-oldest/bin/python -m pytest $(LIBRARIES)

pins: $(NEWEST)
	.venv-newest/bin/python scripts/pin.py

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
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=2 $(BIN)/python benchmarks/engines.py
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/probes.py
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/compare.py
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python benchmarks/patching.py
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python benchmarks/corruption.py
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python benchmarks/sweeps.py --both-cores
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/labels.py
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/app.py

bench-peers: $(PEERS)
	$(BIN)/python benchmarks/peers/run.py

docs: $(READY)
	$(BIN)/python scripts/build_docs.py

# Runs the tutorials and writes their pages, which `make docs` takes as they are.
tutorials: $(READY)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python scripts/tutorials.py

clean:
	rm -rf .venv .venv-newest .venv-oldest .venv-peers site build dist .pytest_cache .ruff_cache
