"""Topologies that are given by the graph of P, and eliminated in an order of their own.

Their factor has fill, or at least an order to choose: see `orders`. Arguments named `order` override it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from sparseggm.errors import PatternError
from sparseggm.graph import orders, plotting
from sparseggm.graph.derived import derived, make_read_only
from sparseggm.graph.edges import (
    canonical_edges,
    integers,
    lattice_edges,
    require_at_least,
    require_positive,
    set_sizes,
)
from sparseggm.graph.exchange import square_coordinates
from sparseggm.graph.pattern import FloatArray, IntArray
from sparseggm.graph.topology import Ordered, Topology, lattice_place


@dataclass(frozen=True, init=False, repr=False)
class _Lattice(Ordered):
    """What `Grid` and `Torus` share."""

    shape: tuple[int, ...]

    _periodic: ClassVar[bool]
    _least_side: ClassVar[int]

    def __init__(self, *shape: int, order: Iterable[int] | None = None) -> None:
        name = type(self).__name__
        if not shape:
            raise PatternError(f"{name}: needs at least one side, as in {name}(28, 28).")
        require_at_least(self._least_side, name, **{f"side {axis}": side for axis, side in enumerate(shape)})
        object.__setattr__(self, "shape", tuple(int(side) for side in shape))
        self._take_order(order)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(str, self.shape))}{self._order_in_words})"

    @property
    def n(self) -> int:  # type: ignore[override]
        return math.prod(self.shape)

    def describe(self, node: int) -> str:
        return lattice_place(self, node, self.shape[1]) if len(self.shape) == 2 else super().describe(node)

    def node_places(self) -> FloatArray:
        if len(self.shape) == 1:
            return plotting.circle(self.n) if self._periodic else plotting.rows(self.n, snake=True)
        return plotting.lattice(self.shape) if len(self.shape) <= 3 else super().node_places()


class Grid(_Lattice):
    """A regular lattice of any dimension, each node joined to its nearest neighbours; the last axis varies fastest.

    P is on the grid; L has fill, but on a path. Eliminated by nested dissection along diagonals, or by minimum degree
    where that is tried and has no more Σ c_j² (c_j entries in column j of L): see `orders.grid_order`. For m × m:
    factor, log det and tr Σ O(n^1.5); sampling with a given factor O(n log n).

    Args:
        shape: sides, `Grid(28, 28)`.
        order: `order[k]` is the node to eliminate k-th, instead of the above.
    """

    _periodic, _least_side = False, 1

    @derived
    def edges(self) -> IntArray:
        return canonical_edges(self.n, lattice_edges(self.shape))

    def _own_order(self) -> IntArray:
        return orders.grid_order(self.shape, self.edges)


class Torus(_Lattice):
    """A lattice that closes on itself along every axis, sides at least 3. Arguments and costs as `Grid`.

    Its order is that of the same `Graph`.
    """

    _periodic, _least_side = True, 3

    @derived
    def edges(self) -> IntArray:
        node = np.arange(self.n, dtype=np.int64).reshape(self.shape)
        pairs = [np.stack([node, np.roll(node, 1, axis)], axis=-1).reshape(-1, 2) for axis in range(node.ndim)]
        return canonical_edges(self.n, np.concatenate(pairs))

    def _own_order(self) -> IntArray:
        return orders.graph_order(self.n, self.edges)


@dataclass(frozen=True, repr=False)
class Tree(Topology):
    """Node i is joined to parents[i]; −1 marks a root, and several roots a forest. Every verb is O(n).

    Eliminated from the deepest nodes to the roots, ties by number: no fill, so P and L share the pattern.

    Args:
        parents: any iterable of n integers without a cycle.
    """

    parents: tuple[int, ...]

    def __post_init__(self) -> None:
        parents = integers("Tree: parents", self.parents)
        object.__setattr__(self, "parents", parents)
        require_positive("Tree", n=len(parents))
        for node, parent in enumerate(parents):
            if not -1 <= parent < len(parents):
                raise PatternError(f"Tree: parents must be in −1 … {len(parents) - 1}, got {parent} for node {node}.")
        if (self._depth < 0).any():
            node = int(np.argmax(self._depth < 0))
            raise PatternError(f"Tree: node {node} has no root: its chain of parents is a cycle.")

    def __repr__(self) -> str:
        return f"Tree(n={self.n})"  # parents of thousands of nodes would bury a message

    @property
    def n(self) -> int:  # type: ignore[override]
        return len(self.parents)

    @derived
    def _depth(self) -> IntArray:
        """(n,) distance to the root; −1 where there is none. Doubles its reach at each step: O(n log depth)."""
        ancestor = np.array([*self.parents, -1])  # of the distance reached so far; the last stands for "above a root"
        depth = (ancestor >= 0).astype(np.int64)
        for _ in range(self.n.bit_length()):
            depth = depth + depth[ancestor]
            ancestor = ancestor[ancestor]
        return np.where(ancestor[:-1] < 0, depth[:-1], -1)

    @derived
    def edges(self) -> IntArray:
        parents = np.array(self.parents)
        children = np.flatnonzero(parents >= 0)
        return canonical_edges(self.n, np.stack([children, parents[children]], axis=-1))

    @derived
    def order(self) -> IntArray:
        return make_read_only(np.argsort(-self._depth, kind="stable"))

    def node_places(self) -> FloatArray:
        return plotting.by_depth(self.parents)


@dataclass(frozen=True)
class Star(Topology):
    """Node 0, the hub, is joined to all others, and eliminated last: no fill. Every verb is O(n)."""

    n: int

    def __post_init__(self) -> None:
        set_sizes(self, "n")

    @derived
    def edges(self) -> IntArray:
        leaves = np.arange(1, self.n)
        return canonical_edges(self.n, np.stack([leaves, np.zeros_like(leaves)], axis=-1))

    @derived
    def order(self) -> IntArray:
        return make_read_only(np.roll(np.arange(self.n), -1))

    def node_places(self) -> FloatArray:
        return np.concatenate([np.zeros((1, 2)), plotting.circle(self.n - 1)])


@dataclass(frozen=True)
class Cycle(Topology):
    """A ring: node i is joined to i + 1, and the last to node 0; n at least 3. Every verb is O(n).

    Eliminated as numbered, so that the ends meet last: L has one entry a column more than P.
    """

    n: int

    def __post_init__(self) -> None:
        set_sizes(self, "n", least=3)

    @derived
    def edges(self) -> IntArray:
        node = np.arange(self.n)
        return canonical_edges(self.n, np.stack([node, np.roll(node, 1)], axis=-1))

    def node_places(self) -> FloatArray:
        return plotting.circle(self.n)


@dataclass(frozen=True, init=False, repr=False, eq=False)
class Graph(Ordered):
    """Any graph. Costs are those of its factor: `factor_pattern.nnz`, and Σ c_j² over its columns.

    Eliminated without fill if the graph is chordal (maximum cardinality search); else by minimum degree or, beyond 200
    nodes where that has less Σ c_j², by nested dissection; beyond 8,192 by the latter, unless the graph is thin: see
    `orders.graph_order`.

    Args:
        n: number of nodes.
        edges: (m, 2) pairs of nodes, in any order and orientation, each once.
        order: `order[k]` is the node to eliminate k-th, instead of the above.
    """

    n: int
    _edges: IntArray

    def __init__(self, n: int, edges: npt.ArrayLike, order: Iterable[int] | None = None) -> None:
        require_positive("Graph", n=n)
        object.__setattr__(self, "n", int(n))
        object.__setattr__(self, "_edges", canonical_edges(n, edges))
        self._take_order(order)

    def __repr__(self) -> str:
        return f"Graph(n={self.n}, {len(self.edges)} edges{self._order_in_words})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Graph, (self.n, self._edges, self.given_order)  # so that the edges of a copy are read-only too

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Graph):
            return NotImplemented
        return self._structure == other._structure

    def __hash__(self) -> int:
        return hash(self._structure)

    @property
    def edges(self) -> IntArray:
        return self._edges

    @derived
    def _structure(self) -> tuple[Any, ...]:
        return self.n, self.edges.tobytes(), self.given_order

    def _own_order(self) -> IntArray:
        return orders.graph_order(self.n, self.edges)


# ---------------------------------------------------------------------- graphs from elsewhere


def product_graph(topology: Topology) -> Topology:
    """The graph of P = L Lᵀ for an L on the factor pattern, in the topology's order: itself if it is factor-free.

    Made once, and kept while the topology lives.
    """
    if topology.is_factor_free:
        return topology
    graph: Graph | None = topology.kept.get("product")
    if graph is None:
        pattern, order = topology.factor_pattern.gram(), topology.order
        ends = order[np.stack([pattern.rows, pattern.cols], axis=-1)]
        graph = topology.kept.setdefault("product", Graph(pattern.n, ends[ends[:, 0] != ends[:, 1]], order))
    return graph


def union(first: Topology, *others: Topology) -> Graph:
    """The graph with the edges of all, on the same nodes."""
    for other in others:
        if other.n != first.n:
            raise PatternError(f"union: needs topologies of one size, got {first} and {other}.")
    edges = np.concatenate([topology.edges for topology in (first, *others)])
    return Graph(first.n, np.unique(edges, axis=0))


def from_scipy(matrix: Any, order: Iterable[int] | None = None) -> Graph:
    """The graph of a symmetric scipy.sparse matrix: an edge for each stored off-diagonal entry.

    Raises:
        PatternError: an entry is stored on one side of the diagonal only.
    """
    n, i, j = square_coordinates("from_scipy", matrix)
    below, above = np.unique((j * n + i)[i > j]), np.unique((i * n + j)[i < j])
    one_sided = np.setxor1d(below, above)
    if one_sided.size:
        low, high = divmod(int(one_sided[0]), n)
        raise PatternError(
            f"from_scipy: entries ({high}, {low}) and ({low}, {high}) must both be stored, or neither. "
            "abs(matrix) + abs(matrix.T) stores both."
        )
    return Graph(n, np.stack([below % n, below // n], axis=-1), order)


def from_networkx(graph: Any, order: Iterable[int] | None = None) -> Graph:
    """The graph of an undirected networkx graph, its nodes numbered as `graph.nodes` lists them.

    Raises:
        PatternError: a directed graph, or an edge from a node to itself.
    """
    if graph.is_directed():
        raise PatternError("from_networkx: needs an undirected graph. Use graph.to_undirected().")
    number = {node: k for k, node in enumerate(graph.nodes)}
    pairs = {
        (min(number[a], number[b]), max(number[a], number[b])) for a, b in graph.edges()
    }  # a multigraph has repeats
    return Graph(len(number), sorted(pairs), order)
