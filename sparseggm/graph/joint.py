"""The graph of a sum P₁ + P₂ of precisions on two graphs, and where the values of each stand on it."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import numpy as np

from sparseggm.graph.derived import make_read_only
from sparseggm.graph.graphs import union
from sparseggm.graph.pattern import IntArray
from sparseggm.graph.topology import Topology

Gather = IntArray | None
"""(nnz,) for each entry of the sum its place among the packed values of one matrix, and nnz of that where it has none;
None if the values stand as they are."""

# A topology that stands for both is kept by its place among the two: a value that held its own key would stay for ever.
_Found = tuple[Topology | int, Gather, Gather]


def joint_graph(first: Topology, second: Topology) -> tuple[Topology, Gather, Gather]:
    """The graph with the edges of both, in an order of elimination, and the `Gather` of each.

    It is `first` if that has all edges of `second`, else `second` if that has all edges of `first`, with their orders;
    else `graphs.union`, in an order of its own. Found once, and kept while both live.
    """
    if first is second:
        return first, None, None
    of: WeakKeyDictionary[Topology, _Found] = first.kept.setdefault("joint", WeakKeyDictionary())
    found = of.get(second)
    if found is None:
        found = of[second] = _found(first, second)
    graph, of_first, of_second = found
    return (first, second)[graph] if isinstance(graph, int) else graph, of_first, of_second


def _found(first: Topology, second: Topology) -> _Found:
    if has_edges_of(first, second):
        return 0, None, _gather(second, first)
    if has_edges_of(second, first):
        return 1, _gather(first, second), None
    graph = union(first, second)
    return graph, _gather(first, graph), _gather(second, graph)


def has_edges_of(large: Topology, small: Topology) -> bool:
    """Whether a graph has all edges of another on the same nodes."""
    there, asked = (topology.edges @ np.array([topology.n, 1]) for topology in (large, small))
    return bool(np.isin(asked, there, assume_unique=True).all())


def _gather(part: Topology, whole: Topology) -> Gather:
    pattern, on = part.precision_pattern, whole.precision_pattern
    i, j = (whole.inverse_order[part.order[ends]] for ends in (pattern.rows, pattern.cols))
    gather = np.full(on.nnz, pattern.nnz)
    gather[on.positions_between(i, j)] = np.arange(pattern.nnz)
    return None if np.array_equal(gather, np.arange(pattern.nnz)) else make_read_only(gather)
