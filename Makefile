# Two commands do everything on a machine with Python 3.11, pip and make:
#   make quickstart   install, run the main job, say where the report is
#   make test         install the test extras, then lint, types and tests

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check install --quiet -c constraints.txt

.PHONY: quickstart test lint types unit seeds tradeoff ranking adapters base benchmark parity soak clean

quickstart: $(VENV)/.installed
	$(BIN)/python recipes/pipeline.py --config recipes/configs/world/pipeline.yaml

test: $(VENV)/.installed-dev
	$(MAKE) --no-print-directory lint types unit

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

# record TRL 1.12's PPOTrainer again, in an environment of its own
parity: $(VENV)/peer/.installed
	$(VENV)/peer/bin/python tests/parity/record.py

$(VENV)/peer/.installed: constraints.txt
	$(PYTHON) -m venv $(VENV)/peer
	grep -v '^trl==' constraints.txt > $(VENV)/peer/constraints.txt
	$(VENV)/peer/bin/pip --disable-pip-version-check install --quiet \
	  -c $(VENV)/peer/constraints.txt torch transformers peft accelerate datasets trl==1.12.0
	@touch $@

# ours against TRL 1.12's PPOTrainer, in turn; about 25 minutes on two cores
benchmark: $(VENV)/.installed $(VENV)/peer/.installed runs/quickstart/reward/run.json
	$(BIN)/python benchmarks/benchmark.py --sft runs/quickstart/sft --reward runs/quickstart/reward --growth

runs/quickstart/reward/run.json:
	$(MAKE) --no-print-directory quickstart

# what takes too long for every change: PPO killed at ten moments
soak: $(VENV)/.installed-dev
	TOOLKIT_SOAK=$${TOOLKIT_SOAK:-1} $(BIN)/python -m pytest -s tests/recipes/test_kill.py

# side by side, a core each: `make unit WORKERS=8` on a larger machine
WORKERS := 2
unit: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

# the main job and PPO-ptx for five seeds, the tables of the README, and what they shall show
SEEDS := 0 1 2 3 4
seeds: $(VENV)/.installed
	for seed in $(SEEDS); do \
	  $(BIN)/python recipes/pipeline.py --config recipes/configs/world/seeds.yaml \
	    --seed $$seed --output_dir runs/seeds/$$seed || exit 1; \
	done
	$(BIN)/python benchmarks/seeds.py $(SEEDS:%=runs/seeds/%)

# what PPO-ptx keeps of pretraining and what it costs, for several γ
tradeoff: $(VENV)/.installed
	$(BIN)/python recipes/pipeline.py --config recipes/configs/world/tradeoff.yaml
	$(BIN)/python benchmarks/tradeoff.py runs/tradeoff --image docs/images/ptx_tradeoff.png

# all pairs of a prompt together against shuffled pairs, on the comparisons of `make seeds`
ranking: $(VENV)/.installed
	$(BIN)/python benchmarks/ranking_study.py $(SEEDS:%=runs/seeds/%)

# the table of docs/adapters.md: every kind of adapter in SFT
adapters: $(VENV)/.installed
	$(BIN)/python benchmarks/adapters.py --output_dir runs/adapters

# make the shipped base again, from nothing
base: $(VENV)/.installed
	$(BIN)/python recipes/pretrain.py --config recipes/configs/world/pretrain.yaml

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "installing into $(VENV) (a few minutes the first time)"
	$(PIP) -e '.[app]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) -e '.[app,dev]'
	@touch $@

clean:
	rm -rf runs build *.egg-info .pytest_cache .mypy_cache .ruff_cache
