# Each target sets up what it needs, from nothing: `make demo`, `make test`, `make lint`,
# `make bench`, `make faults`, `make slurm-test` (as root, where Slurm is not installed: Debian or
# Ubuntu).
#
#   make test PYTHON=python3.12           the Python that the environment is made of (3.10 or newer)
#   make test PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
#                                         any options for pip: here the small CPU build of torch
.DELETE_ON_ERROR:
.PHONY: demo test faults slurm-test lint bench clean

PYTHON ?= python3
PIP_ARGS ?=
RUN := .venv/bin/python -m

# DeepSpeed compiles kernels here: our own folder, so that no other project's lock can block us.
export TORCH_EXTENSIONS_DIR := $(CURDIR)/.venv/torch_extensions

demo: .venv/.installed
	$(RUN) launch.demo

test: lint
	$(RUN) pytest

faults: .venv/.installed
	$(RUN:-m=) tests/faults/run.py

slurm-test: .venv/.installed
	tests/slurm/slurm.sh install
	$(RUN) pytest tests/slurm

bench: .venv/.installed
	$(RUN) launch.bench evaluation rounds=2
	$(RUN) launch.bench count
	$(RUN) launch.bench training rounds=2

lint: .venv/.installed
	$(RUN) ruff check
	$(RUN) ruff format --check
	$(RUN) mypy

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find framework trainers launch tests -name __pycache__ -prune -exec rm -rf {} +

# The stamp is touched last: an installation that was cut off is begun again, from an empty folder.
.venv/.installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear .venv
	$(RUN) pip install $(PIP_ARGS) --constraint constraints.txt --upgrade pip
	$(RUN) pip install $(PIP_ARGS) --constraint constraints.txt \
		--build-constraint constraints.txt --editable ".[test,lint,harness,dashboard,tensorboard]"
	touch $@
