"""The rows of the table: a piece of work, ours, and what a user would otherwise write."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.distributions import Independent, Normal, kl_divergence

import sparseggm as sg
from benchmarks.timing import Contestants
from sparseggm import linalg
from sparseggm.torch import GaussianGraphicalModel, sample_and_kl


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    work: str
    ours: Callable[[], object]
    peers: Contestants = field(default_factory=dict)
    bytes_moved: int = 0
    """Bytes that any implementation must read or write; 0 where arithmetic bounds the work."""


def factor_of(topology: sg.Topology, batch: tuple[int, ...], dtype: type) -> np.ndarray:
    """A well-conditioned factor."""
    rng = np.random.default_rng(0)
    pattern = topology.factor_pattern
    factor = 0.1 * rng.standard_normal((*batch, pattern.nnz))
    factor[..., pattern.diagonal] = 1.0
    return factor.astype(dtype)


def rows(scale: int) -> Iterator[Row]:
    """All rows, each made when its turn comes; `scale` 1 is the real setting, larger ones divide the sizes."""
    side, large, batch = max(28 // scale, 2), max(4096 // scale, 2), max(128 // scale, 2)
    n = side * side
    small_chain, chain, grid = sg.Chain(16), sg.Chain(n), sg.ExtendedGrid(side, side)
    yield solve_row(small_chain, batch, np.float32, dense=True)
    yield solve_row(chain, batch, np.float32, dense=True)
    for topology in (chain, grid):
        for dtype in (np.float32, np.float64):
            yield solve_row(topology, large, dtype, dense=False)
    yield solve_row(sg.Chain(10**6 // scale), 1, np.float64, dense=False)
    yield variances_row(small_chain, batch)
    yield variances_row(grid, max(batch // 8, 1))
    yield precision_row(sg.Grid(side, side), max(batch // 8, 1))
    for topology in (small_chain, sg.ExtendedGrid(4, 4)):
        yield training_row(topology, batch)


def solve_row(topology: sg.Topology, batch: int, dtype: type, dense: bool) -> Row:
    """Lᵀ x = ε given L: a draw."""
    pattern = topology.factor_pattern
    factor = factor_of(topology, (batch,), dtype)
    noise = np.random.default_rng(1).standard_normal((batch, pattern.n)).astype(dtype)
    peers: Contestants = {}
    if dense:
        upper = torch.from_numpy(pattern.to_dense(factor)).mT.contiguous()
        column = torch.from_numpy(noise)[..., None]
        peers["torch.linalg.solve_triangular"] = lambda: torch.linalg.solve_triangular(upper, column, upper=True)
    return Row(
        f"solve_t, {topology}, batch {batch}, {np.dtype(dtype)}",
        lambda: linalg.solve_t(pattern, factor, noise),
        peers,
        bytes_moved=factor.nbytes + 2 * noise.nbytes,
    )


def variances_row(topology: sg.Topology, batch: int) -> Row:
    """diag Σ given L, exact."""
    pattern = topology.factor_pattern
    factor = factor_of(topology, (batch,), np.float64)
    lower = torch.from_numpy(pattern.to_dense(factor))
    return Row(
        f"marginal_variances, {topology}, batch {batch}, float64",
        lambda: linalg.marginal_variances(pattern, factor),
        {"torch.cholesky_inverse": lambda: torch.cholesky_inverse(lower).diagonal(dim1=-2, dim2=-1)},
    )


def precision_row(topology: sg.Topology, batch: int) -> Row:
    """log det P and Σ on the graph given P."""
    pattern = topology.precision_pattern
    inputs = np.random.default_rng(0).standard_normal((batch, sg.parametrize.dominant.num_inputs(topology)))
    precision = sg.parametrize.dominant(topology, inputs)
    dense = torch.from_numpy(pattern.to_dense(precision, symmetric=True))

    def ours() -> object:
        factor = linalg.cholesky(pattern, precision)
        return linalg.logdet(pattern.filled(), factor), linalg.selected_inverse(pattern.filled(), factor)

    def peer() -> object:
        lower = torch.linalg.cholesky(dense)
        return lower.diagonal(dim1=-2, dim2=-1).log().sum(-1), torch.cholesky_inverse(lower)

    return Row(f"log det + Σ on the graph given P, {topology}, batch {batch}, float64", ours, {"torch, dense": peer})


def training_row(topology: sg.Topology, batch: int) -> Row:
    """A draw, KL to N(0, I), and the gradients of both."""
    noise = torch.randn(batch, topology.n)
    loc = torch.randn(batch, topology.n, requires_grad=True)
    factor = torch.from_numpy(factor_of(topology, (batch,), np.float32)).requires_grad_()
    scale = torch.ones(batch, topology.n, requires_grad=True)
    standard = Independent(Normal(torch.zeros(topology.n), 1.0), 1)

    def ours() -> None:
        q = GaussianGraphicalModel(loc, factor=factor, topology=topology, validate_args=False)
        z, kl = sample_and_kl(q, noise=noise)
        (z.sum() + kl.sum()).backward()

    def independent() -> None:
        q = Independent(Normal(loc, scale, validate_args=False), 1, validate_args=False)
        (q.rsample().sum() + kl_divergence(q, standard).sum()).backward()

    return Row(
        f"sample_and_kl + backward, {topology}, batch {batch}, float32",
        ours,
        {"torch Normal (no structure)": independent},
    )
