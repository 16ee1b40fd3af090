# Two commands: `make demo` shows what this does, `make test` checks that it does it. Both install everything first.
PYTHON ?= python3
UV     := 0.13.8
BIN    := .venv/bin
OUT    ?= demo-out
DEMO   := data_manifests/demo

.PHONY: help demo test test-slow coverage mutants lint lock clean

help:
	@echo "make demo       install, run every experiment on the small corpus that comes along, make a report"
	@echo "make test       install, run every test that takes seconds"
	@echo "make test-slow  the tests that take minutes: full-size networks, long audio, many kills"
	@echo "make coverage   the same tests, and which lines and branches none of them takes"
	@echo "make mutants    break the core on purpose, a line at a time, and list what no test notices; PATHS=FILE.py … for a part"
	@echo "make lint       style, format and types: ruff, mypy"
	@echo "make lock       renew requirements.lock from pyproject.toml"

# Exactly the versions of requirements.lock, checked by hash; a stamp so that it happens once.
.venv/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 13) else f"error: Python 3.11 or 3.12 is needed, $(PYTHON) is {v[0]}.{v[1]}; try: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV)
	$(BIN)/uv pip sync --require-hashes --python $(BIN)/python requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

demo: .venv/installed
	BIN=$(BIN) OUT=$(OUT) DEMO=$(DEMO) bash $(DEMO)/run.sh

test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-slow: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m slow

coverage: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/coverage run -m pytest -m "not slow"
	$(BIN)/coverage report

# What was tried stays in mutants/ and is not tried again until its function or its tests change.
mutants: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/mutmut run --max-children 2 $(addsuffix .*,$(subst /,.,$(PATHS:.py=)))
	$(BIN)/mutmut results | grep -v ": not checked"

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# uv.lock itself records registry addresses, so only the hashed list made from it is kept.
lock:
	$(BIN)/uv lock --quiet && $(BIN)/uv export --quiet --all-extras --all-groups --no-emit-project --no-header -o requirements.lock
	rm uv.lock

clean:
	rm -rf .venv mutants .coverage $(OUT) .pytest_cache .ruff_cache .mypy_cache
