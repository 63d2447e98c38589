# A fresh clone needs only Python >= 3.10, pip and make: each target installs what it needs, and no more.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
FOR_DEMO := $(VENV)/.demo-installed
FOR_EXPLORER := $(VENV)/.explorer-installed
FOR_ALL := $(VENV)/.installed
FOR_DOCS := $(VENV)/.docs-installed
FAST := not slow and not interpreter and not distributed and not browser

.DEFAULT_GOAL := help
.PHONY: demo explore test test-fast lint docs bench models clean help
.DELETE_ON_ERROR:

demo: $(FOR_DEMO) ## polish photographs and generated scenes, print what they gain, write panels to demo-out/
	$(BIN)/ssa-fast demo --out demo-out --overwrite

explore: $(FOR_EXPLORER) ## show images, CAMs and what resembles a pixel in the browser, until Ctrl-C
	$(BIN)/ssa-fast explore

test: $(FOR_ALL) ## run every test (about 20 minutes on two cores)
	$(BIN)/python -m pytest

test-fast: $(FOR_ALL) ## run the quick tests (less than a minute)
	$(BIN)/python -m pytest -m "$(FAST)"

lint: $(FOR_ALL) ## check formatting, style, types and the direction of imports, as CI does
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(FOR_DOCS) ## build the documentation into site/; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "built: site/index.html"

bench: $(FOR_ALL) ## time every method against dense PyTorch, and check the goals (about 3 minutes on two cores)
	$(BIN)/python -m bench paths

models: $(FOR_DEMO) ## run SSA on every classifier known by name: stages, methods, seed
	$(BIN)/python -m tests.sweep_models --all

clean: ## remove the virtual environment and what was built
	rm -rf $(VENV) demo-out site build *.egg-info

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

$(FOR_DEMO): EXTRA := app,photos
$(FOR_EXPLORER): EXTRA := explore,photos
$(FOR_ALL): EXTRA := dev
$(FOR_DOCS): EXTRA := docs
$(FOR_DEMO) $(FOR_EXPLORER) $(FOR_ALL) $(FOR_DOCS): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$(EXTRA)]"
	touch $@
