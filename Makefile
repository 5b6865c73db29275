# `make demo` and `make test` do all their set-up; they need python3 (3.11 or newer) with venv, and make.
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2

VENV_PYTHON := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
TORCH := $(shell grep '^torch==' constraints.txt)

CHECKED := --jaxtyping-packages=steadytune,typecheck.checked

.PHONY: demo test lint types clean
.DELETE_ON_ERROR:

demo: $(INSTALLED)
	$(VENV_PYTHON) examples/demo.py

# One thread per worker: two workers that each start a thread per core only wait for each other. Shapes and types of
# every call are checked while parts are tested; in tests of the whole the checks would take as long as the rest.
test: lint types
	OMP_NUM_THREADS=1 $(VENV_PYTHON) -m pytest -n $(WORKERS) --dist loadscope $(CHECKED) tests/architecture tests/property tests/unit
	OMP_NUM_THREADS=1 $(VENV_PYTHON) -m pytest -n $(WORKERS) --dist loadscope --no-loadscope-reorder tests/contract tests/end_to_end tests/equivalence tests/integration

lint: $(INSTALLED)
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m ruff format --check .

types: $(INSTALLED)
	$(VENV_PYTHON) -m mypy

clean:
	rm -rf build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# torch goes first and alone, so that pip takes the build that the machine is set up for (CPU or GPU).
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "steadytune needs Python 3.11 or newer; got %d.%d from $(PYTHON), name another with PYTHON=..." % sys.version_info[:2])'
	test -x $(VENV_PYTHON) || $(PYTHON) -m venv $(VENV)
	$(VENV_PYTHON) -m pip install --quiet --quiet --disable-pip-version-check '$(TORCH)'
	$(VENV_PYTHON) -m pip install --quiet --quiet --disable-pip-version-check -c constraints.txt -e '.[bundled,dev]'
	touch $@
