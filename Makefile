# Every target makes the virtual environment it needs. Versions: constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
OUT ?= runs/demo

.PHONY: demo test lint types verify bench clean

demo: .venv/train  ## train three VAEs on MNIST; print the table, save the figures
	$(BIN)/sparseggm table1 --resume --samples 100 --out $(OUT)
	$(BIN)/sparseggm figures $(OUT)

test: lint types  ## lint, types, all tests; kernels first, as the tests would each compile what they meet
	$(BIN)/python -m sparseggm.precompile
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

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

.venv/train .venv/dev .venv/bench: .venv/%: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$*]'
	touch $@

# Without their dependencies, so that none brings another torch or NumPy; one that does not install is reported as missing.
.venv/peers: .venv/bench
	-$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps --only-binary :all: sparsax
	-$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps torchsparsegradutils
	-$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps --ignore-requires-python gabp-sparse-inv
	touch $@

clean:
	rm -rf .venv
