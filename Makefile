# Needs Python >= 3.10 and make; everything else is installed into .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
PEERS  := .venv-peers

# Where several processes share the cores, threads that wait sleep; the demo's spin a little before they sleep,
# which is faster alone and does not stall beside other work (see docs/benchmarks.md)
test test-long test-all test-fast soak fidelity bench-infer bench-scale ablate-labels: export OMP_WAIT_POLICY ?= passive
demo: export GOMP_SPINCOUNT ?= 10000

.DEFAULT_GOAL := help
.PHONY: help demo test test-long test-all test-fast soak fidelity bench-infer bench-scale ablate-labels check house format clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev,sweep]'
	@touch $@

demo: $(READY) ## all eight rounds on the embedded cohort: outputs/demo/report.html and the ablation table
	$(BIN)/python iterate.py experiment=demo

# files are shared out whole: their runs and cohorts are made once
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

test: $(READY) ## the test suite without its 29 longest tests (ten minutes on 2 cores)
	$(PYTEST) -m "not long"

test-long: $(READY) ## those: whole runs, kills, several processes
	$(PYTEST) -m long

test-all: $(READY) ## everything, with many more random cases and kills, and a real Slurm (root; Debian: slurm-wlm, munge)
	$(PYTEST) --thorough

test-fast: $(READY) ## the tests that take no more than seconds
	$(PYTEST) -m "not slow and not long and not gpu"

soak: $(READY) ## 2,200 damaged files, 50 kills, full disks, a fuzzer; counts at the end (hours; SOAK="--kills 10")
	-$(BIN)/python -m pip install -q -c constraints.txt "atheris>=3"
	PYTHONPATH=tests $(BIN)/python tests/soak $(SOAK)

# Implementations by others break torch and Lightning with what they bring, so they live apart, see peers.txt
$(PEERS)/.ready: pyproject.toml constraints.txt benchmarks/peers.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install -q -c constraints.txt torch==2.13.0
	$(PEERS)/bin/python -m pip install -q -c constraints.txt -e '.[dev,sweep]'
	$(PEERS)/bin/python -m pip install -q --no-deps -r benchmarks/peers.txt
	@touch $@

fidelity: $(PEERS)/.ready ## compare with nnU-Net and others, item by item (Python >= 3.11; about ten minutes)
	$(PEERS)/bin/python benchmarks/fidelity

bench-infer: $(PEERS)/.ready ## file to file beside nnU-Net v2: seconds, CPU seconds, memory (an hour on 2 cores)
	$(PEERS)/bin/python benchmarks/inference.py

bench-scale: $(READY) ## seconds, memory and growth of what is done over all cases, at 4,000 to 100,000 (hours)
	$(BIN)/python benchmarks/scale.py

ablate-labels: $(READY) ## what labels, rounds and selections are worth, over seeds (resumable; hours)
	$(BIN)/python benchmarks/ablate_labels.py

check: $(READY) ## format, lint and type check, and the measures of docs/house.py
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python docs/house.py

house: $(READY) ## draw docs/architecture.svg anew from the imports
	$(BIN)/python docs/house.py --draw

format: $(READY) ## format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove what runs and tests left, but no environment
	rm -rf outputs multirun .pytest_cache .mypy_cache .ruff_cache .hypothesis
