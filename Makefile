# The project's commands. `make demo` and `make test` set up everything they need in .venv first.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= python3
# Where this is set, every process would compile torch and transformers again: 15 s each.
export PYTHONDONTWRITEBYTECODE :=
# Extra arguments for pip, e.g. PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu" for a small torch.
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
# Test files that run at a time.
WORKERS ?= 2
# The versions that CI ran; `make test CONSTRAINTS=` takes the newest that pyproject.toml allows.
CONSTRAINTS ?= constraints.txt
# Python compiles what it imports; compiling all of torch takes minutes.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile $(PIP_ARGS) $(addprefix -c ,$(CONSTRAINTS))
# Torch's own metadata pin its CUDA libraries, and other builds of torch have none: they are not in constraints.txt.
OF_TORCH := ^(nvidia[-_](cu|n)|cuda[-_]|triton==)

.DEFAULT_GOAL := help
.PHONY: help demo test test-pythons test-oldest check lock bench clean

help: ## List these commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(VENV)/.torch:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed, this is " + sys.version.split()[0] + ": make PYTHON=python3.11")'
	@echo "[1/2] Making $(VENV) and installing PyTorch into it (once; 1 to 5 minutes, 5 GB on disk)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) torch torchaudio
	@touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml jetson/pyproject.toml $(CONSTRAINTS)
	@echo "[2/2] Installing edgeqlora and its libraries into $(VENV) (about a minute)"
	@$(PIP) -e ./jetson -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml jetson/pyproject.toml $(CONSTRAINTS)
	@echo "[2/2] Installing edgeqlora, its libraries and the test and check tools into $(VENV) (1 to 2 minutes)"
	@$(PIP) -e ./jetson -e '.[dev]'
	@# Types of TensorRT alone: the package they describe is a download of gigabytes, and needs a GPU.
	@$(PIP) --no-deps 'tensorrt-stubs>=10.13'
	@touch $(VENV)/.installed $@

demo: $(VENV)/.installed ## Set up, then train, merge, export and measure the embedded model (about 3 minutes)
	@echo "Running: edgeqlora demo --overwrite"
	@$(BIN)/edgeqlora demo --overwrite

test: $(VENV)/.dev ## Set up, then run the tests; those marked real need ../shared
	@echo "Running the tests (6 to 12 minutes on two cores)"
	@# Each on one thread: most tests wait for imports and small models.
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
	@$(MAKE) --no-print-directory test-pythons

test-pythons: ## Run the board's tests on every Python of 3.6, 3.8, 3.10, 3.12 that is installed
	@echo "Running the board's tests on Python 3.6, 3.8, 3.10 and 3.12 where installed, three at a time (4 to 7 minutes)"
	@bash tests/jetson/run_pythons.sh

test-oldest: ## Run the fast tests on the oldest versions that pyproject.toml allows (a download of 3 GB)
	@echo "Making .venv-oldest with the lower bounds of pyproject.toml"
	@$(PYTHON) -m venv --clear .venv-oldest
	@.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check uv
	@.venv-oldest/bin/uv pip install --python .venv-oldest/bin/python --resolution lowest-direct $(PIP_ARGS) -e ./jetson -e '.[dev]'
	@OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow and not real"

check: $(VENV)/.dev ## Format, lint, types, import arrows, and Python 3.6 for the board's package
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/vermin --quiet --no-tips -t=3.6- --violations jetson/edgeqlora_jetson edgeqlora/remote/far.py

lock: ## Write the newest versions that pyproject.toml allows into constraints.txt, from a fresh environment
	@rm -rf .venv-lock
	@$(MAKE) --no-print-directory VENV=.venv-lock CONSTRAINTS= .venv-lock/.dev
	@python=$$(.venv-lock/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	{ echo "# The versions that CI ran, on Python $$python. Made by: make lock"; \
	.venv-lock/bin/python -m pip freeze --disable-pip-version-check --exclude-editable | grep -- == | grep -Ev '$(OF_TORCH)' | \
	sed -E "s/\+[^+]*$$//; s/$$/; python_version == \"$$python\"/; /^tensorrt/s/$$/ and sys_platform == \"linux\" and platform_machine == \"x86_64\"/"; \
	} > constraints.txt
	@rm -rf .venv-lock

bench: $(VENV)/.dev ## Measure the claims of README on ../shared (about 30 minutes)
	@$(BIN)/python tests/benchmarks/claims.py

clean: ## Remove everything that these commands made
	rm -rf $(VENV) .venv-pythons .venv-oldest .venv-lock edgeqlora-demo .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
