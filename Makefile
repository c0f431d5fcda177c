PYTHON ?= python3
BIN := .venv/bin
EXTRAS := dev,tensorboard

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast lint bench

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 12

setup: .venv/.installed  ## create .venv and install everything into it

.venv/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$(EXTRAS)]"
	@$(BIN)/python -c 'import torchvision' 2>.venv/torchvision.log || { tail -1 .venv/torchvision.log; \
	  echo "torch and torchvision are not a pair (a CPU-only build beside a CUDA build, or releases that differ)."; \
	  echo "Install both from one index: $(BIN)/python -m pip install --force-reinstall torch torchvision"; exit 1; }
	@touch $@

demo: setup  ## train the VAE on real Fashion-MNIST images, test it and draw samples (under 10 minutes on two cores)
	$(BIN)/python train.py fit --config configs/demo.yaml $(DEMO)
	$(BIN)/python train.py test --ckpt_path "$$(ls -t runs/demo/version_*/checkpoints/best.ckpt | head -1)" $(DEMO_TEST)

test: setup  ## run the tests, on all cores (five minutes on two)
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 $(PYTEST)

test-fast: setup  ## run the tests of one model of each family (a minute on two cores)
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 -m "not slow" $(PYTEST)

lint: setup  ## check style, types and what may import what
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

bench: setup  ## print every benchmark's table
	@for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done
