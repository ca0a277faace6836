# Everything runs in .venv, made on first use. `make help` lists the targets.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
BIN    := $(VENV)/bin
export HF_HUB_OFFLINE = 1
export TRANSFORMERS_OFFLINE = 1
export HF_HUB_DISABLE_TELEMETRY = 1

.PHONY: help install demo test check format bench docs clean

help: ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(VENV)/.installed ## the virtual environment with every extra

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "got Python " + sys.version.split()[0] + ", wanted 3.11 or newer: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[train,serve,receive,postgres,langgraph,gym,mcp,otel,pin,math,sql,plot,ray,view,dev]'
	@touch $@

demo: install ## traces in, better agent out: the whole loop on the example, with the table at the end
	$(BIN)/counterplay demo

test: install ## every test, offline
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

check: install ## format, lint, types, layering contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install ## put the code in house style
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: install ## every figure the README states, as ratios inside one run
	@for script in bench/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

docs: install ## the manual as a site in build/site, with no dead link
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

clean: ## remove the environment, caches and the demo's output
	rm -rf $(VENV) demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
