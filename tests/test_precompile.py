"""`python -m sparseggm.precompile`: after it, no verb has anything left to compile."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sparseggm import precompile

PROBE = """
import numpy as np
from numba.core.dispatcher import Dispatcher
import sparseggm as sg
from benchmarks.rows.dtypes import call_of
from sparseggm import linalg, precompile
from sparseggm.kernels import dissection, separators, symbolic
from sparseggm.kernels.chain import elimination, strips
from sparseggm.kernels.chain import step as chain_step
from sparseggm.kernels.sparse import cholesky, density, divergence, inverse, levels, products, sampling
from sparseggm.kernels.sparse import step as step_kernels
from sparseggm.linalg import density as densities
from sparseggm.linalg import step
from tests.verbs import VERBS

def loaded():
    graphs = dissection, separators, symbolic
    sparse = cholesky, density, divergence, inverse, levels, products, sampling, step_kernels
    modules = *graphs, *sparse, chain_step, elimination, strips
    kernels = [kernel for module in modules for kernel in vars(module).values() if isinstance(kernel, Dispatcher)]
    return {(kernel.__qualname__, signature) for kernel in kernels for signature in kernel.signatures}

precompile.compile_graphs()
precompile.compile_verbs("DTYPE")
before = loaded()
for topology in (sg.Grid(9, 9), sg.Torus(3, 4, 5), sg.Torus(20, 20), sg.Graph(9, sg.Chain(9).edges)):
    assert len(topology.order) == topology.n
for topology in (sg.ExtendedGrid(3, 4), sg.Chain(5), sg.Star(5), sg.Grid(4, 4), sg.Chain(20000)):
    for verb in VERBS.values() if topology.n < 100 else ():
        for batch in (1, 40):
            call_of(verb, topology, batch, np.dtype("DTYPE"))()
    pattern = topology.factor_pattern
    L, x = np.tile((pattern.rows == pattern.cols).astype("DTYPE"), (40, 1)), np.ones((40, topology.n), "DTYPE")
    step.sample_and_kl(pattern, x, L, x), step.sample_and_kl_vjp(pattern, x, L, x, x, x[:, 0])
    reverse = np.arange(topology.n)[::-1]
    for order in (None, reverse):
        for L_, x_ in ((L, x), (L[0], x[0])):
            z = densities.sample(pattern, order, x_, L_, x_)
            densities.sample_vjp(pattern, order, x_, L_, z, x_)
            densities.log_prob_vjp(pattern, order, x_, L_, z, x_[..., 0])
            densities.kl_to_normal_vjp(pattern, order, x_, L_, x_, x_, x_[..., 0])
    linalg.precision_logdet(pattern, L), linalg.precision_logdet(pattern, L[0])
    linalg.precision_solve(pattern, L[0], x[0])
    g = sg.GaussianGraphicalModel(
        np.zeros((3, topology.n), "DTYPE"),
        factor=np.tile((topology.factor_pattern.rows == topology.factor_pattern.cols).astype("DTYPE"), (3, 1)),
        topology=topology,
    )
    if topology.n < 100:
        sg.GreyLevels(g).estimate_log_prob(np.zeros(topology.n, np.uint8), num_samples=2, rng=0)
    g.log_prob(g.sample(2, rng=np.random.default_rng(0))), g.kl_divergence(), g.variance, g.precision
    sg.GaussianGraphicalModel.from_precision(g.loc, precision=g.precision, topology=g.graph)
print(sorted(map(str, loaded() - before)))
"""


@pytest.mark.skipif(os.environ.get("NUMBA_DISABLE_JIT") == "1", reason="nothing is compiled")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_after_it_no_call_needs_another_kernel(dtype: str) -> None:
    pytest.importorskip("torch", reason="the rows of the benchmarks need torch")
    script = PROBE.replace("DTYPE", dtype)
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"


def test_it_runs_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    precompile.main()
    assert "every kernel is compiled" in capsys.readouterr().out
