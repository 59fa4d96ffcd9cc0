# Set-up is one file: the virtual environment's stamp, remade when the constraints or the requirements change.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
IN_RAY := tests/distributed/test_train_group.py

.PHONY: setup quickstart study test lint clean

setup: $(STAMP)

$(STAMP): constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	# torch first and alone: with the pinned CPU build in place nothing below asks for CUDA packages.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $(STAMP)

quickstart: $(STAMP)
	$(BIN)/w2sr run configs/quickstart.yaml

# Two processes: tests that open a Ray session in pytest's own process stand apart from those that train in it. In one process they were
# seen to be aborted (SIGABRT), once in three runs.
test: $(STAMP)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest --ignore=tests/ray $(addprefix --ignore=,$(IN_RAY))
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests/ray $(IN_RAY)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) runs build
