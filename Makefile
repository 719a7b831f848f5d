# make demo   the whole chain on real images: environment, web server, workflow, report
# make install  what the workflow needs, 2.2 GB; install-dev: with tests, linters and docs, 2.6 GB
# make check  what every commit passes: lint, docs, tests
# make test   the tests
# make test-long  whole runs that take minutes each
# make test-slurm   the tests on a real Slurm cluster of four nodes on this machine (root, Debian)
# make wheel  sdist and wheel into dist/, installed and tried away from this folder
# make test-gpu  acceptance on one GPU in under ten minutes; GPU=--tiny: small, on a CPU
# make bench  our speed beside that of peers, each row with its goal; BENCH="--only sampler": a part
# make test-hard  kills, damaged files, full disks, hostile servers at random, in 40 minutes
# All make their own environment in .venv from Python 3.11 or 3.12; nothing else is needed.

PYTHON ?= python3
VENV ?= .venv
CORES ?= 2
# Options for pip, for example the index of PyTorch's CPU wheels (a smaller download).
PIP_OPTIONS ?=
# Options for snakemake in `make demo`, for example --configfile my.yaml, and the results' folder.
OPTIONS ?=
RESULTS ?= results
# Tests that run side by side.
WORKERS ?= 2
# What `make test-slurm` runs, and options of its cluster.
TESTS ?= tests/slurm
SLURM_OPTIONS ?=

# Options of `make test-gpu`, such as --tiny or --only search.
GPU ?=

# Options of `make bench`, such as --only labels.
BENCH ?=

# Options of `make test-hard`, such as --seed 7 --minutes 20.
HARD ?=

BIN := $(abspath $(VENV))/bin
STAMP := $(VENV)/.installed
DEV := $(VENV)/.installed-dev
EXPLORE = $(if $(wildcard src/mlcd/commands/explore*), or mlcd explore $(RESULTS))
SNAKEMAKE = mlcd run --profile profiles/local --cores $(CORES) $(OPTIONS)
export PATH := $(BIN):$(PATH)
export NO_ALBUMENTATIONS_UPDATE := 1

# Two jobs of one thread keep two cores busier than one job of two. On the command line it takes the
# place of the profile's own list.
DEMO_THREADS := --set-threads embed=1 evaluate_features=1 ablate_train=1
# Forty programs start in a demo, hundreds in the tests: they keep their bytecode also where a container
# turns that off.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo install install-dev report check test test-long test-slurm test-gpu test-hard bench wheel lint types docs config

# What the workflow needs, `mlcd audit` included. The other targets add what they need: install-dev.
install: $(STAMP)

install-dev: $(DEV)

$(STAMP): pyproject.toml constraints/cpu.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v in ((3, 11), (3, 12)) else "mlcd needs Python 3.11 or 3.12 and this is %d.%d; try make PYTHON=python3.11" % v)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints/cpu.txt $(PIP_OPTIONS) --editable '.[cpu,demo,audit]'
	@touch $@

$(DEV): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints/cpu.txt $(PIP_OPTIONS) --editable '.[cpu,demo,dev]'
	@touch $@

demo: $(STAMP)
	@python demo/run.py -- $(SNAKEMAKE) $(DEMO_THREADS)
	@$(MAKE) --no-print-directory report

# The HTML report is made again only when one of its figures or tables is newer.
report: $(STAMP) $(RESULTS)/report.html
	@test ! -f $(RESULTS)/evaluate/summary.md || grep '^[#|]' $(RESULTS)/evaluate/summary.md
	@echo
	@echo "Report:     $(abspath $(RESULTS)/report.html), to be opened in a browser"
	@echo "This run:   source $(VENV)/bin/activate, then mlcd status $(RESULTS)$(EXPLORE)"
	@echo "Your own:   mlcd init PROJECT --preset small --images FOLDER, then there mlcd run --profile profiles/local"

$(RESULTS)/report.html: $(wildcard $(RESULTS)/report/* $(RESULTS)/evaluate/summary.* workflow/report/*)
	$(SNAKEMAKE) --report $@

test: $(DEV)
	python -m pytest --numprocesses $(WORKERS) --dist loadfile -m "not long" tests

# Whole runs that repeat stages for minutes: images on disk of all kinds, outputs that were removed.
test-long: $(DEV)
	python -m pytest --numprocesses $(WORKERS) --dist loadfile -m long tests

# SLURM_OPTIONS=--accounting adds slurmdbd and its database; TESTS picks tests.
test-slurm: $(DEV)
	python tests/slurm/cluster.py install $(SLURM_OPTIONS)
	python tests/slurm/cluster.py run $(SLURM_OPTIONS) -- python -m pytest $(TESTS)

# On a bare machine with torch: python3 tests/gpu/acceptance.py --wheels DIR.
test-gpu: $(DEV)
	python tests/gpu/acceptance.py $(GPU)
ifeq (,$(findstring --tiny,$(GPU)))
	python -m pytest -m gpu tests
endif

wheel: $(DEV)
	tests/wheel.sh

# The seed is printed; a fault comes with the command that repeats it. HARD=--short takes a minute.
test-hard: $(DEV)
	python tests/hard/campaign.py $(HARD)

bench: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints/cpu.txt $(PIP_OPTIONS) --editable '.[bench]'
	python benchmarks/peers.py $(PIP_OPTIONS)
	python benchmarks/bench.py $(BENCH)

check: lint docs test

lint: $(DEV) types
	ruff check .
	ruff format --check .
	snakefmt --check workflow rules
	python workflow/lint.py
	python -m mlcd.config.generate --check
	python docs/generate_command_line.py --check
	lint-imports --no-logo
	python tests/checks/words.py

types: $(DEV)
	mypy

# Into site/. A broken link is an error.
docs: $(DEV)
	mkdocs build --strict

config: $(DEV)
	python -m mlcd.config.generate
