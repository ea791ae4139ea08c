PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
NATIVE := $(wildcard $(addprefix src/ditquant/kernels/cpu/native/,*.cpp *.h avx2/*))

.PHONY: demo test check bench bench-gpu clean

demo: $(READY)
	$(BIN)/python -m ditquant demo -o out/demo --overwrite

test: $(READY)
	$(BIN)/python -m pytest

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python benchmarks/twin_log.py
	$(BIN)/python benchmarks/rotation.py
	$(BIN)/python benchmarks/speed.py --load
	$(BIN)/python benchmarks/calibration.py

# in the environment of PYTHON, which has a torch with CUDA and Triton; writes benchmarks/results/gpu.json
bench-gpu:
	PYTHONPATH=src $(PYTHON) benchmarks/gpu.py

$(READY): pyproject.toml constraints.txt setup.py $(NATIVE)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[test,dev]'
	touch $@

clean:
	rm -rf $(VENV) out
