# Everything runs on a fresh clone with Python 3.11 or later and make: the first target to need it creates .venv.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
# Two test processes of one thread each: two threads in each of two processes are slower than one.
TEST_ENV := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1

.PHONY: install quickstart test test-slow test-all kills lint format docs wheel clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# Trains, scores and compares a small model on tasks that a program can check; see recipes/library/quickstart.
quickstart: $(INSTALLED)
	$(BIN)/posttrain run recipes/library/quickstart/quickstart.yaml

test: $(INSTALLED)
	$(TEST_ENV) $(BIN)/pytest -n 2 --dist worksteal -m "not slow"

# Kills, several processes, ZeRO, real servers, simulations.
test-slow: $(INSTALLED)
	$(TEST_ENV) $(BIN)/pytest -n 2 --dist worksteal -m slow

test-all: $(INSTALLED)
	$(TEST_ENV) $(BIN)/pytest -n 2 --dist worksteal

# Kills each command before KILLS of its changes to files, runs it again and compares.
kills: $(INSTALLED)
	$(TEST_ENV) KILLS=$${KILLS:-2} $(BIN)/pytest -v tests/recipes/test_kills.py

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The site, offline: a warning, a dead link among them, is an error.
docs: $(INSTALLED)
	$(BIN)/python -m sphinx -W --keep-going -q -c docs . docs/_build

# Builds the wheel, installs it into a clean environment outside the checkout, and runs commands from it there.
wheel: $(INSTALLED)
	.ci/check_wheel

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache
