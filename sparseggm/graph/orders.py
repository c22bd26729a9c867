"""Orders of elimination: which node goes k-th, so that the Cholesky factor stays sparse.

Every order is determined by its definition, ties included: packed layouts, and so saved weights, depend on it. Whoever
changes an order raises `RULE`, which files carry.
"""

from __future__ import annotations

import math

import numpy as np

from sparseggm.graph.dissection import LEAF, Adjacency, graph_dissection, lattice_dissection
from sparseggm.graph.pattern import IntArray, Pattern
from sparseggm.kernels import symbolic

RULE = 2
"""The version of the rules below. 1 cut grids by rows and columns, and had minimum degree for every other graph."""

MINIMUM_DEGREE_LIMIT = 8_192
"""Nodes up to which minimum degree is tried beside nested dissection; its cost grows faster."""

THIN = 400
"""Multiply-adds a node up to which a graph is thin: long beside its separators, as a road or a ladder."""

THIN_LIMIT = 65_536
"""Nodes up to which minimum degree, which is better on thin graphs, is tried on these."""


def factor_work(n: int, edges: IntArray, order: IntArray) -> int:
    """Σ c_j² over the columns of L: multiply-adds of a factorisation in this order. Cost O(nnz(L))."""
    row_indptr, row_cols, _ = Pattern.from_edges(n, np.argsort(order)[edges]).row_structure
    parent, counts = np.empty(n, np.int64), np.empty(n, np.int64)
    symbolic.fill_counts(row_indptr, row_cols, parent, counts, 0, symbolic.MOST)
    return int((counts**2).sum())


def graph_order(n: int, edges: IntArray) -> IntArray:
    """An order without fill if there is one (the graph is chordal); else minimum degree up to LEAF nodes.

    Beyond, that or nested dissection, whichever is better in `factor_work`, minimum degree on a tie; but nested
    dissection alone beyond MINIMUM_DEGREE_LIMIT nodes, or THIN_LIMIT if its result shows that the graph is thin.
    """
    graph = Adjacency.from_edges(n, edges)
    perfect = symbolic.maximum_cardinality(*graph, True)
    if perfect.size:
        return np.asarray(perfect)
    if n <= LEAF:
        return minimum_degree(n, edges)
    return _or_minimum_degree(n, edges, graph_dissection(graph), bool(graph.is_hub.any()))


def grid_order(shape: tuple[int, ...], edges: IntArray) -> IntArray:
    """Nested dissection by diagonals or minimum degree, chosen as in `graph_order`.

    A grid of more than THIN_LIMIT nodes whose cross section c has c² ≤ THIN may also go from one end of its longest
    side to the other, which is a band.
    """
    n, longest = math.prod(shape), max(shape)
    dissected = lattice_dissection(shape)
    if n > THIN_LIMIT and (n // longest) ** 2 <= THIN:
        along = np.moveaxis(np.arange(n).reshape(shape), shape.index(longest), 0).ravel()
        return min(along, dissected, key=lambda order: factor_work(n, edges, order))
    return _or_minimum_degree(n, edges, dissected)


def maximum_cardinality(n: int, edges: IntArray) -> IntArray:
    """The reverse of visiting, each time, a node with most visited neighbours, ties to the highest number.

    Without fill exactly on chordal graphs [Tarjan & Yannakakis 1984]. A path numbered along itself keeps its order.
    """
    return np.asarray(symbolic.maximum_cardinality(*Adjacency.from_edges(n, edges), False))


def minimum_degree(n: int, edges: IntArray) -> IntArray:
    """The minimum-degree order: always a node of least degree in the remaining graph, ties to the lowest number."""
    return np.asarray(symbolic.minimum_degree(*Adjacency.from_edges(n, edges), n))


def _or_minimum_degree(n: int, edges: IntArray, dissected: IntArray, has_hubs: bool = False) -> IntArray:
    """Minimum degree, where it is tried and has no more `factor_work`; else the order that is given.

    At hubs minimum degree is slow, O(n) for each neighbour.
    """
    if n > THIN_LIMIT:
        return dissected
    work = factor_work(n, edges, dissected)
    if n > MINIMUM_DEGREE_LIMIT and (work > THIN * n or has_hubs):
        return dissected
    least = minimum_degree(n, edges)
    return least if factor_work(n, edges, least) <= work else dissected
