# Everything here sets itself up: a fresh clone needs Python >= 3.10, pip and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test lint bench models clean
.DELETE_ON_ERROR:

demo: $(INSTALLED) ## generate scenes, find and polish their CAMs, print the figures, write panels to demo-out/
	$(BIN)/ssa-fast demo --out demo-out --overwrite

test: $(INSTALLED) ## every test
	$(BIN)/python -m pytest

lint: $(INSTALLED) ## formatting, lint and types, as CI checks them
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(INSTALLED) ## the paths against dense PyTorch, with the goals
	$(BIN)/python -m bench paths

models: $(INSTALLED) ## SSA on every torchvision classifier: stages, methods, seed
	$(BIN)/python -m tests.sweep_torchvision --all

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) demo-out build *.egg-info
