# make demo: the whole thing on this machine. make test: everything that CI checks. `make` alone lists the rest.

SHELL := /bin/sh
PYTHON ?= python3.11
VENV ?= .venv
ARGS ?=
TORCH_INDEX ?=
export SYSTEM_PACKAGES ?= yes

PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
INSTALL := $(PIP) install $(if $(MAKE_TERMOUT),,--quiet) --constraint constraints.txt
CODE := bergson_core worker service tests benchmarks scripts

.PHONY: help demo test lint format bench docs release system clean distclean
.NOTPARALLEL:

help:
	@echo 'make demo       train a small model, build its index, ask it questions; stays up until Ctrl-C'
	@echo '                ARGS=--exit ends after the questions, ARGS=--help lists what else there is'
	@echo 'make test       lint, types, direction of imports, all tests; installs what they need'
	@echo 'make lint       the first three of these;  make format  puts the code in shape'
	@echo 'make bench      the numbers of docs/benchmarks.md'
	@echo 'make docs       write the documents that are made from the code: OpenAPI, settings, pictures'
	@echo 'make release    build the distributions into dist/ and check them'
	@echo 'make clean      remove what was built;  make distclean  also the environment $(VENV)'
	@echo
	@echo 'PYTHON=python3.12       another Python than python3.11'
	@echo 'TORCH_INDEX=URL         where torch comes from, e.g. https://download.pytorch.org/whl/cpu'
	@echo 'SYSTEM_PACKAGES=no      never call apt-get'

# A stamp is written when its install is done, so that one that failed or was interrupted is made again, and lies in
# the environment, so that it goes with it. The environment's Python is there to be missed where it was removed.
$(PY):
	@sh scripts/make-venv.sh '$(PYTHON)' '$(VENV)'

$(VENV)/.installed: pyproject.toml constraints.txt $(PY)
	@sh scripts/make-venv.sh '$(PYTHON)' '$(VENV)'
	@echo 'Installing into $(VENV): torch, transformers and some fifty others. This takes a few minutes.'
ifneq ($(TORCH_INDEX),)
	@$(INSTALL) --index-url '$(TORCH_INDEX)' torch
endif
	@$(INSTALL) --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo 'Installing into $(VENV): what the checks need.'
	@$(INSTALL) --editable '.[dev]'
	@touch $@

demo: $(VENV)/.installed
	@exec $(VENV)/bin/bergson demo $(ARGS)

# A program that is not there fails the tests that need it in CI, and skips them elsewhere (tests/conftest.py).
system:
	@command -v chromium >/dev/null && command -v redis-server >/dev/null && command -v openssl >/dev/null \
	|| sh scripts/system-packages.sh chromium fonts-dejavu-core openssl redis-server \
	|| { test -z "$$CI" && echo 'Going on without: tests that need a missing program are skipped.'; }

# Two workers, the cores of CI; each imports torch, so that plain pytest is quicker for one file. ARGS=-n0 is without.
test: system lint
	@exec $(PY) -m pytest -n 2 --dist worksteal $(ARGS)

lint: $(VENV)/.installed-dev
	@$(VENV)/bin/ruff check $(CODE)
	@$(VENV)/bin/ruff format --check $(CODE)
	@$(VENV)/bin/lint-imports
	@$(VENV)/bin/pyright --pythonpath $(PY)

format: $(VENV)/.installed-dev
	@$(VENV)/bin/ruff check --fix-only $(CODE)
	@$(VENV)/bin/ruff format $(CODE)

bench: $(VENV)/.installed-dev
	@for file in benchmarks/[a-z]*.py; do \
		module=benchmarks.$$(basename "$$file" .py); echo "== $$module"; $(PY) -m "$$module" || exit; \
	done

docs: $(VENV)/.installed-dev
	@$(PY) -m scripts.generate_docs

release: $(VENV)/.installed-dev
	@TORCH_INDEX='$(TORCH_INDEX)' sh scripts/release.sh $(PY)

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .import_linter_cache
	find $(CODE) -name __pycache__ -prune -exec rm -rf {} +

distclean: clean
	rm -rf '$(VENV)'
