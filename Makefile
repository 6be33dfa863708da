# Two commands on a fresh machine: `make demo` and `make test`. Everything goes into .venv.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
INSTALLED := .venv/.installed
PACKAGES := appliance pipelines dicom_node webui updater
SOURCES := $(PACKAGES) tests bench

.DEFAULT_GOAL := help
.PHONY: help setup demo serve test check fix faults fuzz soak bench-inference bench-reception bench-worklist bench-viewer ohif screenshots translations

help:             ## Say what there is to do.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(INSTALLED)  ## Install the appliance and the tools of its tests into .venv.

# The constraints pin every version. Which torch 2.13.0 it is, for the processor or with gigabytes of CUDA, is up to the
# index that pip is configured with.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -c constraints.txt -e '.[test]'
	touch $@

demo: $(INSTALLED)  ## Start everything, push one study over DICOM, show the result. STUDY=FOLDER, ONCE=1
	$(BIN)/appliance demo $(if $(STUDY),--study '$(STUDY)') $(if $(ONCE),--once)

serve: $(INSTALLED)  ## Start everything and wait for studies.
	$(BIN)/appliance serve

test: $(INSTALLED)  ## Run the tests; they say which outside tools they missed.
	$(BIN)/python -m pytest -rs --numprocesses auto --maxprocesses 4 --dist loadfile

check: $(INSTALLED)  ## Formatting, lint, types, architecture.
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports

fix: $(INSTALLED)  ## Format, and fix what ruff can fix.
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

faults: $(INSTALLED)  ## Kill, fill, cut off and confuse everything a thousand times; count what is lost. ARGS='--only F8 --count 20'
	$(BIN)/python -m tests.end_to_end.faults $(ARGS)

fuzz: $(INSTALLED)  ## Send the listener 10,000 damaged objects and 1,000 damaged PDU streams. ARGS='--objects 5000:10000'
	$(BIN)/python -m tests.end_to_end.fuzz $(ARGS)

soak: $(INSTALLED)  ## Open 10,000 associations; threads, descriptors and memory stay flat. ARGS='--associations 500'
	$(BIN)/python -m tests.end_to_end.soak $(ARGS)

bench-inference: $(INSTALLED)  ## Time the automatic run beside its networks and MONAI. STUDY=FOLDER, RUNS=3
	$(BIN)/python -m bench.inference $(if $(STUDY),'$(STUDY)') --runs $(or $(RUNS),3)

bench-reception: $(INSTALLED)  ## Time reception beside storescp, Orthanc and plain pynetdicom. PLACE=FOLDER on the disk to measure
	$(BIN)/python -m bench.reception $(if $(PLACE),--place '$(PLACE)')

bench-worklist: $(INSTALLED)  ## Time the worklist's pages, filters and search with 10,000 studies, on SQLite and PostgreSQL. STUDIES=10000
	$(BIN)/python -m bench.worklist --studies $(or $(STUDIES),10000)

bench-viewer: $(INSTALLED)  ## Time the viewer beside OHIF on Orthanc, at 100 Mbit/s and unshaped. As root. ROUNDS=3
	$(BIN)/python -m bench.viewer --rounds $(or $(ROUNDS),3)

ohif: $(INSTALLED)  ## Show a Segmentation of ours in OHIF on Orthanc: bench/results/ohif.png. Downloads OHIF once. ARGS=--box
	$(BIN)/python -m bench.ohif $(ARGS)

translations: $(INSTALLED)  ## Bring the Chinese catalogue up to date with what the code says.
	$(BIN)/python -m tests.webui.translations

screenshots: $(INSTALLED)  ## Take the README's pictures anew.
	$(BIN)/python -m tests.webui.screenshots
