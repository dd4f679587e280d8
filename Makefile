# The words: demo, test, oldest, newest, soak, check, docs, bench, dist. Each makes the project's own virtual environment
# if it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What `oldest` and `newest` run; `make newest CORE="tests/partial tests/optim tests/probe tests/test_gates.py"` runs all of it.
CORE := tests/partial tests/optim tests/probe tests/test_gates.py -k "not compiled and not inductor" \
	$(addprefix --ignore tests/,partial/optimizer_carry partial/test_compiled.py partial/test_rollback.py \
	partial/test_mapped.py probe/test_healthy.py probe/test_gallery.py probe/test_trial.py)
# Those that need your files are left out.
BENCHMARKS := $(filter-out $(addprefix benchmarks/,tagger_% draw_% choose_% word2vec_missing.py),$(wildcard benchmarks/*.py))
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test oldest newest soak check docs bench dist format clean

demo: $(VENV)/demo.done
	$(BIN)/frostline demo

# Two processes with a thread each: with more threads they wait for each other.
test: $(VENV)/dev.done
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile

# The core on the oldest torch, numpy and safetensors that pyproject.toml allows, and on the newest that there are.
oldest newest: %: .venv-%/done
	CI= OMP_NUM_THREADS=1 .venv-$*/bin/python -m pytest -q -n 2 --dist loadfile $(CORE)

soak: $(VENV)/dev.done
	FROSTLINE_SOAK=30000 FROSTLINE_SEED=$$(date +%s) $(BIN)/python -m pytest -q tests/properties \
		tests/changes/test_every_dtype.py tests/ecosystem/test_trainers.py tests/ecosystem/test_split.py \
		tests/word2vec/test_resume.py tests/cli/test_tagger_interrupted.py tests/probe/test_placements.py \
		tests/tokens/test_add_tokens.py tests/partial/own_gradients/test_drawn_uses.py tests/probe/script

check: $(VENV)/dev.done
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(MAKE) docs

docs: $(VENV)/dev.done
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --clean

bench: $(VENV)/dev.done
	for file in $(BENCHMARKS); do $(BIN)/python $$file || exit 1; done

# The sdist, a wheel for every system, and on Linux one with compiled kernels, for the C library of this machine or later.
dist: $(VENV)/dev.done
	rm -rf dist
	$(BIN)/python -m build
	FROSTLINE_PREBUILT=1 $(BIN)/python -m build --wheel --outdir dist/local
	PATH=$(abspath $(BIN)):$$PATH $(BIN)/auditwheel repair --wheel-dir dist dist/local/*.whl
	rm -r dist/local

format: $(VENV)/dev.done
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) .venv-oldest .venv-newest build dist site demo-run

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.done: $(BIN)/python pyproject.toml constraints.txt
	$(INSTALL) -e '.[demo]'
	touch $@

$(VENV)/dev.done: $(BIN)/python pyproject.toml constraints.txt
	$(INSTALL) -e '.[dev]'
	touch $@ $(VENV)/demo.done

# pip would bring three gigabytes of CUDA with most versions of torch.
.venv-%/done: pyproject.toml constraints-%.txt constraints-core.txt .ci/without_cuda.py
	$(PYTHON) -m venv --clear .venv-$*
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r constraints-$*.txt -r constraints-core.txt
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	$(PYTHON) .ci/without_cuda.py .venv-$*
	touch $@
