# make demo   the whole chain on real pictures: environment, web server, workflow, report
# make test   the tests
# make test-slurm   the tests on a real Slurm cluster of four nodes on this machine (root, Debian)
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

BIN := $(abspath $(VENV))/bin
STAMP := $(VENV)/.installed
SNAKEMAKE = snakemake --profile profiles/local --cores $(CORES) $(OPTIONS)
export PATH := $(BIN):$(PATH)
export NO_ALBUMENTATIONS_UPDATE := 1

.PHONY: demo install report test test-slurm lint config

install: $(STAMP)

$(STAMP): pyproject.toml constraints/cpu.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v in ((3, 11), (3, 12)) else "mlcd needs Python 3.11 or 3.12 and this is %d.%d; try make PYTHON=python3.11" % v)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints/cpu.txt $(PIP_OPTIONS) --editable '.[cpu,demo,dev]'
	@touch $@

demo: $(STAMP)
	@python demo/run.py -- $(SNAKEMAKE)
	@$(MAKE) --no-print-directory report

# The HTML report is made again only when one of its figures or tables is newer.
report: $(STAMP) $(RESULTS)/report.html
	@test ! -f $(RESULTS)/evaluate/summary.md || cat $(RESULTS)/evaluate/summary.md
	@echo
	@echo "Report: $(abspath $(RESULTS)/report.html)"

$(RESULTS)/report.html: $(wildcard $(RESULTS)/report/* $(RESULTS)/evaluate/summary.* workflow/report/*)
	$(SNAKEMAKE) --report $@

test: $(STAMP)
	python -m pytest --numprocesses $(WORKERS) --dist loadfile tests

# SLURM_OPTIONS=--accounting adds slurmdbd and its database; TESTS picks tests.
test-slurm: $(STAMP)
	python tests/slurm/cluster.py install $(SLURM_OPTIONS)
	python tests/slurm/cluster.py run $(SLURM_OPTIONS) -- python -m pytest $(TESTS)

lint: $(STAMP)
	ruff check .
	ruff format --check .
	snakefmt --check workflow rules
	snakemake --lint
	python -m mlcd.config.generate --check

config: $(STAMP)
	python -m mlcd.config.generate
