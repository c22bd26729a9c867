"""From unconstrained numbers to positive-definite matrices: the maps a network's outputs go through.

A family is a map `family(topology, inputs) → packed values` with `family.num_inputs(topology)` inputs, for NumPy
arrays and torch tensors. Zero inputs give the identity, so that a network starts at N(0, I). Log-scales are bounded,

    bounded(d) = 5 tanh(d / 5),      slope 1 at 0,      e^±5 = 148, 0.0067 at the ends,

because an unbounded exponential turns one bad step into an overflow.
"""

from __future__ import annotations

from typing import Protocol

from sparseggm.errors import PatternError, ShapeError
from sparseggm.namespace import Array, mask, namespace, scatter, segment_sum
from sparseggm.topology import Topology

LOG_BOUND = 5.0
"""Largest |log L_jj|, and |log of the slack of P|, that a family can give."""


class Family(Protocol):
    """A map from unconstrained inputs to packed values."""

    def num_inputs(self, topology: Topology) -> int:
        """Length of the last axis of `inputs`."""
        ...

    def __call__(self, topology: Topology, inputs: Array) -> Array:
        """Packed values (..., nnz) from inputs (..., num_inputs)."""
        ...


class FactorFamily:
    """L itself, on a factor-free topology: L_jj = exp(bounded(d_j)), L_ij = w_ij.

    Inputs (..., nnz(L)) stand where their values will, on `topology.factor_pattern`. Covers every L of that pattern
    with |log L_jj| < 5.
    """

    def num_inputs(self, topology: Topology) -> int:
        if not topology.is_factor_free:
            raise PatternError(
                f"parametrize.factor: {topology} is not factor-free: L Lᵀ would have entries off its graph. "
                "Give its precision instead, by parametrize.dominant."
            )
        return topology.factor_pattern.nnz

    def __call__(self, topology: Topology, inputs: Array) -> Array:
        _check_inputs("parametrize.factor", inputs, self.num_inputs(topology))
        pattern = topology.factor_pattern
        on_diagonal = mask(inputs, pattern.rows == pattern.cols)
        # exp of all, then a choice: the bound keeps the discarded half finite, and its gradient zero.
        return namespace(inputs).where(on_diagonal, namespace(inputs).exp(bounded(inputs)), inputs)


class DominantFamily:
    """The poster's Gershgorin family: P_ij = w_ij, P_ii = exp(bounded(d_i)) + Σ_j |w_ij|.

    Inputs (..., n + m): d by node, then w by row of `topology.edges`. Covers the strictly diagonally dominant P whose
    slack is within e^±5; λ_min(P) ≥ min_i exp(bounded(d_i)). Values are packed on `topology.precision_pattern`.
    """

    def num_inputs(self, topology: Topology) -> int:
        return topology.n + len(topology.edges)

    def __call__(self, topology: Topology, inputs: Array) -> Array:
        _check_inputs("parametrize.dominant", inputs, self.num_inputs(topology))
        xp, n = namespace(inputs), topology.n
        couplings = inputs[..., n:]
        magnitudes = xp.abs(couplings)
        radii = segment_sum(xp.concatenate([magnitudes, magnitudes], -1), topology.edges.T.ravel(), n)
        diagonal = xp.exp(bounded(inputs[..., :n])) + radii
        parts = [(topology.node_positions, diagonal), (topology.edge_positions, couplings)]
        return scatter(parts, topology.precision_pattern.nnz)


factor = FactorFamily()
dominant = DominantFamily()


def bounded(log_scale: Array) -> Array:
    """5 tanh(d / 5)."""
    return LOG_BOUND * namespace(log_scale).tanh(log_scale / LOG_BOUND)


def _check_inputs(family: str, inputs: Array, size: int) -> None:
    if tuple(inputs.shape[-1:]) != (size,):
        raise ShapeError(f"{family}: inputs must end in {size}, got shape {tuple(inputs.shape)}.")
