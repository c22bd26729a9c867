"""Conditional and marginal Gaussians: the graph of the remaining nodes, and its values.

The functions take a topology in the caller's numbering, and serve the methods of `GaussianGraphicalModel`. With nodes
split into A (kept) and B:

    z_A | z_B = v  has precision P_AA and mean loc_A − P_AA⁻¹ P_AB (v − loc_B)
    z_A            has precision P_AA − P_AB P_BB⁻¹ P_BA, the trailing block of the factor when B is eliminated first
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sparseggm.errors import NonPositiveError, NotPositiveDefiniteError, PatternError, ShapeError
from sparseggm.graph.graphs import Graph
from sparseggm.graph.pattern import FloatArray, IntArray, Pattern
from sparseggm.graph.topology import Topology
from sparseggm.kernels import symbolic
from sparseggm.linalg import checks

MARGINAL_LIMIT = 10_000_000
"""A marginal whose factor has more entries needs `force=True`: 80 MB a batch element in float64."""


def distinct_nodes(function: str, topology: Topology, nodes: npt.ArrayLike) -> IntArray:
    """(k,) distinct node numbers, from a list of them or from a mask (n,) of booleans."""
    chosen = checks.plain(function, "nodes", nodes) if isinstance(nodes, np.ndarray) else np.asarray(nodes)
    if chosen.dtype == bool:
        if chosen.shape != (topology.n,):
            raise PatternError(f"{function}: a mask of nodes must be ({topology.n},), got shape {chosen.shape}.")
        return np.flatnonzero(chosen)
    if not chosen.size:
        return np.empty(0, np.int64)
    if chosen.ndim != 1 or not np.issubdtype(chosen.dtype, np.integer):
        raise PatternError(
            f"{function}: nodes must be a list of integers or a mask, got {chosen.dtype} of shape {chosen.shape}."
        )
    if chosen.min() < 0 or chosen.max() >= topology.n:
        raise PatternError(f"{function}: nodes must be in 0 … {topology.n - 1}, got {chosen.min()} … {chosen.max()}.")
    if len(np.unique(chosen)) < len(chosen):
        raise PatternError(f"{function}: each node must be given once, got {len(chosen)} with repeats.")
    return chosen.astype(np.int64)


def at_nodes(topology: Topology, nodes: IntArray, values: FloatArray) -> FloatArray:
    """(..., n): the values (..., k) at their nodes, zero elsewhere."""
    out = np.zeros((*values.shape[:-1], topology.n), values.dtype)
    out[..., nodes] = values
    return out


def observations(
    function: str, nodes: IntArray, values: FloatArray, variance: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Values and weights 1/variance, each (..., k) for the k nodes; a missing value is zero, with weight zero.

    Raises:
        ShapeError: values and variances do not broadcast to (..., k).
        NonPositiveError: a variance is not positive, or its inverse is beyond the dtype.
    """
    try:
        shape = np.broadcast_shapes(values.shape, variance.shape, nodes.shape)
    except ValueError:
        shape = ()
    if shape[-1:] != nodes.shape:
        raise ShapeError(
            f"{function}: values and variance must broadcast to (..., {len(nodes)}), one for each node, got shapes "
            f"{values.shape} and {variance.shape}."
        )
    with np.errstate(over="ignore", divide="ignore"):
        weight = np.asarray(1.0 / variance)
    bad = ~((variance > 0.0) & np.isfinite(weight))
    if bad.any():
        raise NonPositiveError(
            f"{function}: variance must be positive, and 1/variance in the range of {variance.dtype}, got "
            f"{variance[bad][0]}. Use condition for exact values."
        )
    # P is factorised once for each weight, however many values have it.
    values, weight = np.broadcast_to(values, shape), np.broadcast_to(weight, (*weight.shape[:-1], len(nodes)))
    return np.where(np.isnan(values) & (weight == 0.0), np.zeros_like(values), values), weight


