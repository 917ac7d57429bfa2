# make demo    sets everything up, trains on handwritten digits for some minutes, and says where its pictures are
# make test    sets everything up and runs the tests, except those that are marked as slow
# make test-slow runs those: real kills, jobs of several processes, the benchmarks, the notebook, the wheel, the tutorial
# make lint    checks style
# make typecheck  checks types; pyproject.toml lists the modules that are left out
# make docs    builds the documentation site in docs/_build/html; a warning is an error
# make test-newest runs the tests with the newest jax, flax, optax and orbax, in a virtual environment of its own
# make test-interop compares networks with those of the real diffusers and torch, in a virtual environment of its own
# make test-browser runs exported networks in ONNX Runtime and in a headless browser, in a virtual environment of its own
# make test-plan compiles for GPUs and TPUs that need not be present, in a virtual environment of its own
# make notebook runs the notebook and stores its outputs in it
# make figures makes every picture of README.md and docs/ with the program as it is; CIFAR-10 is downloaded, or read
#              where DATA=DIR has it as TFDS keeps it. make figures-slow FLOWERS=DIR adds those whose networks train for hours.
#
# PYTHON=python3.12 picks an interpreter; by default the newest of 3.13, 3.12, 3.11 that is installed.
# VENV=DIR puts the virtual environment elsewhere.

VENV ?= .venv
# An interpreter is usable if it runs (a pyenv shim may not), is new enough, and can make virtual environments.
USABLE = import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3 python; do \
	$$python -c '$(USABLE)' 2>/dev/null && echo $$python && break; done)
RUN = $(VENV)/bin/python
# As tests/browser/browsers.py finds them. Another browser, named by DDPM_JAX_TEST_BROWSER, is not installed here.
BROWSER = { test "$${DDPM_JAX_TEST_BROWSER:-chromium}" != chromium || { { command -v chromium || command -v google-chrome; } && { command -v chromedriver || test -x "$$CHROMEWEBDRIVER/chromedriver"; }; } >/dev/null; }

.PHONY: demo test test-slow test-newest test-interop test-browser test-plan lint typecheck docs notebook figures figures-slow clean

demo: $(VENV)/.installed
	$(RUN) main.py --config=configs/digits.py --workdir=runs/digits
	@echo && echo "The pictures:" && ls -1 $(CURDIR)/runs/digits/samples/*.png

test: $(VENV)/.installed-test
	$(RUN) -m pytest -m "not slow"

test-slow: $(VENV)/.installed-test
	$(RUN) -m pytest -m slow

lint: $(VENV)/.installed-test
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

typecheck: $(VENV)/.installed-test
	$(RUN) -m mypy

docs: $(VENV)/.installed-docs
	$(RUN) -m sphinx --fail-on-warning --keep-going --nitpicky --quiet docs docs/_build/html
	@echo "The site: $(CURDIR)/docs/_build/html/index.html"

# The upgrade comes after the pinned versions: what pip then reports as incompatible is what this target is to find out.
test-newest:
	$(MAKE) VENV=$(VENV)-newest $(VENV)-newest/.installed-test
	$(VENV)-newest/bin/python -m pip install --disable-pip-version-check --upgrade jax jaxlib flax optax orbax-checkpoint
	$(VENV)-newest/bin/python -m pytest

test-interop:
	$(MAKE) VENV=$(VENV)-interop $(VENV)-interop/.installed-interop
	$(VENV)-interop/bin/python -m pytest --timeout=900 tests/interop_real

test-browser:
	@$(BROWSER) || test "$$(id -u)" != 0 || ! command -v apt-get >/dev/null || \
		{ apt-get update -qq && apt-get install -qq --no-install-recommends chromium chromium-driver; }
	@$(BROWSER) || { echo "error: chromium and chromedriver are missing: install them (on Debian: apt-get install chromium chromium-driver), or Google Chrome and its chromedriver"; exit 1; }
	$(MAKE) VENV=$(VENV)-browser $(VENV)-browser/.installed-browser
	$(VENV)-browser/bin/python -m pytest --timeout=300 tests/interop_onnx tests/browser

test-plan:
	$(MAKE) VENV=$(VENV)-plan $(VENV)-plan/.installed-plan
	$(VENV)-plan/bin/python -m pytest --timeout=1800 --numprocesses=0 tests/plan_compilers

notebook: $(VENV)/.installed-test
	$(RUN) notebooks/execute.py

figures: $(VENV)/.installed
	$(RUN) docs/make_figures.py $(if $(DATA),--data_dir=$(DATA))

figures-slow: $(VENV)/.installed
	$(RUN) docs/make_figures.py --slow $(if $(DATA),--data_dir=$(DATA)) $(if $(FLOWERS),--flowers_dir=$(FLOWERS))

clean:
	rm -rf $(VENV) $(VENV)-newest $(VENV)-interop $(VENV)-browser $(VENV)-plan .cache .mypy_cache .pytest_cache .ruff_cache docs/_build docs/generated

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 to 3.13 with venv found: install one (on Debian: apt-get install python3-venv), or say make PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: requirements.txt $(VENV)/bin/python
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.installed-test: requirements-test.txt $(VENV)/.installed
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-test.txt
	touch $@

$(VENV)/.installed-interop: requirements-interop.txt requirements.txt $(VENV)/bin/python
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-interop.txt
	touch $@

# This replaces Orbax by the version that jax2onnx needs, as `pip install jax2onnx` does for users.
$(VENV)/.installed-browser: requirements-browser.txt $(VENV)/.installed
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-browser.txt
	touch $@

$(VENV)/.installed-plan: requirements-plan.txt $(VENV)/.installed-test
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-plan.txt
	touch $@

$(VENV)/.installed-docs: requirements-docs.txt $(VENV)/.installed
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-docs.txt
	touch $@
