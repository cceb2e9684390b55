# make book                            train everything at PROFILE=demo, render the book from that, say where it is
# make test                            everything that guards the book
# make html                            render the published book; nothing is trained
# make pdf                             the published book as one PDF (needs Chromium or Chrome)
# make rerun CHAPTER=02_stark          run one chapter again (PROFILE=demo; TASK=... for one task)
# make bench | make lint | make clean
#
# Needs python 3.11 or newer, make and pip; the set-up in .venv is done on the first call and whenever its inputs change.

PYTHON ?= python3
PROFILE ?= demo
VENV := .venv
BIN := $(VENV)/bin
INPUTS := pyproject.toml constraints.txt requirements-data.txt
READY := $(VENV)/ready-$(shell cat $(INPUTS) | cksum | cut -d' ' -f1)
COPY := runs/book/$(PROFILE)
OUT := $(CURDIR)
STRICT := -W -n --keep-going
BROWSER ?= $(firstword $(shell which chromium chromium-browser google-chrome google-chrome-stable 2>/dev/null))

.PHONY: book test html pdf rerun no-chapter bench lint clean setup

book: $(READY)
	$(BIN)/python -m kdutils.sweep all --profile $(PROFILE) --workers auto
	$(BIN)/python -m kdutils.chapters run --profile $(PROFILE) --train --out $(COPY)/notebooks
	mkdir -p $(COPY) && cp -Rp _config.yml _toc.yml book $(COPY)/
	$(BIN)/jupyter-book build --quiet $(COPY)
	@echo "The book, re-run at profile $(PROFILE): $(CURDIR)/$(COPY)/_build/html/index.html"

test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --nbval tests $(wildcard notebooks)

html: $(READY)
	$(BIN)/jupyter-book build --all --quiet $(STRICT) .
	@echo "The published book: $(CURDIR)/_build/html/index.html"

pdf: $(READY)
	@test -n "$(BROWSER)" || { echo "browser: got none; allowed: Chromium or Chrome on the PATH, or make pdf BROWSER=/path/to/one"; exit 1; }
	$(BIN)/jupyter-book build --quiet --path-output $(OUT) --builder custom --custom-builder singlehtml .
	cp $(OUT)/_build/singlehtml/book/intro.html $(OUT)/_build/singlehtml/index.html
	"$(BROWSER)" --headless --no-sandbox --disable-gpu --user-data-dir=$(OUT)/_build/browser --virtual-time-budget=60000 \
		--no-pdf-header-footer --print-to-pdf=$(OUT)/_build/distilling-bert.pdf "file://$(OUT)/_build/singlehtml/index.html" 2>/dev/null
	@test -s $(OUT)/_build/distilling-bert.pdf && echo "The book as one PDF: $(OUT)/_build/distilling-bert.pdf"

rerun: $(if $(CHAPTER),$(READY),no-chapter)
	$(BIN)/python -m kdutils.chapters run $(CHAPTER) --profile $(PROFILE) --train --out runs/rerun/$(PROFILE) $(if $(TASK),-p task $(TASK))

no-chapter:
	@echo "CHAPTER: got nothing; allowed: $(sort $(notdir $(basename $(wildcard notebooks/*.ipynb))))" >&2; exit 2

bench: $(READY)
	$(BIN)/python -m benchmarks

lint: $(READY)
	$(BIN)/ruff check .

clean:
	rm -rf _build $(VENV)

setup: $(READY)

$(READY): | $(INPUTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"python: got {sys.version.split()[0]}; allowed: 3.11 or newer (make PYTHON=/path/to/python)")'
	test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt "torch>=2.13,<2.14" --editable ".[book,test]"
	$(BIN)/pip install --quiet --no-deps --require-hashes --requirement requirements-data.txt
	rm -f $(VENV)/ready-*
	touch $@
