# Two commands: `make demo` shows what this does, `make test` checks that it does it. Both install everything first.
PYTHON ?= python3
UV     := 0.13.8
BIN    := .venv/bin
OUT    ?= demo-out
DEMO   := data_manifests/demo

# What the page's tests are done with besides a browser. Without npm, or where nothing can be fetched, they are skipped.
AXE    := tests/browser/node_modules/axe-core/axe.min.js
CHROME := $(firstword $(foreach name,chromium chromium-browser google-chrome google-chrome-stable,$(shell command -v $(name) 2>/dev/null)))

.PHONY: help demo test test-slow coverage mutants lint lock picture clean

help:
	@echo "make demo       install, run every experiment on the small corpus that comes along, make a report"
	@echo "make test       install, run every test that takes seconds"
	@echo "make test-slow  the tests that take minutes: full-size networks, long audio, many kills"
	@echo "make coverage   the same tests, and which lines and branches none of them takes"
	@echo "make mutants    break the core on purpose, a line at a time, and list what no test notices; PATHS=FILE.py … for a part"
	@echo "make lint       style, format and types: ruff, mypy"
	@echo "make picture    docs/report.png from the demo's report, by a headless Chromium"
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

$(AXE): tests/browser/package-lock.json
	-npm ci --prefix tests/browser --silent --ignore-scripts && touch $@

test: .venv/installed $(if $(shell command -v npm 2>/dev/null),$(AXE))
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow" --durations 10

test-slow: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m slow

coverage: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/coverage run -m pytest -m "not slow"
	$(BIN)/coverage report

# What was tried stays in mutants/ and is not tried again until its function or its tests change.
mutants: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/mutmut run --max-children 2 $(addsuffix .*,$(subst /,.,$(PATHS:.py=)))
	$(BIN)/mutmut results | sed '/: not checked/d'

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# uv.lock itself records registry addresses, so only the hashed list made from it is kept.
lock:
	$(BIN)/uv lock --quiet && $(BIN)/uv export --quiet --all-extras --all-groups --no-emit-project --no-header -o requirements.lock
	rm uv.lock

# The README's picture: what the demo's report shows first.
picture: $(OUT)/report/report.html
	profile=$$(mktemp -d); $(or $(CHROME),$(error a Chromium is needed on PATH)) --headless --no-sandbox --disable-gpu \
	  --no-first-run --disable-background-networking --disable-component-update --disable-sync --user-data-dir=$$profile \
	  --hide-scrollbars --window-size=1180,1000 --screenshot=docs/report.png file://$(abspath $<) 2>/dev/null; rm -rf $$profile

clean:
	rm -rf .venv tests/browser/node_modules mutants .coverage $(OUT) .pytest_cache .ruff_cache .mypy_cache
