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
import sparseggm as sg
from sparseggm import geometry, linalg, precompile
from sparseggm.linalg import density as densities
from sparseggm.linalg import step
from tests.signatures import compiled
from tests.verbs import VERBS, arguments

def read_only(array):
    view = array.view()
    view.flags.writeable = False
    return view

def strided(array):
    return np.repeat(array, 2, -1)[..., ::2]

def unaligned(array):
    whole = np.empty(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
    whole[...] = array
    return whole

def as_it_is(array):
    return array

def verbs_on(topology, dtype):
    for verb in VERBS.values():
        pattern = verb.on(topology.factor_pattern)
        for batch in ((), (1,), (40,), (0,)):
            given = arguments(verb, pattern, 1, batch, dtype=dtype)
            for layout in (as_it_is, read_only, strided, unaligned):
                verb(pattern, {name: layout(value) if value.ndim else value for name, value in given.items()})
        if not verb.is_one_batch:
            for shapes in (((40,), ()), ((), (40,)), ((3, 1), (40,)), ((40,), (3, 1))):
                verb(pattern, arguments(verb, pattern, 1, *shapes, dtype=dtype))

precompile.compile_graphs()
for dtype in ("float32", "float64"):
    precompile.compile_verbs(dtype)
before = compiled()
for topology in (sg.Grid(9, 9), sg.Torus(3, 4, 5), sg.Torus(20, 20), sg.Graph(9, sg.Chain(9).edges)):
    assert len(topology.order) == topology.n
for topology in (sg.ExtendedGrid(3, 4), sg.Chain(5), sg.Star(5), sg.Grid(4, 4), sg.Chain(20000)):
    for dtype in ("float32", "float64"):
        if topology.n < 100:
            verbs_on(topology, dtype)
            sg.spectral.largest_eigenvalue(topology.precision_pattern, np.zeros(topology.precision_pattern.nnz, dtype))
        pattern = topology.factor_pattern
        L, x = np.tile((pattern.rows == pattern.cols).astype(dtype), (40, 1)), np.ones((40, topology.n), dtype)
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
        g = sg.GaussianGraphicalModel(np.zeros((3, topology.n), dtype), factor=L[:3], topology=topology)
        if topology.n < 100:
            sg.GreyLevels(g).estimate_log_prob(np.zeros(topology.n, np.uint8), num_samples=2, rng=0)
            g.marginal([1, 0]), g.condition([1], np.zeros(1, dtype))
        if topology.is_factor_free:
            geometry.fisher_solve(g, x[:3], L[:3]), geometry.fisher_solve(g, x[0], L[:3], "regression")
            geometry.fisher_solve(g, np.ones((40, 1, topology.n), dtype), L[0])
        g.log_prob(g.sample(2, rng=np.random.default_rng(0))), g.kl_divergence(), g.variance, g.precision
        sg.GaussianGraphicalModel.from_precision(g.loc, precision=g.precision, topology=g.graph)
print(sorted(compiled() - before))
"""


@pytest.mark.skipif(os.environ.get("NUMBA_DISABLE_JIT") == "1", reason="nothing is compiled")
def test_after_it_no_call_needs_another_kernel() -> None:
    """Of any verb, in either dtype, on any layout and batch."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"


def test_it_runs_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    precompile.main()
    assert "every kernel is compiled" in capsys.readouterr().out


POOL = """
import multiprocessing, time
from concurrent.futures import ProcessPoolExecutor
from sparseggm.precompile import end_with_parent

if __name__ == "__main__":
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), end_with_parent) as pool:
        pool.submit(int).result()
        print("begun", flush=True)
        pool.submit(time.sleep, 600).result()
"""


def test_its_processes_end_when_it_is_killed(tmp_path: Path) -> None:
    """A process that lives holds the output open."""
    script = tmp_path / "pool.py"
    script.write_text(POOL)
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.kill()
        assert process.communicate(timeout=60)[0] == ""