def induced(topology: Topology, kept: IntArray) -> tuple[Graph, IntArray]:
    """The graph on the kept nodes (ascending), and `gather` with P_AA = precision[..., gather], both packed."""
    number = np.full(topology.n, -1)
    number[kept] = np.arange(len(kept))
    ends = number[topology.edges]
    inside = np.flatnonzero((ends >= 0).all(axis=1))
    graph = Graph(len(kept), ends[inside])  # renumbering ascending nodes keeps i > j and the canonical order
    return graph, graph.arranged(topology.node_positions[kept], topology.edge_positions[inside])


def with_more_on_diagonal(topology: Topology, precision: FloatArray, more: FloatArray) -> FloatArray:
    """P + diag(more), more (..., n) in the caller's numbering; batch axes broadcast."""
    batch = np.broadcast_shapes(precision.shape[:-1], more.shape[:-1])
    values = np.broadcast_to(precision, (*batch, precision.shape[-1])).copy()
    values[..., topology.node_positions] += more
    return values


@dataclass(frozen=True)
class SchurComplement:
    """The way from P to the marginal of some nodes: all other nodes are eliminated first."""

    topology: Topology
    order: IntArray
    """(n,) the other nodes in the topology's order, then the nodes of the marginal in the given order."""
    pattern: Pattern
    """The pattern of P in that order."""
    gather: IntArray
    """(nnz,): precision[..., gather] is P in that order."""
    graph: Graph
    """The graph of the marginal with its Schur fill, eliminated as numbered."""

    def factor_of(self, factor: Any) -> Any:
        """L of the marginal on `graph.factor_pattern`: the trailing block of the factor of P."""
        return factor[..., self.pattern.filled().nnz - self.graph.factor_pattern.nnz :]

    def named_by_node(self, failure: NotPositiveDefiniteError) -> NotPositiveDefiniteError:
        """The failure of that factorisation as an error that names the caller's node."""
        return failure.saying(
            f"marginal: P is not positive definite to working precision: pivot {failure.pivot:.3g} at "
            f"{self.topology.describe(int(self.order[failure.column]))}{checks.in_batch(failure.batch_index)}. "
            "Use float64."
        )


def schur_complement(topology: Topology, nodes: IntArray, force: bool) -> SchurComplement:
    """The `SchurComplement` for the marginal of some nodes, numbered as given.

    Raises:
        PatternError: there are no nodes, or the factor has more than 10⁷ entries and `force` is false.
    """
    if not nodes.size:
        raise PatternError("marginal: needs at least one node, got none.")
    others = topology.order[~np.isin(topology.order, nodes)]
    order = np.concatenate([others, nodes])
    ends = np.argsort(order)[topology.edges]
    pattern = Pattern.from_edges(topology.n, ends)
    if not force and _is_large(pattern, len(others)):
        raise PatternError(
            f"marginal: the marginal of {len(nodes)} nodes of {topology} has a factor of more than {MARGINAL_LIMIT:,} "
            "entries a batch element. Ask for fewer nodes, or force=True if you mean it."
        )
    gather = np.empty(pattern.nnz, np.int64)
    gather[pattern.diagonal] = topology.node_positions[order]
    gather[pattern.positions_between(*ends.T)] = topology.edge_positions
    return SchurComplement(topology, order, pattern, gather, _trailing_graph(pattern.filled(), len(nodes)))


def _is_large(pattern: Pattern, first: int) -> bool:
    """Whether the factor has more than `MARGINAL_LIMIT` entries from that column on; counting stops at the limit."""
    row_indptr, row_cols, _ = pattern.row_structure
    parent, counts = np.empty(pattern.n, np.int64), np.empty(pattern.n, np.int64)
    return bool(symbolic.fill_counts(row_indptr, row_cols, parent, counts, first, MARGINAL_LIMIT) > MARGINAL_LIMIT)


def _trailing_graph(filled: Pattern, size: int) -> Graph:
    """The graph of the last `size` nodes of a filled pattern, eliminated as numbered."""
    first = filled.n - size
    tail = slice(int(filled.indptr[first]), None)
    pairs = np.stack([filled.rows[tail], filled.cols[tail]], axis=-1).astype(np.int64) - first
    return Graph(size, pairs[pairs[:, 0] != pairs[:, 1]], order=range(size))
