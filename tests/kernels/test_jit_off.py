"""The kernels as plain Python, where an index out of range raises instead of reading what it should not.

Compiled code checks no bounds. With NUMBA_DISABLE_JIT=1 the same lines run under NumPy's checks. (A negative index
wraps around in both, so that it shows as a wrong value and not here.)
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.verbs import VERBS

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import warnings
import numpy as np
import numba
from sparseggm import BlockChain, Chain, ExtendedGrid, Grid, Pattern
from sparseggm.graph import fronts
from sparseggm.linalg import engines
from sparseggm.linalg.natural import natural_gradient
from tests.verbs import VERBS, arguments

assert numba.config.DISABLE_JIT
OF_FRONTS = ["cholesky", "selected_inverse", "marginal_variances", "cholesky_vjp"]
warnings.simplefilter("ignore", RuntimeWarning)  # lanes that fail overflow by design
cycle = Pattern.from_edges(6, [(i + 1, i) for i in range(5)] + [(5, 0)])
patterns = [Pattern(1, [0, 1], [0]), Chain(4).factor_pattern, BlockChain(2, 2).factor_pattern, cycle,
            ExtendedGrid(3, 3).factor_pattern, Grid(3, 3).precision_pattern]
for dtype, least in [("float32", 128), ("float64", 128), ("float32", 0), ("float64", 0)]:
    engines.LEAST_FRONTS, fronts.LEAST_ENTRIES, fronts.COLUMN_WORK = least, least, float("inf")
    fronts.MOST_SCRATCH = float("inf")
    for pattern in patterns:
        for verb in VERBS.values() if least else [VERBS[name] for name in OF_FRONTS]:
            on = verb.on(pattern)
            for batch in [(), (2,), (17,)]:
                value = verb(on, arguments(verb, on, 1, batch, dtype=dtype))
                assert np.isfinite(value).all()
                print(verb.takes_logarithms, verb, on.key, dtype, batch, float(abs(value).astype("f8").sum()).hex())
for dtype in ("float32", "float64"):
    for pattern in [pattern for pattern in patterns if pattern.is_chain]:
        for batch in [(), (2,), (17,)]:
            factor, vector = arguments(VERBS["solve_t"], pattern, 1, batch, dtype=dtype).values()
            for by_regression in (False, True):
                x, values, _ = natural_gradient(pattern, factor, vector, factor, by_regression)
                sums = [float(abs(value).astype("f8").sum()).hex() for value in (x, values)]
                print(False, "natural_gradient", pattern.key, dtype, batch, by_regression, *sums)
"""


def output(jit: bool) -> list[str]:
    environment = os.environ | {"NUMBA_DISABLE_JIT": "0" if jit else "1"}
    command = [sys.executable, "-c", PROGRAM if not jit else PROGRAM.replace("assert numba.config.DISABLE_JIT", "")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.skipif(np.lib.NumpyVersion(np.__version__) < "2.0.0", reason="NumPy 1 makes a float of uint64 + int64")
def test_plain_python_runs_every_kernel_within_bounds_and_agrees_with_the_compiled_code() -> None:
    """In float64 to the last bit, but for log determinants, whose logarithm is another library's.

    In float32 compiled code is at least as accurate: Numba forms `1.0 / x` in float64, NumPy in float32.
    """
    plain, compiled = (output(jit) for jit in (False, True))
    assert len(plain) == len(compiled) == 2 * 6 * (len(VERBS) + 4) * 3 + 2 * 2 * 3 * 2
    assert comparable(plain) == comparable(compiled)


def comparable(lines: list[str]) -> list[str]:
    return [line for line in lines if " float64 " in line and line.startswith("False")]


SYMBOLIC = """
import sys
import pytest
chosen = "fill or minimum_degree or row_structure or orders_of_a_grid or definition or colours"
quick = "two_sides or of_a_lattice or minimum_degree_of_some"
options = ["-q", "-x", "-p", "no:cacheprovider"]
files = [f"tests/graph/test_{module}.py" for module in ("pattern", "topology", "orders", "colouring")]
failed = pytest.main([*options, *files, "-k", chosen])
sys.exit(failed or pytest.main([*options, "tests/graph/test_dissection.py", "-k", quick]))
"""


def test_symbolic_kernels_pass_their_tests_as_plain_python() -> None:
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1"}
    command = [sys.executable, "-c", SYMBOLIC]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
