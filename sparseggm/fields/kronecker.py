"""Products P₁ ⊗ P₂ of precisions: fields that are separable, as in space and time."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparseggm.errors import NonFiniteError, ShapeError
from sparseggm.fields.parameters import common_batch, gaussian_about, parameters, representable_precision
from sparseggm.graph.graphs import Graph
from sparseggm.graph.pattern import IntArray
from sparseggm.graph.topology import Topology, require_topology
from sparseggm.positivity.namespace import Array, array_namespace, known_to_fail, take


class Kronecker:
    """The graph of P₁ ⊗ P₂ on two topologies, and its values: node i · n₂ + j is node i of the first, j of the second.

    Cov(z_ij, z_kl) = Σ₁,ik Σ₂,jl, and log det = n₂ log det P₁ + n₁ log det P₂.

    Args:
        first, second: topologies. Nodes (i, j) and (k, l) are joined where i = k or joined, and j = l or joined.
    `topology` is a `Graph` with an order of its own.
    """

    def __init__(self, first: Topology, second: Topology) -> None:
        require_topology("Kronecker", first)
        require_topology("Kronecker", second)
        self.first, self.second = first, second
        (i, k, of_first), (j, m, of_second) = _entries(first), _entries(second)
        rows = (i[:, None] * second.n + j).ravel()
        cols = (k[:, None] * second.n + m).ravel()
        places = np.stack(np.broadcast_arrays(of_first[:, None], of_second)).reshape(2, -1)
        lower = rows > cols
        self.topology = Graph(first.n * second.n, np.stack([rows, cols], axis=-1)[lower])
        kept = rows >= cols
        i, j = (self.topology.inverse_order[ends[kept]] for ends in (rows, cols))
        position = self.topology.precision_pattern.positions_between(i, j)
        self._places = places[:, kept][:, np.argsort(position)]

    def __repr__(self) -> str:
        return f"Kronecker({self.first}, {self.second})"

    def precision(self, first: Any, second: Any) -> Array:
        """(..., nnz) of P₁ ⊗ P₂ from P₁ and P₂, each packed on its `precision_pattern`; batch axes broadcast."""
        function = "Kronecker.precision"
        first, second = parameters(function, first=first, second=second)
        for name, values, topology in (("first", first, self.first), ("second", second, self.second)):
            nnz = topology.precision_pattern.nnz
            if tuple(values.shape[-1:]) != (nnz,):
                raise ShapeError(f"{function}: {name} must end in {nnz}, got shape {tuple(values.shape)}.")
            if known_to_fail(array_namespace(values).isfinite(values)):
                raise NonFiniteError(f"{function}: {name} must be finite, got NaN or infinity.")
        common_batch(function, first=first.shape[:-1], second=second.shape[:-1])
        with np.errstate(over="ignore"):  # tested below
            product = take(first, self._places[0]) * take(second, self._places[1])
        return representable_precision(function, product)

    def prior(self, first: Any, second: Any, loc: Any = 0.0) -> Any:
        """The Gaussian with precision P₁ ⊗ P₂; loc a number or (..., n₁ n₂)."""
        return gaussian_about(self.precision(first, second), loc, self.topology, "Kronecker.prior")


def _entries(topology: Topology) -> tuple[IntArray, IntArray, IntArray]:
    """Rows, columns and packed places of all entries of P, both triangles, in the caller's numbering."""
    pattern, order = topology.precision_pattern, topology.order
    rows, cols, place = order[pattern.rows], order[pattern.cols], np.arange(pattern.nnz)
    off = np.flatnonzero(rows != cols)
    return (
        np.concatenate([rows, cols[off]]),
        np.concatenate([cols, rows[off]]),
        np.concatenate([place, off]),
    )
