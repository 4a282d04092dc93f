# make install builds .venv and nothing else; the other targets call it first.
#
#   PYTHON=python3.12 make install      another Python, 3.11 or newer
#   TORCH_INDEX=URL make install        torch and torchvision from this index, such as PyTorch's CPU builds
#
# .venv is kept while pyproject.toml stays the same; `make clean` removes it, as for a change of TORCH_INDEX.

PYTHON ?= python3
TORCH_INDEX ?=
PYTEST_ARGS ?=
DEMO_RUN ?= runs/demo
BENCH_OUT ?= runs/bench
BENCH_ARGS ?=
FAULTS ?= runs/faults.xml
BIN := .venv/bin
FOLDERS := multi_exit data_partitions clients server fl_app experiments benchmarks
STAMP := .venv/.installed

# torch and torchvision have to come from one place, or torchvision does not import
PAIR = $$($(BIN)/python -c 'import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	print(*(name for name in project["optional-dependencies"]["train"] if name.startswith("torch")))')
# a pair that the machine brings along (a Jetson's own build) is used; a virtual environment's cannot be
HAS_PAIR := import sys, torch, torchvision; sys.exit(sys.prefix != sys.base_prefix)

.PHONY: install demo bench test test-slow test-faults evidence-check lint docs packages clean

install: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$(PYTHON) is missing or older than 3.11: name another, as in PYTHON=python3.12 make install." >&2; exit 1; }
	@if [ ! -x $(BIN)/python ]; then \
		if [ -z "$(TORCH_INDEX)" ] && $(PYTHON) -c '$(HAS_PAIR)' 2>/dev/null; then system=--system-site-packages; fi; \
		echo "$(PYTHON) -m venv $$system .venv"; $(PYTHON) -m venv $$system .venv; \
	fi
	$(if $(TORCH_INDEX),$(BIN)/pip install --index-url "$(TORCH_INDEX)" $(PAIR))
	$(BIN)/pip install --editable '.[dev]'
	@$(BIN)/python -c 'import torch, torchvision' \
		|| { echo "torch and torchvision do not match: make clean, then TORCH_INDEX=URL make install." >&2; exit 1; }
	@touch $@

demo: install
	$(BIN)/persephonee simulate --dataset synthetic-writers --clients 20 --rounds 1 --run-dir $(DEMO_RUN) --overwrite

# writes docs/performance.md; BENCH_ARGS=--resume goes on with a run that was broken off
bench: install
	$(BIN)/python -m persephonee.benchmarks.run_all --out $(BENCH_OUT) $(BENCH_ARGS)

test: install
	$(BIN)/pytest --numprocesses auto --dist loadfile $(PYTEST_ARGS)

test-slow: install
	$(BIN)/pytest -m slow $(PYTEST_ARGS)

# faults of devices and servers on loopback, about ten minutes; the table in docs/reliability.md is what they record
test-faults: install
	$(BIN)/pytest -m slow tests/fl_app/deployment/test_devices_slow.py tests/fl_app/deployment/test_faults_slow.py \
		-o junit_family=xunit1 --junitxml=$(FAULTS) $(PYTEST_ARGS)
	$(BIN)/python -m tests.fault_table $(FAULTS) docs/reliability.md

# each headline in a reduced version, within a band; about a minute, and part of `make test`
evidence-check: install
	$(BIN)/python -m persephonee.experiments.evidence.check

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@# mypy finds packages by their folders and not by running our __init__.py: the same folders, linked below one name
	@mkdir -p build/typed/persephonee
	@for path in persephonee/* $(FOLDERS); do ln -sfn ../../../$$path build/typed/persephonee/; done
	cd build/typed && ../../$(BIN)/mypy --config-file ../../pyproject.toml --package persephonee

# the API reference; fails on a module that cannot be imported and on a broken link
docs: install
	$(BIN)/python docs/build_reference.py build/docs

# what a release consists of, in dist/; neither PyTorch nor Flower is needed, so it has an environment of its own
packages: RELEASE := build/release
packages:
	$(PYTHON) -m venv $(RELEASE)
	$(RELEASE)/bin/pip install --quiet $$($(PYTHON) -c 'import tomllib; \
		print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["release"])')
	rm -rf dist
	$(RELEASE)/bin/python -m build
	$(RELEASE)/bin/twine check --strict dist/*

clean:
	rm -rf .venv
