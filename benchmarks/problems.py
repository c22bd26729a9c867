"""The numbers that contestants share: well-conditioned factors and precisions, noise, and cotangents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

import sparseggm as sg

Array = npt.NDArray[Any]


def factor_of(topology: sg.Topology, batch: tuple[int, ...], dtype: Any) -> Array:
    """L with a diagonal about 1 and couplings about a fifth."""
    rng = np.random.default_rng(0)
    pattern = topology.factor_pattern
    factor = 0.2 * rng.standard_normal((*batch, pattern.nnz))
    factor[..., pattern.diagonal] = np.exp(0.1 * rng.standard_normal((*batch, pattern.n)))
    return factor.astype(dtype)


def precision_of(topology: sg.Topology, batch: tuple[int, ...]) -> Array:
    """A diagonally dominant P in float64, on the pattern of P, without fill."""
    inputs = 0.5 * np.random.default_rng(0).standard_normal((*batch, sg.parametrize.dominant.num_inputs(topology)))
    return np.asarray(sg.parametrize.dominant(topology, inputs))


@dataclass(frozen=True)
class Step:
    """A training step: loc, L, noise, and the cotangents of the sample z and of KL(q ‖ N(0, I)).

    All contestants get these values, which the rest of a network would compute.
    """

    topology: sg.Topology
    loc: Array
    factor: Array
    noise: Array
    z_bar: Array
    kl_bar: Array

    @staticmethod
    def make(topology: sg.Topology, batch: int, dtype: Any) -> Step:
        """A step of `batch` Gaussians."""
        rng = np.random.default_rng(1)
        loc, noise, z_bar = (rng.standard_normal((batch, topology.n)).astype(dtype) for _ in range(3))
        return Step(topology, loc, factor_of(topology, (batch,), dtype), noise, z_bar, np.ones(batch, dtype))

    @property
    def pivots(self) -> Array:
        """(batch, n) diagonal of a chain's L."""
        return np.ascontiguousarray(self.factor[:, ::2])

    @property
    def couplings(self) -> Array:
        """(batch, n − 1) entries of a chain's L below its diagonal."""
        return np.ascontiguousarray(self.factor[:, 1::2])


def interleave(pivots: Array, couplings: Array) -> Array:
    """A chain's packed values from its diagonal (batch, n) and the entries below it (batch, n − 1)."""
    packed = np.empty((len(pivots), pivots.shape[1] + couplings.shape[1]), pivots.dtype)
    packed[:, ::2], packed[:, 1::2] = pivots, couplings
    return packed
