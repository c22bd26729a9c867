"""Orders of elimination: which node goes k-th, so that the Cholesky factor stays sparse.

Every order is determined by its definition, ties included: packed layouts, and so saved weights, depend on it.
"""

from __future__ import annotations

import math

import numpy as np

from sparseggm.graph.pattern import IntArray, Pattern
from sparseggm.kernels import symbolic

MINIMUM_DEGREE_LIMIT = 65_536
"""Nodes above which a lattice takes nested dissection without trying minimum degree, whose cost grows faster."""


def factor_work(n: int, edges: IntArray, order: IntArray) -> int:
    """Σ c_j² over the columns of L: multiply-adds of a factorisation in this order."""
    filled = Pattern.from_edges(n, np.argsort(order)[edges]).filled()
    return int((np.diff(filled.indptr).astype(np.int64) ** 2).sum())


def chordal_or_minimum_degree(n: int, edges: IntArray) -> IntArray:
    """An order without fill if there is one (the graph is chordal), else minimum degree."""
    perfect = maximum_cardinality(n, edges)
    pattern = Pattern.from_edges(n, np.argsort(perfect)[edges])
    return perfect if pattern.is_closed else minimum_degree(n, edges)


def lattice_order(shape: tuple[int, ...], edges: IntArray, periodic: bool) -> IntArray:
    """The better, in `factor_work`, of minimum degree and nested dissection; minimum degree on a tie."""
    n = math.prod(shape)
    dissection = nested_dissection(shape, periodic)
    if n > MINIMUM_DEGREE_LIMIT:
        return dissection
    return min(minimum_degree(n, edges), dissection, key=lambda order: factor_work(n, edges, order))


def maximum_cardinality(n: int, edges: IntArray) -> IntArray:
    """The reverse of visiting, each time, a node with most visited neighbours, ties to the highest number.

    Without fill exactly on chordal graphs [Tarjan & Yannakakis 1984]. A path numbered along itself keeps its order.
    """
    return np.asarray(symbolic.maximum_cardinality(*_neighbours(n, edges)))


def minimum_degree(n: int, edges: IntArray) -> IntArray:
    """The minimum-degree order: always a node of least degree in the remaining graph, ties to the lowest number."""
    return np.asarray(symbolic.minimum_degree(*_neighbours(n, edges)))


def nested_dissection(shape: tuple[int, ...], periodic: bool = False) -> IntArray:
    """The two halves of a lattice first, the middle plane of its longest side (the first such) last, recursively.

    On a torus the first plane of each axis opens the ring: these come last of all, the first axis the very last.
    """
    order: list[IntArray] = []

    def dissect(box: IntArray) -> None:
        if box.size <= 1:
            order.append(box.ravel())
            return
        axis = int(np.argmax(box.shape))
        halves = np.moveaxis(box, axis, 0)
        middle = len(halves) // 2
        dissect(np.moveaxis(halves[:middle], 0, axis))
        dissect(np.moveaxis(halves[middle + 1 :], 0, axis))
        order.append(halves[middle].ravel())

    box = np.arange(math.prod(shape), dtype=np.int64).reshape(shape)
    openings: list[IntArray] = []
    if periodic:
        for axis in range(len(shape)):
            opened = np.moveaxis(box, axis, 0)
            openings.append(opened[0].ravel())
            box = np.moveaxis(opened[1:], 0, axis)
    dissect(box)
    return np.concatenate([*order, *reversed(openings)])


def _neighbours(n: int, edges: IntArray) -> tuple[IntArray, IntArray]:
    """(indptr, neighbours): the neighbours of every node in both directions, ascending."""
    both = np.concatenate([edges, edges[:, ::-1]])
    both = both[np.lexsort((both[:, 1], both[:, 0]))]
    return np.searchsorted(both[:, 0], np.arange(n + 1)), np.ascontiguousarray(both[:, 1])
