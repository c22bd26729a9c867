"""Conditional and marginal Gaussians: the graph that is left, and its values.

Functions of a topology in the caller's numbering, for the methods of `GaussianGraphicalModel`. With nodes split into A
(kept) and B:

    z_A | z_B = v  has precision P_AA and mean loc_A − P_AA⁻¹ P_AB (v − loc_B)
    z_A            has precision P_AA − P_AB P_BB⁻¹ P_BA, the trailing block of the factor when B is eliminated first
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sparseggm.errors import PatternError
from sparseggm.graphs import Graph
from sparseggm.pattern import IntArray, Pattern
from sparseggm.topology import Topology

MARGINAL_LIMIT = 10_000_000
"""Entries of a marginal's factor above which it must be forced: 80 MB a batch element in float64."""


def distinct_nodes(function: str, topology: Topology, nodes: npt.ArrayLike) -> IntArray:
    """(k,) node numbers, each once and not all of them."""
    chosen = np.asarray(nodes)
    if chosen.ndim != 1 or not np.issubdtype(chosen.dtype, np.integer):
        raise PatternError(f"{function}: nodes must be a list of integers, got {chosen.dtype} of shape {chosen.shape}.")
    if chosen.size and (chosen.min() < 0 or chosen.max() >= topology.n):
        raise PatternError(f"{function}: nodes must be in 0 … {topology.n - 1}, got {chosen.min()} … {chosen.max()}.")
    if len(np.unique(chosen)) < len(chosen):
        raise PatternError(f"{function}: each node must be given once, got {len(chosen)} with repeats.")
    return chosen.astype(np.int64)


def induced(topology: Topology, kept: IntArray) -> tuple[Graph, IntArray]:
    """The graph on the kept nodes (ascending), and which rows of `topology.edges` became its edges, in their order."""
    number = np.full(topology.n, -1)
    number[kept] = np.arange(len(kept))
    ends = number[topology.edges]
    inside = np.flatnonzero((ends >= 0).all(axis=1))
    # Renumbering ascending nodes keeps i > j and the canonical order.
    return Graph(len(kept), ends[inside]), inside


def marginal_pattern(function: str, topology: Topology, nodes: IntArray, force: bool) -> tuple[Pattern, IntArray, int]:
    """Where the factor is nonzero when all but `nodes` are eliminated first.

    Returns:
        the filled pattern, the order (others as in the topology's, then `nodes`), and where the trailing block begins
        among the packed entries.
    Raises:
        PatternError: the block has more than 10⁷ entries, and force is False.
    """
    others = topology.order[~np.isin(topology.order, nodes)]
    order = np.concatenate([others, nodes])
    inverse = np.argsort(order)
    filled = Pattern.from_edges(topology.n, inverse[topology.edges]).filled()
    begin = int(filled.indptr[len(others)])
    if filled.nnz - begin > MARGINAL_LIMIT and not force:
        raise PatternError(
            f"{function}: the marginal of {len(nodes)} nodes of {topology} has a factor of {filled.nnz - begin:,} "
            "entries a batch element. Ask for fewer nodes, or force=True if you mean it."
        )
    return filled, order, begin


def trailing_graph(filled: Pattern, size: int) -> Graph:
    """The graph of the last `size` nodes of a filled pattern, eliminated as numbered."""
    first = filled.n - size
    tail = slice(int(filled.indptr[first]), None)
    pairs = np.stack([filled.rows[tail], filled.cols[tail]], axis=-1).astype(np.int64) - first
    return Graph(size, pairs[pairs[:, 0] != pairs[:, 1]], order=range(size))


def in_order(topology: Topology, order: IntArray, values: Any, pattern: Pattern) -> Any:
    """Values on `topology.precision_pattern` (..., nnz), moved to `pattern`, which is in another order and larger."""
    inverse = np.argsort(order)
    own = topology.precision_pattern
    ends = inverse[topology.order[np.stack([own.rows, own.cols])]]
    moved = np.zeros((*values.shape[:-1], pattern.nnz), values.dtype)
    moved[..., pattern.positions_of(ends.max(axis=0), ends.min(axis=0))] = values
    return moved
