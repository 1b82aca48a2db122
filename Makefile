PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test ensembles fast lint clean

demo: .venv/installed
	$(BIN)/zeroloss compare digits --noise dropout --noise label --noise minibatch \
		--out runs/demo --overwrite
	@echo "Open runs/demo/report.html in a browser."

test: .venv/installed
	$(BIN)/python -m pytest -q -n auto --dist loadfile -m "not ensemble" --durations=15

ensembles: .venv/installed
	$(BIN)/python -m pytest -q -n auto --dist load -m ensemble --durations=15

fast: .venv/installed
	$(BIN)/python -m pytest -q -n auto --dist loadfile -m "not slow and not ensemble"

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

clean:
	rm -rf .venv .cache

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@
