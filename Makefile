# Two commands set everything up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
# Python compiles what is imported: 58 MB of source of the 203 that are installed. It keeps that: every process that starts without takes
# 8 s to import torch in place of 3.
PIP_FLAGS := --quiet --disable-pip-version-check --no-compile
unexport PYTHONDONTWRITEBYTECODE
# the oldest onnxruntime that a portable variant promises to open with
FLOOR := .cache/onnxruntime-floor

.PHONY: demo test lint parity bench platforms lean clean

demo: .venv-demo/.done  ## classify, embed and search real pictures with the embedded model; no torch
	@sh examples/demo.sh .venv-demo/bin

test: .venv/.done lint lean  ## what CI runs
	OMP_NUM_THREADS=1 EDGECLIP_FLOOR=$(FLOOR) $(BIN)/python -m pytest -n logical --dist loadgroup

lint: .venv/.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

parity: .venv/.done  ## full depth against the original libraries; slow
	EDGECLIP_PARITY_REPORT=benchmarks/results $(BIN)/python -m pytest -m parity

bench: .venv/.done  ## side by side with other tools; wants an idle machine
	$(BIN)/python -m pip install $(PIP_FLAGS) --target .cache/peers --no-deps --upgrade -r benchmarks/requirements.txt
	PYTHONPATH=.cache/peers $(BIN)/python -m benchmarks.end_to_end
	$(BIN)/python -m benchmarks.preprocessing
	PYTHONPATH=.cache/peers $(BIN)/python -m benchmarks.compression --models b32 b16
	PYTHONPATH=.cache/peers $(BIN)/python -m benchmarks.codecs
	$(BIN)/python -m benchmarks.baked_memory
	PYTHONPATH=.cache/peers $(BIN)/python -m benchmarks.loadgen
	$(BIN)/python -m benchmarks.tensorrt_builds

lean: .venv/.done  ## the wheel alone, without torch, classifies a picture
	@sh tests/lean.sh $(PYTHON)

platforms: .venv/.done  ## wheels for the runtime exist on the boards' Pythons
	@sh tests/platforms.sh $(BIN)/python

.venv/.done: pyproject.toml constraints.txt requirements-reference.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install $(PIP_FLAGS) --upgrade pip
	$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt torch
	$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt --no-deps -r requirements-reference.txt
	$(BIN)/python -m pip install $(PIP_FLAGS) --target $(FLOOR) --no-deps --upgrade onnxruntime==1.23.2
	touch $@

.venv-demo/.done: pyproject.toml constraints.txt
	test -x .venv-demo/bin/python || $(PYTHON) -m venv .venv-demo
	.venv-demo/bin/python -m pip install $(PIP_FLAGS) -c constraints.txt -e '.[cpu,index]'
	touch $@

clean:
	rm -rf .venv .venv-demo .venv-lean .cache dist build
