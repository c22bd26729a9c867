"""Correlations never leave [−1, 1], and are one of a node with itself: NumPy here, torch in tests/torch."""

from __future__ import annotations

import numpy as np
import pytest

from sparseggm import (
    BlockChain,
    Chain,
    Cycle,
    ExtendedGrid,
    GaussianGraphicalModel,
    Grid,
    NonFiniteError,
    Star,
    Topology,
)
from tests.numerics import Array


def tight(topology: Topology, dtype: str, seed: int, batch: tuple[int, ...] = ()) -> tuple[Array, Array]:
    """(loc, factor) whose neighbours hardly differ: L_jj is large, and an entry below it as large in magnitude."""
    rng, pattern = np.random.default_rng(seed), topology.factor_pattern
    columns = rng.uniform(0.5, 2.0, (*batch, topology.n)) * 10.0 ** rng.uniform(0, 4, (*batch, topology.n))
    signs = rng.choice([-1.0, 1.0], (*batch, pattern.nnz)) * rng.uniform(0.5, 1.5, (*batch, pattern.nnz))
    factor = columns[..., pattern.cols] * np.where(pattern.rows == pattern.cols, 1.0, signs)
    return np.zeros(topology.n, dtype), factor.astype(dtype)


TOPOLOGIES = (Chain(6), BlockChain(3, 2), Star(6), Cycle(6), Grid(2, 3), ExtendedGrid(2, 3))
PAIRS = np.argwhere(np.ones((6, 6)))
SAME = PAIRS[:, 0] == PAIRS[:, 1]


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_correlation_is_beyond_one(topology: Topology, dtype: str) -> None:
    loc, factor = tight(topology, dtype, 0, (50,))
    g = GaussianGraphicalModel(loc, factor=factor, topology=topology)
    correlation = g.correlation_on(PAIRS)
    assert correlation.dtype == dtype
    assert abs(correlation).max() <= 1.0
    assert (correlation[:, SAME] == 1.0).all()
    assert g.moved_to(np.zeros((3, 50, 6))).correlation_on(PAIRS).shape == (3, 50, 36)


def steep(dtype: str, scale: float) -> tuple[Array, Array]:
    """(loc, factor) of two Gaussians on a chain of three nodes, of which the second has the variances 1 / scale²."""
    pattern = Chain(3).factor_pattern
    factor = np.where(pattern.rows == pattern.cols, 1.0, 0.5)
    return np.zeros(3, dtype), np.stack([factor, scale * factor]).astype(dtype)


STEEP = [("float32", 1e20), ("float32", 1e25), ("float64", 1e155), ("float64", 1e170)]


@pytest.mark.parametrize(("dtype", "scale"), STEEP)
def test_variances_that_underflow_are_refused_by_node(dtype: str, scale: float) -> None:
    loc, factor = steep(dtype, scale)
    with pytest.raises(NonFiniteError, match=rf"variance of node 0, batch element \(1,\) underflows {dtype}"):
        GaussianGraphicalModel(loc, factor=factor, topology=Chain(3)).correlation_on([(0, 1)])
