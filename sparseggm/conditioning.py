"""Conditional and marginal Gaussians: the graph that is left, and its values.

Functions of a topology in the caller's numbering, for the methods of `GaussianGraphicalModel`. With nodes split into A
(kept) and B:

    z_A | z_B = v  has precision P_AA and mean loc_A − P_AA⁻¹ P_AB (v − loc_B)
    z_A            has precision P_AA − P_AB P_BB⁻¹ P_BA, the trailing block of the factor when B is eliminated first
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sparseggm import checks, linalg
from sparseggm.errors import NotPositiveDefiniteError, PatternError
from sparseggm.graphs import Graph
from sparseggm.pattern import FloatArray, IntArray, Pattern
from sparseggm.topology import Topology

MARGINAL_LIMIT = 10_000_000
"""Entries of a marginal's factor above which it must be forced: 80 MB a batch element in float64."""


def distinct_nodes(function: str, topology: Topology, nodes: npt.ArrayLike) -> IntArray:
    """(k,) node numbers, each once."""
    chosen = np.asarray(nodes)
    if not chosen.size:
        return np.empty(0, np.int64)
    if chosen.ndim != 1 or not np.issubdtype(chosen.dtype, np.integer):
        raise PatternError(f"{function}: nodes must be a list of integers, got {chosen.dtype} of shape {chosen.shape}.")
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


def induced(topology: Topology, precision: FloatArray, kept: IntArray) -> tuple[Graph, FloatArray]:
    """The graph on the kept nodes (ascending), and P_AA on its `precision_pattern`."""
    number = np.full(topology.n, -1)
    number[kept] = np.arange(len(kept))
    ends = number[topology.edges]
    inside = np.flatnonzero((ends >= 0).all(axis=1))
    graph = Graph(len(kept), ends[inside])  # renumbering ascending nodes keeps i > j and the canonical order
    diagonal, couplings = topology.unpack(precision)
    return graph, graph.pack((diagonal[..., kept], couplings[..., inside]))


def with_more_on_diagonal(topology: Topology, precision: FloatArray, more: FloatArray) -> FloatArray:
    """P + diag(more), more (..., n) in the caller's numbering; batch axes broadcast."""
    batch = np.broadcast_shapes(precision.shape[:-1], more.shape[:-1])
    values = np.broadcast_to(precision, (*batch, precision.shape[-1])).copy()
    values[..., topology.node_positions] += more
    return values


def marginal(topology: Topology, precision: FloatArray, nodes: IntArray, force: bool) -> tuple[Graph, FloatArray]:
    """The graph of some nodes with its Schur fill, eliminated as numbered, and L on its `factor_pattern`.

    All other nodes are eliminated first, in the topology's order, then `nodes`: the trailing block of that factor.
    Raises:
        PatternError: no nodes, or a block of more than 10⁷ entries without `force`.
        NotPositiveDefiniteError: P is not, to working precision.
    """
    if not nodes.size:
        raise PatternError("marginal: needs at least one node, got none.")
    others = topology.order[~np.isin(topology.order, nodes)]
    order = np.concatenate([others, nodes])
    ends = np.argsort(order)[topology.edges]
    pattern = Pattern.from_edges(topology.n, ends)
    filled = pattern.filled()
    begin = int(filled.indptr[len(others)])
    if filled.nnz - begin > MARGINAL_LIMIT and not force:
        raise PatternError(
            f"marginal: the marginal of {len(nodes)} nodes of {topology} has a factor of {filled.nnz - begin:,} "
            "entries a batch element. Ask for fewer nodes, or force=True if you mean it."
        )
    diagonal, couplings = topology.unpack(precision)
    values = np.empty_like(precision)
    values[..., pattern.diagonal] = diagonal[..., order]
    values[..., pattern.positions_of(ends.max(axis=1), ends.min(axis=1))] = couplings
    try:
        factor = linalg.cholesky(pattern, values)
    except NotPositiveDefiniteError as failure:
        raise NotPositiveDefiniteError(
            f"marginal: P is not positive definite to working precision: pivot {failure.pivot:.3g} at "
            f"{topology.describe(int(order[failure.column]))}{checks.in_batch(failure.batch_index)}. Use float64.",
            batch_index=failure.batch_index,
            column=failure.column,
            pivot=failure.pivot,
        ) from None
    return _trailing_graph(filled, len(nodes)), np.ascontiguousarray(factor[..., begin:])


def _trailing_graph(filled: Pattern, size: int) -> Graph:
    """The graph of the last `size` nodes of a filled pattern, eliminated as numbered."""
    first = filled.n - size
    tail = slice(int(filled.indptr[first]), None)
    pairs = np.stack([filled.rows[tail], filled.cols[tail]], axis=-1).astype(np.int64) - first
    return Graph(size, pairs[pairs[:, 0] != pairs[:, 1]], order=range(size))
