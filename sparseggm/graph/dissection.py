"""Nested dissection: the two sides of a separator first, each in the same manner, the separator last [George 1973].

Lattices have separators that are known beforehand; those of other graphs are smallest cuts between two ends.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from sparseggm import threads
from sparseggm.graph.pattern import IndexArray, IntArray
from sparseggm.kernels import dissection, separators, symbolic
from sparseggm.kernels.separators import ABOVE, BELOW, SEPARATOR

LEAF = 200
"""Nodes up to which a part is eliminated by minimum degree."""

MARGIN = 1 / 3
"""The fraction of the nodes of a part between which and as many others its separator is sought."""

LARGEST = 1 / 8
"""The fraction of the nodes of a part beyond which a separator is worth less than minimum degree."""

MOST_SIGNS = 4
"""Axes of a lattice, the longest, whose coordinates count with either sign."""

WORK = 4_096
"""Multiply-adds that take as long as a node does in all parts of one size, or by minimum degree."""

T = TypeVar("T")
Sides = npt.NDArray[np.int8]


class Adjacency(NamedTuple):
    """The neighbours of every node, in both directions, ascending: neighbours[indptr[v] : indptr[v + 1]]."""

    indptr: IntArray
    neighbours: IndexArray

    @property
    def n(self) -> int:
        return len(self.indptr) - 1

    @staticmethod
    def from_edges(n: int, edges: IntArray) -> Adjacency:
        """Of (m, 2) pairs, each once."""
        i, j = edges[:, 0], edges[:, 1]
        codes = np.sort(np.concatenate([i * n + j, j * n + i]))
        return Adjacency(np.searchsorted(codes, np.arange(n + 1) * n), (codes % n).astype(np.int32))

    @property
    def is_hub(self) -> npt.NDArray[np.bool_]:
        """(n,) which nodes have so many neighbours, more than LEAF and 10 √n, that they would be in most separators."""
        return np.diff(self.indptr) > max(LEAF, 10 * math.sqrt(self.n))

    def induced(self, chosen: IntArray) -> Adjacency:
        """The subgraph on the chosen nodes, numbered as they are listed."""
        return Adjacency(*dissection.induced(*self, chosen, len(chosen), self._number()))

    def by_minimum_degree(self, parts: list[IntArray]) -> list[IntArray]:
        """The nodes of each part by minimum degree, where neighbours outside, which come later, count in degrees."""
        number, ordered = self._number(), []
        for nodes in parts:
            chosen = dissection.with_neighbours(*self, nodes, number)
            part = dissection.induced(*self, chosen, nodes.size, number)
            ordered.append(nodes[symbolic.minimum_degree(*part, nodes.size)])
        return ordered

    def _number(self) -> IndexArray:
        """(n,) scratch of the kernels."""
        return np.full(self.n, -1, np.int32)


# ---------------------------------------------------------------------- lattices


def lattice_dissection(shape: tuple[int, ...]) -> IntArray:
    """The order of nested dissection of a grid by its diagonals, the level sets of ± x ± y ± z.

    Neighbours differ by one in each of these functions, so that every level is a separator: of regions with as many
    nodes it has a factor √2 fewer than a row in two dimensions [Duff, Erisman & Reid 1976]. Beyond MOST_SIGNS axes the
    coordinates of the shorter ones count with + only. Which level is taken: `kernels.dissection.dissect_by_levels`.
    Cost O(n log n) for each function.
    """
    places = np.indices(shape, np.int32).reshape(len(shape), -1)
    places = places[np.argsort(-np.array(shape), kind="stable")]
    signs = np.array([*itertools.product([1], *[[1, -1]] * (min(len(shape), MOST_SIGNS) - 1))], np.int32)
    levels = signs @ places[:MOST_SIGNS] + places[MOST_SIGNS:].sum(axis=0, dtype=np.int32)
    order = np.arange(math.prod(shape))
    dissection.dissect_by_levels(levels - levels.min(axis=1, keepdims=True), order)
    return order


# ---------------------------------------------------------------------- graphs


class Part(NamedTuple):
    """A part of a graph: its nodes in the whole, and the place of the first of them in the order."""

    graph: Adjacency
    nodes: IntArray
    first: int

    def side(self, chosen: IntArray, first: int) -> Part:
        """The part of this one on the chosen nodes."""
        return Part(self.graph.induced(chosen), self.nodes[chosen], first)


def graph_dissection(graph: Adjacency) -> IntArray:
    """The order of nested dissection of any graph, by `separate`; parts of at most LEAF nodes by minimum degree.

    Hubs come last of all [Amestoy, Davis & Duff 1996]. A part whose separator would have more than LARGEST of its
    nodes, as in random graphs, or would leave a side empty, is eliminated by minimum degree whatever its size. Threads
    share the parts, which know nothing of each other.
    """
    near = symbolic.breadth_first(*graph)  # neighbours then lie close to each other in memory
    near, hubs = near[~graph.is_hub[near]], np.flatnonzero(graph.is_hub)
    whole = graph.induced(near)
    order = np.empty(whole.n, np.int64)
    parts, leaves = [Part(whole, np.arange(whole.n), 0)], []
    while parts:
        split = _shared(lambda some: [_dissected(part, order) for part in some], parts, WORK * whole.n)
        leaves += [part for part, sides in zip(parts, split, strict=True) if not sides]
        parts = [side for sides in split for side in sides]
    ordered = _shared(lambda some: whole.by_minimum_degree([leaf.nodes for leaf in some]), leaves, WORK * whole.n)
    for leaf, nodes in zip(leaves, ordered, strict=True):
        order[leaf.first : leaf.first + nodes.size] = nodes
    return np.concatenate([near[order], hubs])


def _shared(function: Callable[[list[Part]], list[T]], parts: list[Part], work: int) -> list[T]:
    """One result for each part, of threads that share the work: the function's for the parts that each of them does."""
    results: list[Any] = [None] * len(parts)

    def some(first: int, last: int) -> int:
        results[first:last] = function(parts[first:last])
        return 0

    threads.over_batch(some, work // len(parts), batch=len(parts))
    return results


def _dissected(part: Part, order: IntArray) -> list[Part]:
    """The two sides of a part, whose separator is written where it belongs; of a part that remains whole, nothing."""
    if part.graph.n <= LEAF:
        return []
    sides = separate(part.graph)
    below, above, separator = (np.flatnonzero(sides == side) for side in (BELOW, ABOVE, SEPARATOR))
    if not below.size or not above.size or separator.size > LARGEST * part.graph.n:
        return []
    middle = part.first + below.size
    last = middle + above.size
    order[last : last + separator.size] = part.nodes[separator]
    return [part.side(below, part.first), part.side(above, middle)]


def separate(graph: Adjacency) -> Sides:
    """BELOW, ABOVE or SEPARATOR for each node of a part, so that no edge joins the first two.

    Several components need no separator: the first of them, as many as half of the nodes hold, are below. Else the
    nodes are sorted by `straightest`; of these the first and the last MARGIN are the ends of a smallest vertex cut.
    This is inertial flow [Schild & Sommer 2015], with distances in place of coordinates.
    """
    component = np.empty(graph.n, np.int32)
    count, far = separators.components(*graph, component)
    if count > 1:
        ends = np.cumsum(np.bincount(component))
        below = max(1, int(np.searchsorted(ends, graph.n // 2, "right")))
        return np.where(component < below, np.int8(BELOW), np.int8(ABOVE))
    nodes, kept = straightest(graph, far), int(MARGIN * graph.n)
    source, sink = nodes[:kept], nodes[graph.n - kept :]
    sides = np.full(graph.n, SEPARATOR, np.int8)
    sides[source], sides[sink] = BELOW, ABOVE
    sides[source[separators.is_next_to(*graph, sides, ABOVE, source)]] = SEPARATOR  # what joins the ends is cut too
    band = nodes[sides[nodes] == SEPARATOR]
    from_source, to_sink = (separators.is_next_to(*graph, sides, side, band) for side in (BELOW, ABOVE))
    cut = np.empty(band.size, np.int8)
    separators.vertex_cut(*graph.induced(band), from_source, to_sink, cut)
    sides[band] = cut
    return sides


def straightest(graph: Adjacency, far: int) -> IntArray:
    """The nodes of a connected graph, sorted along that of four directions which the fewest nodes cut in half.

    Two nodes far apart, pseudo-peripheral [George & Liu 1979], give one direction: distance from the one less distance
    from the other. Two nodes far from these give another; their sum and their difference are the last two. `far` is a
    node far from some node.
    """
    distance = np.empty((4, graph.n), np.int32)
    far = separators.distances(*graph, far, distance[0])
    separators.distances(*graph, far, distance[1])
    nearest = np.minimum(*distance[:2])
    for k in (2, 3):
        separators.distances(*graph, int(nearest.argmax()), distance[k])
        np.minimum(nearest, distance[k], out=nearest)
    along, across = distance[0] - distance[1], distance[2] - distance[3]
    sorted_nodes = [_sorted(keys) for keys in (along, across, along + across, along - across)]
    return min(sorted_nodes, key=lambda nodes: _frontier(graph, nodes))


def _sorted(keys: IndexArray) -> IntArray:
    nodes = np.empty(keys.size, np.int64)
    separators.sort_by(keys, nodes)
    return nodes


def _frontier(graph: Adjacency, nodes: IntArray) -> int:
    """How many nodes of the first half have a neighbour in the other, or the reverse, whichever is less."""
    sides = np.full(graph.n, ABOVE, np.int8)
    sides[nodes[: graph.n // 2]] = BELOW
    return int(separators.frontiers(*graph, sides).min())
