"""One chain of a million nodes and of ten million, float64: against the memory limit, and LAPACK where it can."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

import sparseggm as sg
from benchmarks.contest import Contestant, Peer, Ratio, Result, Setting, race
from benchmarks.peers import lapack
from benchmarks.problems import Step, precision_of
from benchmarks.rows.steps import bytes_of, ours
from benchmarks.timing import interleaved
from sparseggm import geometry, linalg


def step(setting: Setting, n: int) -> Result:
    """A sample, log det and tr Σ (both in the KL), and their gradients, given L."""
    problem = Step.make(sg.Chain(setting.size(n)), 1, np.float64)
    work = f"sample + log det + tr Σ + backward, {problem.topology}, one matrix, float64"
    return race(setting, work, ours(problem), bytes_moved=bytes_of(problem), limit_goal=0.4)


def solve(setting: Setting, n: int) -> Result:
    """log det P and x = P⁻¹ b given P, for which LAPACK has tridiagonal routines."""
    topology = sg.Chain(setting.size(n))
    pattern, precision = topology.precision_pattern, precision_of(topology, ())
    diagonal, couplings = topology.unpack(precision)
    rhs = np.random.default_rng(1).standard_normal(topology.n)

    def call() -> Any:
        x, logdet = linalg.precision_solve(pattern, precision, rhs)
        return logdet, x

    peers = {"LAPACK pttrf + pttrs": Peer(lambda: lapack.tridiagonal_solve(diagonal, couplings, rhs), 3.0)}
    work = f"log det P + P⁻¹ b, {topology} given P, one matrix, float64"
    # reads diagonal, couplings and b, writes x
    return race(setting, work, Contestant(call), peers, bytes_moved=4 * rhs.nbytes)


def natural_gradient(setting: Setting, n: int) -> Result:
    """F⁻¹ u by loc and L, beside a solve with L."""
    topology, rng = sg.Chain(setting.size(n)), np.random.default_rng(2)
    pattern, precision = topology.precision_pattern, precision_of(topology, ())
    factor = linalg.cholesky(pattern, precision)
    vector, values = rng.standard_normal(topology.n), rng.standard_normal(pattern.nnz)
    g = sg.GaussianGraphicalModel(np.zeros(topology.n), factor=factor, topology=topology)
    calls = {
        "sparseggm": lambda: geometry.fisher_solve(g, vector, values),
        "solve": lambda: linalg.solve(pattern, factor, vector),
    }
    seconds = interleaved(calls, setting.rounds, setting.seconds)
    ratio = Ratio("of the time of a solve", seconds["sparseggm"] / seconds["solve"], 3.0, "≤")
    return Result(f"geometry.fisher_solve, {topology}, one Gaussian, float64", seconds, [ratio])


ROWS = {
    f"{name}-1e{exponent}": partial(row, n=10**exponent)
    for exponent in (6, 7)
    for name, row in (("long-chain-step", step), ("long-chain-solve", solve), ("long-chain-fisher", natural_gradient))
}
