# Every target makes the virtual environment it needs. Versions: constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
OUT ?= runs/demo
INSTALL := $(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt
MAKEFLAGS += --jobs=2
# Whatever the environment says, Python keeps its bytecode: compiling torch's sources takes ten seconds a process, and the
# tests start dozens.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test kernels lint types verify bench clean

demo: .venv/train  ## train VAEs with graphs of the latent variables and of the pixels; print the tables, save the figures
	$(BIN)/sparseggm experiment table1 --resume --jobs 2 --samples 100 --out $(OUT)/table1
	$(BIN)/sparseggm figures $(OUT)/table1
	$(BIN)/sparseggm experiment pixels --resume --jobs 2 --samples 20 --out $(OUT)/pixels
	$(BIN)/sparseggm figures $(OUT)/pixels

test: kernels lint types  ## lint, types, all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

kernels: .venv/core  ## compile every kernel once, while the rest is installed: tests would compile what each of them meets
	$(BIN)/python -m sparseggm.precompile

lint: .venv/dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: .venv/dev
	$(BIN)/mypy

verify: .venv/dev  ## property tests on many random cases, with worst error / bound; every cell of docs/torch-support.md
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m property --hypothesis-profile=deep
	$(BIN)/python -m tests.torch.support

bench: .venv/peers  ## time ours against every peer that installs, and against the memory limit
	$(BIN)/python -m benchmarks

.venv/core: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(INSTALL) --editable .
	touch $@

.venv/train .venv/dev .venv/bench: .venv/%: .venv/core
	$(INSTALL) --editable '.[$*]'
	touch $@

# Without their dependencies, so that none brings another torch or NumPy; one that does not install is reported as missing.
.venv/peers: .venv/bench
	-$(INSTALL) --no-deps --only-binary :all: sparsax pymetis
	-$(INSTALL) --no-deps torchsparsegradutils
	-$(INSTALL) --no-deps --ignore-requires-python gabp-sparse-inv
	touch $@

clean:
	rm -rf .venv
