# Everything runs in .venv with the pinned versions of constraints.txt. PYTHON chooses the interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: quickstart docs docs-serve test test-recovery test-slow test-docs test-packages test-gpu lint benchmark benchmark-gpu benchmark-table figures figures-quickstart verdicts clean

quickstart: $(READY)
	$(BIN)/plait quickstart

# files side by side; WORKERS=0 runs them one after another
WORKERS ?= 2

test: $(READY)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

test-recovery: $(READY)
	$(BIN)/python -m pytest -m recovery

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

# the tutorials and notebooks, as a reader runs them: an hour
test-docs: $(READY)
	$(BIN)/python -m pytest -m docs tests/project/test_docs_blocks.py tests/project/test_notebooks.py

# each extra installed in an environment of its own, and the oldest torch that pyproject.toml allows or TORCH=2.12.0;
# downloads some gigabytes
test-packages: $(READY)
	TORCH=$(TORCH) $(BIN)/python -m pytest -m packages -rs tests/project/test_extras.py

test-gpu: $(READY)
	$(BIN)/python -m pytest tests/gpu tests/model/test_kernels.py tests/model/test_model.py tests/generate/test_decoding.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# the documentation site, into site/; docs-serve shows it while pages are written
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

docs-serve: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

# one thread each, nothing else running; a run that was stopped goes on where it was
benchmark: export OMP_NUM_THREADS = 1
benchmark: $(READY)
	set -e; for part in step recipes patterns attention loss decoding breakdown data scale; do \
	  $(BIN)/python benchmarks/$$part.py --device cpu --turns 5; \
	done
	$(BIN)/python benchmarks/table.py
	$(BIN)/python benchmarks/figures.py

benchmark-gpu: $(READY)
	PYTHON=$(BIN)/python benchmarks/run_gpu.sh
	$(BIN)/python benchmarks/table.py

benchmark-table: $(READY)
	$(BIN)/python benchmarks/table.py

# the figures of README.md and docs, from their results files
figures: $(READY)
	$(BIN)/python benchmarks/figures.py
	$(BIN)/python benchmarks/table.py

# the verdicts on the paper's claims, from the kept logs of the studies
verdicts: $(READY)
	$(BIN)/python studies/verdicts/conclude.py docs

# keep the figures of the quickstarts that were run in this checkout
figures-quickstart: $(READY)
	$(BIN)/python benchmarks/figures.py --take runs/quickstart mixed
	for pair in quickstart-transfusion:transfusion quickstart-chameleon-speech:chameleon_speech all-concepts:all_concepts; do \
	  if [ -f runs/$${pair%:*}/summary.json ]; then \
	    $(BIN)/python benchmarks/figures.py --take runs/$${pair%:*} $${pair#*:}; fi; done

# torch first and alone: its CPU build must be there before anything else asks for torch
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==$(shell sed -n 's/^torch==//p' constraints.txt)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt setuptools wheel
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation -c constraints.txt -e '.[media,scenes,worlds,robot,driving,judges,trackers,serve,completion,docs,dev]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
