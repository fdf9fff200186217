# Two commands do everything on a machine with Python 3.11, pip and make:
#   make quickstart   install, run the main job, print where the report is
#   make test         install the test extras, then lint, types and all tests
# While working: make quick (lint, types, fast tests). Tables of the docs: benchmarks/README.md.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check install --quiet -c constraints.txt

# tests run in parallel, one core each: `make unit WORKERS=8` on a larger machine
WORKERS := 2
PYTEST = OMP_NUM_THREADS=1 $(1)/python -m pytest -n $(WORKERS) --dist loadfile
FAST := -m "not slow and not browser and not gpu"

.PHONY: quickstart test quick lint types unit newest oldest docs wheel
.PHONY: real compare seeds tradeoff ranking adapters base benchmark gpu parity soak clean

quickstart: $(VENV)/.installed
	$(BIN)/toolkit quickstart

test: $(VENV)/.installed-dev
	$(MAKE) --no-print-directory lint types docs unit

# fast checks: every test that trains, starts a process or a browser, or needs a GPU is left out
quick: $(VENV)/.installed-dev
	$(MAKE) --no-print-directory lint types
	$(call PYTEST,$(BIN)) $(FAST)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

unit: $(VENV)/.installed-dev
	$(call PYTEST,$(BIN))

# the fast tests with the newest and the oldest versions that pyproject.toml allows
newest oldest: %: $(VENV)/%/.installed
	$(call PYTEST,$(VENV)/$@/bin) $(FAST)

$(VENV)/newest/.installed $(VENV)/oldest/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python .ci/bounds.py $(notdir $(@D)) > $(@D)/constraints.txt
	$(@D)/bin/pip --disable-pip-version-check install --quiet --upgrade --upgrade-strategy eager \
	  -c $(@D)/constraints.txt -e '.[app,dev]'
	@touch $@

# the site of docs/, in build/site
docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# the wheel in dist/
wheel: $(VENV)/.installed
	$(BIN)/pip --disable-pip-version-check wheel --quiet --no-deps --wheel-dir dist .

# record TRL 1.12's PPOTrainer again, in its own environment
parity: $(VENV)/peer/.installed
	$(VENV)/peer/bin/python tests/parity/record.py

$(VENV)/peer/.installed: constraints.txt
	$(PYTHON) -m venv $(VENV)/peer
	grep -v '^trl==' constraints.txt > $(VENV)/peer/constraints.txt
	$(VENV)/peer/bin/pip --disable-pip-version-check install --quiet \
	  -c $(VENV)/peer/constraints.txt torch transformers peft accelerate datasets trl==1.12.0
	@touch $@

# PPO against TRL 1.12's PPOTrainer, in turn; about 25 minutes on two cores
benchmark: $(VENV)/.installed $(VENV)/peer/.installed runs/quickstart/reward/run.json
	$(BIN)/python benchmarks/benchmark.py --sft runs/quickstart/sft --reward runs/quickstart/reward --growth

# tests, precision, memory of the presets and speed on a GPU; ten minutes on one H200
gpu: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/gpu.py --output docs/results/cuda.json

runs/quickstart/reward/run.json:
	$(MAKE) --no-print-directory quickstart

# PPO killed at ten moments: too slow for every change
soak: $(VENV)/.installed-dev
	TOOLKIT_SOAK=$${TOOLKIT_SOAK:-1} $(BIN)/python -m pytest -s tests/recipes/test_kill.py

# the main job and PPO-ptx with five seeds, and the tables and claims of docs/seeds.md
SEEDS := 0 1 2 3 4
seeds: $(VENV)/.installed
	for seed in $(SEEDS); do \
	  $(BIN)/toolkit pipeline --config world/seeds \
	    --seed $$seed --output_dir runs/seeds/$$seed || exit 1; \
	done
	$(BIN)/python benchmarks/seeds.py $(SEEDS:%=runs/seeds/%)

# every method with three seeds, at an equal number of sampled answers
compare: $(VENV)/.installed
	for seed in 0 1 2; do \
	  $(BIN)/toolkit pipeline --config world/compare \
	    --seed $$seed --output_dir runs/compare/$$seed || exit 1; \
	done
	$(BIN)/python benchmarks/methods.py $(patsubst %,runs/compare/%,0 1 2)

# SmolLM2-135M-Instruct: PPO towards a positive tone with three seeds; reward model, PPO and DPO on
# preferences; the numbers of docs/real.md. A seed took 13 minutes on two cores, the preferences over two hours on one.
PREFERENCES := Anthropic/hh-rlhf
REAL := toolkit pipeline --output_dir runs/real/$$run --values base=build/smollm2-135m
real: $(VENV)/.installed
	$(PIP) -e '.[app,real]'
	$(BIN)/python -m benchmarks.real_model --out build/smollm2-135m
	for run in 0 1 2; do \
	  $(BIN)/$(REAL) --config smollm2-135m/tone --seed $$run \
	    --reward_funcs toolkit.reward.examples:positive_tone || exit 1; \
	done
	run=preferences; $(BIN)/$(REAL) preferences=$(PREFERENCES) --config smollm2-135m/pipeline
	$(BIN)/python benchmarks/real.py runs/real/0 runs/real/1 runs/real/2 --preferences runs/real/preferences

# PPO-ptx with several γ: loss on pretraining text and win rate
tradeoff: $(VENV)/.installed
	$(BIN)/toolkit pipeline --config world/tradeoff
	$(BIN)/python benchmarks/tradeoff.py runs/tradeoff --image docs/images/ptx_tradeoff.png

# all pairs of a prompt in one batch element against shuffled pairs, on the data of `make seeds`
ranking: $(VENV)/.installed
	$(BIN)/python benchmarks/ranking_study.py $(SEEDS:%=runs/seeds/%)

# the table of docs/adapters.md: every kind of adapter in SFT
adapters: $(VENV)/.installed
	$(BIN)/python benchmarks/adapters.py --output_dir runs/adapters

# pretrain the shipped base again
base: $(VENV)/.installed
	$(BIN)/toolkit pretrain --config world/pretrain

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "installing into $(VENV) (a few minutes the first time)"
	$(PIP) -e '.[app]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) -e '.[app,dev,real]'
	@touch $@

clean:
	rm -rf runs build *.egg-info .pytest_cache .mypy_cache .ruff_cache
