# Two commands on a fresh machine: `make sweep` and `make test`. Both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SWEEP ?= sweeps/quickstart.yaml
ARGS ?=

.PHONY: help setup sweep test test-all test-cluster fuzz audit bad-inputs
.PHONY: check lint format types imports constraints clean

help:
	@echo "make sweep [SWEEP=sweeps/x.yaml] [ARGS='--search.trials_per_backbone 8']   set up and run a sweep"
	@echo "make test        the tests (no GPU, under 10 minutes on two cores)"
	@echo "make test-all    the slow ones as well"
	@echo "make fuzz        ten minutes of random configurations, indexes and images"
	@echo "make audit       known vulnerabilities of the pinned packages (asks the network; ADVISORIES=FOLDER: a clone of the database)"
	@echo "make bad-inputs  write docs/bad-inputs.md anew"
	@echo "make test-cluster  ray up of three hosts on this machine (Linux, root, sshd, rsync, iproute2)"
	@echo "make check       lint, types and import contracts"
	@echo "make constraints pin the versions that pyproject.toml resolves to today"

# uv installs the whole set in under a minute, where pip takes several; it is pinned like the rest.
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("raybench needs Python 3.11 or newer, found " + sys.version.split()[0] + "; name another with PYTHON=...") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	touch $@

setup: $(VENV)/.ready

sweep: setup
	$(BIN)/python -m raybench.sweep $(SWEEP) $(ARGS)

test: setup
	$(BIN)/python -m pytest

test-all: setup
	$(BIN)/python -m pytest -m 'not gpu and not fuzz and not cluster'

fuzz: setup
	$(BIN)/python -m pytest -m fuzz -s tests/test_fuzz.py

audit: setup
	$(BIN)/python .ci/audit.py $(BIN)/uv constraints.txt $(ADVISORIES)

bad-inputs: setup
	$(BIN)/python tests/bad_inputs_table.py

test-cluster: setup
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[cluster,dev]'
	$(BIN)/python -m pytest -m cluster -rs tests/test_cluster_up.py

check: lint types imports

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: setup
	$(BIN)/mypy

imports: setup
	$(BIN)/lint-imports

constraints:
	uv pip compile pyproject.toml --extra cluster --extra s3 --extra dev --universal --python-version 3.11 --upgrade \
		--no-annotate --no-header --no-emit-index-url --output-file constraints.txt
	$(PYTHON) -c 'import subprocess as s; print("uv==" + s.check_output(["uv", "--version"], text=True).split()[1])' >> constraints.txt

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
