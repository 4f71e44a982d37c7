# `make demo`, `make test` and `make curves` need Python 3.11 or newer and nothing else.
PYTHON ?= python3
BIN := .venv/bin

OUT ?= runs/curves
JOBS ?= 2

.PHONY: demo test test-fast test-gates coverage curves docs lint clean test-clients

demo: .venv/installed
	$(BIN)/hybrid demo

# JOBS=0 runs the tests in one process. Tests marked serial measure time: they run by themselves.
test: .venv/installed
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "not serial"
	$(BIN)/python -m pytest -m serial

test-fast: .venv/installed
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --fast

# What compiled kernels cost, and what they compute; no GPU.
test-gates: .venv/installed
	$(BIN)/python -m hybrid.kernels.gate
	$(BIN)/python -m hybrid.kernels.gate.emulate

coverage: .venv/installed
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "not serial" --cov --cov-report=
	$(BIN)/python -m pytest -m serial --cov --cov-append --cov-report=term:skip-covered

# What results/curves was made with; twelve minutes on two cores, and stopped it goes on from there.
curves: .venv/installed
	$(BIN)/hybrid experiment run examples/curves.yaml --out $(OUT)
	$(BIN)/hybrid experiment report $(OUT)
	$(BIN)/hybrid fit $(OUT) --out $(OUT)/fitted.yaml

# Other people's clients against the server: installs them from PyPI and npm, needs node.
test-clients: .venv/installed
	tests/clients/run

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site, in site/; a broken link or a name that is not found fails.
docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

clean:
	rm -rf .venv build dist site *.egg-info

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("hybrid needs Python 3.11 or newer; choose one with make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@
