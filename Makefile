# make demo   the whole chain on real pictures: environment, web server, workflow, report
# make test   the tests
# Both make their own environment in .venv from Python 3.11 or 3.12; nothing else is needed.

PYTHON ?= python3
VENV ?= .venv
CORES ?= 2
# Options for pip, for example the index of PyTorch's CPU wheels (a smaller download).
PIP_OPTIONS ?=
# Options for snakemake in `make demo`, for example --configfile my.yaml.
OPTIONS ?=

BIN := $(abspath $(VENV))/bin
export PATH := $(BIN):$(PATH)
export NO_ALBUMENTATIONS_UPDATE := 1
STAMP := $(VENV)/.installed

.PHONY: demo run report test test-quick lint install config clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints/cpu.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v in ((3, 11), (3, 12)) else "mlcd needs Python 3.11 or 3.12, this is %d.%d: make PYTHON=python3.11" % v)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints/cpu.txt $(PIP_OPTIONS) --editable '.[cpu,demo,dev]'
	@touch $@

demo: $(STAMP)
	@python demo/run.py -- snakemake --profile profiles/local --cores $(CORES) $(OPTIONS)
	@$(MAKE) --no-print-directory report

# Snakemake's own HTML report, made again only when a result is newer.
report: $(STAMP)
	@python -m mlcd.report.html --cores $(CORES) -- $(OPTIONS)

test: $(STAMP)
	pytest tests

lint: $(STAMP)
	ruff check .
	ruff format --check .
	snakefmt --check workflow rules
	snakemake --lint
	python -m mlcd.config.generate --check

config: $(STAMP)
	python -m mlcd.config.generate

clean:
	rm -rf results .snakemake logs
