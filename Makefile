# `make pretrain` and `make test` are all that a reader needs; each makes
# the environment in .venv when it is not there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
INSTALL := $(BIN)/pip install --disable-pip-version-check \
  --constraint constraints.txt
ORACLE := .oracle
CORPUS ?= sample
NOTEBOOK ?= en/bert-torch.ipynb
# The project's address, for the pages: https://github.com/OWNER/NAME
REPOSITORY ?=
# Two files of tests at a time, in the order that tests/conftest.py gives
TWO := --numprocesses 2 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help venv pretrain test test-all test-long lint format audit stale test-matrix \
  oracle bench bench-gpu soak lab notebooks site clean

help:  ## Show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | \
	  awk -F':.*## ' '{printf "make %-12s %s\n", $$1, $$2}'

venv: $(READY)  ## Make the environment in .venv, 1 to 3 minutes

# Frameworks first: pip shows nothing while it unpacks a package
$(READY): setup.cfg pyproject.toml constraints.txt
	@echo 'Three frameworks go into $(VENV): 2 GB, 1 to 3 minutes.'
	@echo 'PyTorch with CUDA is larger: see "Install" in README.md.'
	@echo '1 of 6: an empty environment'
	$(PYTHON) -m venv $(VENV)
	@echo '2 of 6: PyTorch'
	$(INSTALL) torch
	@echo '3 of 6: MXNet'
	$(INSTALL) 'mxnet; python_version < "3.13"'
	@echo '4 of 6: JAX'
	$(INSTALL) jax flax
	@echo '5 of 6: d2lbert and its tools'
	$(INSTALL) --editable '.[torch,mxnet,jax,wordpiece,notebooks,dev]'
	@echo '6 of 6: Python learns to import MXNet'
	$(BIN)/d2lbert doctor --enable-mxnet
	touch $@

pretrain: $(READY)  ## Train the chapter's BERT in every framework
	$(BIN)/d2lbert chapter

test: $(READY)  ## Run the tests but the slow ones
	$(BIN)/python -m pytest $(TWO)

test-all: $(READY)  ## Run the slow tests too
	$(BIN)/python -m pytest $(TWO) -m 'not oracle and not long'

test-long: $(READY)  ## Run the tests that take longest
	$(BIN)/python -m pytest -m long

lint: $(READY)  ## Check style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo setup.cfg

format: $(READY)  ## Rewrite the code in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

audit: .audit/.ready  ## Look for known vulnerabilities in constraints.txt
	.audit/bin/python .ci/audit.py

.audit/.ready: .ci/audit.txt
	$(PYTHON) -m venv .audit
	.audit/bin/pip install --disable-pip-version-check --quiet \
	  --requirement $<
	touch $@

stale:  ## List pages whose numbers are of older code
	$(PYTHON) docs/stale.py

test-matrix: $(READY)  ## Run the tests on every Python from 3.10 to 3.13
	$(BIN)/nox

oracle: $(READY) $(ORACLE)/.ready  ## Compare with the textbook's own package
	PYTHONPATH=tests $(BIN)/python -W ignore -m oracle.compare \
	  $(ORACLE)/bin/python

$(ORACLE)/.ready: tests/oracle/constraints.txt
	$(PYTHON) -m venv $(ORACLE)
	$(ORACLE)/bin/pip install --disable-pip-version-check --quiet \
	  --constraint $< \
	  numpy torch mxnet pandas scipy matplotlib ipython pillow requests
	$(ORACLE)/bin/pip install --disable-pip-version-check --quiet \
	  --no-deps d2l==1.0.3
	touch $@

bench: $(READY) $(ORACLE)/.ready  ## Compare speed and memory with the textbook
	$(BIN)/python -m benchmarks --textbook $(ORACLE)/bin/python $(SECTIONS)

bench-gpu: $(READY) $(ORACLE)/.ready  ## The same on a CUDA card
	$(BIN)/python -m benchmarks.gpu \
	  --d2l $(ORACLE)/lib/python*/site-packages

soak: $(READY)  ## Train long, kill often, compare (SOAK='--steps 100000')
	$(BIN)/python tests/soak.py --picture docs/images/soak.png $(SOAK)

lab: $(VENV)/.lab  ## Open a notebook (NOTEBOOK=fr/bert-mxnet.ipynb)
	cd notebooks && ../$(BIN)/jupyter lab --ServerApp.root_dir=. $(NOTEBOOK)

$(VENV)/.lab: $(READY)
	@echo 'Installing JupyterLab in $(VENV): 100 MB, half a minute'
	$(INSTALL) --editable '.[lab]'
	touch $@

notebooks: $(READY)  ## Build and run them (CORPUS=wikitext-2 LANGUAGES=en)
	$(BIN)/python -m notebooks.build --corpus $(CORPUS) $(LANGUAGES)

site: .site/.ready  ## Build the pages in build/site
	rm -rf build/site
	.site/bin/python docs/site/source.py build/site-source
	.site/bin/sphinx-build --quiet --fail-on-warning --keep-going \
	  -D repository='$(REPOSITORY)' \
	  -c docs/site build/site-source build/site
	.site/bin/python -m pagefind --site build/site --silent --keep-index-url \
	  --exclude-selectors .headerlink --exclude-selectors .math
	.site/bin/python docs/site/search.py build/site/pagefind
	@echo build/site/index.html

.site/.ready: setup.cfg constraints.txt
	$(PYTHON) -m venv .site
	.site/bin/pip install --disable-pip-version-check --quiet \
	  --constraint constraints.txt --editable '.[site]'
	touch $@

clean:  ## Remove the environment, caches and runs
	rm -rf $(VENV) .audit .nox .site runs build dist *.egg-info .pytest_cache \
	  .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
