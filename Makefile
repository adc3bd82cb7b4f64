# Everything that is done with this project. Each target sets up what it needs in .venv by itself,
# with uv where it is on the PATH, else with Python's own venv and pip.
#
#   make demo ARGS="--seconds 20 --port 18318"      make test ARGS="tests/store -k resolve"

ARGS ?=
BIN := .venv/bin
INPUTS := pyproject.toml constraints.txt
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq --progress-bar off
unexport PYTHONDONTWRITEBYTECODE # or each of the many processes of the tests compiles everything anew
.DEFAULT_GOAL := help
.PHONY: help demo test lint types format bench gate

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1	/p' $(MAKEFILE_LIST) | expand -t 16

demo: .venv/.demo ## a small shop that fails in many ways, and how tocsin tells of it
	@$(BIN)/tocsin demo $(ARGS)

test: .venv/.dev ## all tests but the long ones
	$(BIN)/python -m pytest -m "not gate" $(ARGS)

lint: .venv/.dev ## ruff: rules and format, without changing anything
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.dev ## mypy --strict
	$(BIN)/mypy

format: .venv/.dev ## ruff, putting right what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/.dev ## what capturing costs, and how long from raise to message
	$(BIN)/python -m benchmarks $(ARGS)

gate: lint types test ## everything, the long tests too
	$(BIN)/python -m pytest -m gate -n 2 $(ARGS)

# What is installed, and when it was: the stamps lie inside .venv, so they go with it.

.venv/.demo: $(INPUTS) | $(BIN)/python
	@echo "tocsin: installing the libraries that the demo needs (once, about half a minute)"
	@$(call install,-e '.[server]')
	@touch $@

.venv/.dev: $(INPUTS) | $(BIN)/python
	@echo "tocsin: installing everything that the tests need (once, about a minute)"
	@command -v uv >/dev/null || $(PIP) --upgrade 'pip>=25.1'
	@$(call install,-e '.[all]' --group dev)
	@touch .venv/.demo $@

install = if command -v uv >/dev/null; \
	then uv pip install --quiet --python $(BIN)/python -c constraints.txt $(1); \
	else $(PIP) -c constraints.txt $(1); fi

$(BIN)/python:
	@set -e; \
	for name in $(PYTHON) python3.13 python3.12 python3.11 python3; do \
		if $$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$$name; break; fi; \
	done; \
	if [ -z "$${python:-}" ]; then \
		echo "tocsin: needs Python 3.11 or newer, and finds none; name one: make PYTHON=/path/to/python3 …" >&2; exit 1; \
	fi; \
	echo "tocsin: making .venv with $$($$python --version)"; \
	if command -v uv >/dev/null; then uv venv --quiet --allow-existing --python "$$python" .venv; \
	elif ! $$python -c 'import ensurepip, venv' 2>/dev/null; then \
		echo "tocsin: $$python has no venv; on Debian: apt install python3-venv" >&2; exit 1; \
	else $$python -m venv .venv; fi
