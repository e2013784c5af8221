.PHONY: all setup demo check test test-cluster test-runtimes test-all chaos format lint types imports quick reference wheel browser docs

PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
# Each file of tests runs in one of as many processes as there are cores.
PROCESSES ?= logical
PYTEST := $(BIN)/pytest --numprocesses $(PROCESSES) --maxprocesses 4 --dist loadfile \
	--no-loadscope-reorder

all: lint types imports test

$(STAMP): pyproject.toml requirements.lock
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint requirements.lock --editable . --group dev
	touch $@

setup: $(STAMP)

demo: $(STAMP)
	$(BIN)/bitfront demo

# What needs neither Ray nor a database server, in under 2 minutes on two cores.
check: $(STAMP)
	$(MAKE) --jobs 2 --output-sync lint types imports quick

quick: $(STAMP)
	$(PYTEST) -m "not ray and not postgres and not slow and not gpu"

# The tests of the web page need a real browser; on Debian this installs one.
browser:
	command -v chromium >/dev/null || { apt-get update && \
		apt-get install --yes --no-install-recommends chromium; }

# Continuous integration runs these three tiers, and each test is in one of them.
test: $(STAMP)
	$(PYTEST) -m "not ray and not runtime and not slow and not gpu"

# What runs exported models in their runtimes.
test-runtimes: $(STAMP)
	$(PYTEST) -m "runtime and not ray and not slow and not gpu"

# What starts Ray: drivers, workers and nodes that come, go and are killed.
test-cluster: $(STAMP)
	$(PYTEST) -m "ray and not slow and not gpu"

test-all: $(STAMP)
	$(PYTEST)

chaos: $(STAMP)
	$(BIN)/python -m benchmarks.chaos --rounds 50 --database both --out build/chaos

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy

imports: $(STAMP)
	$(BIN)/lint-imports

reference: $(STAMP)
	$(BIN)/python -m bitfront.reference.train
	$(BIN)/python -m bitfront.reference.train_llava

# The documentation as a site, in build/site; a warning is an error.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

wheel: $(STAMP)
	rm -rf build dist
	$(BIN)/python -m build --wheel
