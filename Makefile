# make demo | test | parity | published | lint | benchmark. Each target makes the environments that
# it needs; a stamp in each of them says that they are complete.

# The first suitable Python here; another one with make PYTHON=...
PYTHON ?= $(call first_python,python3.11 python3.12 python3.13 python3,(3, 11) <= sys.version_info < (3, 14))
# The real fairseq wants numpy < 2, which has no wheels for Python 3.12 and newer.
ORACLE_PYTHON ?= $(call first_python,$(PYTHON) python3.11 python3,sys.version_info[:2] == (3, 11))
# pinned: the versions in constraints/; newest: what pip takes by itself, as users have it.
VERSIONS ?= pinned
TEXT ?=
PYTEST_FLAGS ?=

first_python = $(shell for python in $(1); do \
	$$python -c 'import sys, venv, ensurepip; sys.exit(not $(2))' 2>/dev/null && { echo $$python; break; }; done)
pip_install = bin/python -m pip install --quiet --disable-pip-version-check
pinned = --constraint constraints/main.txt
newest = --upgrade --upgrade-strategy eager
main_versions = $(or $($(filter pinned newest,$(VERSIONS))),$(error VERSIONS=$(VERSIONS) is neither pinned nor newest))

.PHONY: demo test parity published lint format benchmark clean
.DELETE_ON_ERROR:

demo: .venv/installed
	.venv/bin/python tools/demo.py $(if $(TEXT),--text "$$TEXT")
export TEXT

# Compilation, which uses one core, takes most of the time: so two workers, here and below.
test: .venv/installed
	.venv/bin/python -m pytest -n 2 --dist loadfile $(PYTEST_FLAGS)

# The goldens again, and live comparisons with the real fairseq, transformers, torch and Flax.
parity: export BART_HK_ORACLE = $(CURDIR)/.venv-oracle/bin/python
parity: export BART_HK_PEERS = $(CURDIR)/.venv-peers/bin/python
parity: .venv/torch .venv-oracle/installed .venv-peers/installed
	.venv/bin/python tools/make_goldens.py --check
	.venv/bin/python -m pytest tests/parity -n 2 --dist loadfile $(PYTEST_FLAGS)

# The real checkpoints, a few gigabytes each, say what is published about them. Needs the network.
published: .venv/installed
	BART_HK_PUBLISHED=1 .venv/bin/python -m pytest tests/published $(PYTEST_FLAGS)

lint: .venv/linters
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

format: .venv/linters
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

benchmark: .venv/installed .venv-peers/installed
	.venv/bin/python tools/benchmark.py

clean:
	rm -rf .venv .venv-oracle .venv-peers .cache build bart_hk.egg-info

.venv/installed: setup.cfg pyproject.toml constraints/main.txt
	$(if $(PYTHON),,$(error no Python 3.11 to 3.13 with venv found: name one with make PYTHON=...))
	@echo "Installing bart_hk and what its tests need into .venv (about a minute)"
	$(PYTHON) -m venv .venv
	.venv/$(pip_install) $(main_versions) --editable '.[train,test]'
	touch $@

.venv/linters: .venv/installed
	.venv/$(pip_install) $(main_versions) --editable '.[dev]'
	touch $@

# torch is for torch.hub.load alone, whose test is one of the live comparisons.
.venv/torch: .venv/installed
	.venv/$(pip_install) $(main_versions) --editable '.[torch]'
	touch $@

# fairseq-fixed is compiled, against an installed torch and a numpy that it is content with.
.venv-oracle/installed: constraints/oracle.txt
	$(if $(ORACLE_PYTHON),,$(error no Python 3.11 found: name one with make ORACLE_PYTHON=...))
	@echo "Installing the real fairseq, torch and transformers into .venv-oracle (about 5 minutes)"
	$(ORACLE_PYTHON) -m venv .venv-oracle
	.venv-oracle/$(pip_install) --constraint constraints/oracle.txt setuptools wheel cython numpy scipy torch
	.venv-oracle/$(pip_install) --constraint constraints/oracle.txt --no-build-isolation --no-deps fairseq-fixed
	.venv-oracle/$(pip_install) --constraint constraints/oracle.txt bitarray cffi hydra-core omegaconf \
		packaging regex sacrebleu scikit-learn sentencepiece tqdm transformers
	touch $@

.venv-peers/installed: constraints/peers.txt
	$(if $(PYTHON),,$(error no Python 3.11 to 3.13 with venv found: name one with make PYTHON=...))
	@echo "Installing what bart_hk is measured against into .venv-peers (about 2 minutes)"
	$(PYTHON) -m venv .venv-peers
	.venv-peers/$(pip_install) --constraint constraints/peers.txt torch
	.venv-peers/$(pip_install) --constraint constraints/peers.txt ctranslate2 flax safetensors sentencepiece transformers
	touch $@
