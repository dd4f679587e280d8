# The words: demo, test, soak, check, docs, bench. Each makes the project's own virtual environment if it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Those that need your files are left out.
BENCHMARKS := $(filter-out $(addprefix benchmarks/,tagger_% draw_% choose_% word2vec_missing.py),$(wildcard benchmarks/*.py))
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test soak check docs bench format clean

demo: $(VENV)/demo.done
	$(BIN)/frostline demo

test: $(VENV)/dev.done
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

soak: $(VENV)/dev.done
	FROSTLINE_SOAK=30000 FROSTLINE_SEED=$$(date +%s) $(BIN)/python -m pytest -q tests/properties \
		tests/changes/test_every_dtype.py tests/ecosystem/test_trainers.py tests/ecosystem/test_split.py \
		tests/word2vec/test_resume.py tests/cli/test_tagger_interrupted.py

check: $(VENV)/dev.done
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(MAKE) docs

docs: $(VENV)/dev.done
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --clean

bench: $(VENV)/dev.done
	for file in $(BENCHMARKS); do $(BIN)/python $$file || exit 1; done

format: $(VENV)/dev.done
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) demo-run site

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.done: $(BIN)/python pyproject.toml constraints.txt
	$(INSTALL) -e '.[demo]'
	touch $@

$(VENV)/dev.done: $(BIN)/python pyproject.toml constraints.txt
	$(INSTALL) -e '.[dev]'
	touch $@ $(VENV)/demo.done
