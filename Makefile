# make generate PROMPT="a red cube left of a blue sphere"   set up once, then draw a picture
# make test                                                  set up once, then run the tests
# make lessons | notebook                                    run every lesson, or open them in the browser
# make lint | parity | weights | tpu-check | clean

PYTHON ?= python3
VENV   ?= .venv
PROMPT ?= a red cube left of a blue sphere
BIN    := $(VENV)/bin
export PROMPT

.PHONY: generate test lint parity lessons notebook weights tpu-check clean

# Each stamp stands for one finished installation, so that a second run asks no network. A change of
# pyproject.toml makes them again.
$(VENV)/.package: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "sdjax needs Python 3.11 or newer: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.tests: $(VENV)/.package
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[tests]'
	@touch $@

$(VENV)/.parity: $(VENV)/.tests
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[tests,parity]'
	@touch $@

# The prompt goes through the environment, so that quotes and dollar signs in it stay what they are.
generate: $(VENV)/.package
	@$(BIN)/sdjax txt2img -- "$$PROMPT"

# A worker a core, and each file's tests in one of them, so that what they share is made once.
test: $(VENV)/.tests
	$(BIN)/python -m pytest -n auto --dist loadfile

lint: $(VENV)/.tests
	$(BIN)/ruff check .

parity: $(VENV)/.parity
	$(BIN)/python -m pytest tests/parity --durations=12

$(VENV)/.lessons: $(VENV)/.package
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[lessons]'
	@touch $@

$(VENV)/.notebook: $(VENV)/.lessons
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[notebook]'
	@touch $@

lessons: $(VENV)/.lessons
	$(BIN)/python lessons/build.py --check

notebook: $(VENV)/.notebook
	$(BIN)/jupyter notebook --notebook-dir lessons

$(VENV)/.plots: $(VENV)/.package
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[plots]'
	@touch $@

# The small model from nothing, stage by stage; each goes on where it was stopped.
weights: $(VENV)/.plots
	$(BIN)/sdjax train tokenizer
	$(BIN)/sdjax train vae
	$(BIN)/sdjax train clip
	$(BIN)/sdjax train unet
	$(BIN)/sdjax train judge

# In an environment of its own: where libtpu is at hand, the flags that a CPU wants cannot be set.
$(VENV)-tpu/.done: pyproject.toml
	$(PYTHON) -m venv $(VENV)-tpu
	$(VENV)-tpu/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[tpu]'
	@touch $@

# Compiles for TPUs that are not there; MODELS="sd1 sd2-768" takes an hour on 2 cores.
MODELS ?= tiny
CHIPS  ?= 1 4 8
UNET   ?= --unet
tpu-check: $(VENV)-tpu/.done
	$(VENV)-tpu/bin/python tests/tpu_check.py $(MODELS) --chips $(CHIPS) $(UNET)

clean:
	rm -rf .venv* build dist *.egg-info
