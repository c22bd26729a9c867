"""Graphs, patterns, fill and orders of elimination, by definition: double loops, sets and boolean matrices.

Edges are lists of pairs (i, j), i > j, sorted by j and then i. A pattern is a boolean lower triangle (n, n).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]
Edges = list[tuple[int, int]]


# ---------------------------------------------------------------------- graphs


def edges_where(n: int, joined: Callable[[int, int], bool]) -> Edges:
    """All pairs i > j of which `joined` is true, in canonical order."""
    return [(i, j) for j in range(n) for i in range(j + 1, n) if joined(i, j)]


def diagonal(n: int) -> Edges:
    """No edges."""
    return edges_where(n, lambda i, j: False)


def chain(n: int) -> Edges:
    """Neighbours in a row."""
    return edges_where(n, lambda i, j: i - j == 1)


def block_chain(blocks: int, size: int) -> Edges:
    """Same block or consecutive blocks."""
    return edges_where(blocks * size, lambda i, j: abs(i // size - j // size) <= 1)


def grid(shape: tuple[int, ...]) -> Edges:
    """Lattice points at distance one, numbered with the last coordinate fastest."""
    points = list(itertools.product(*map(range, shape)))
    return edges_where(
        len(points), lambda i, j: sum(abs(a - b) for a, b in zip(points[i], points[j], strict=True)) == 1
    )


def extended_grid(rows: int, cols: int) -> Edges:
    """The grid, and an edge between the right and the lower neighbour of every node: row up by one, column down."""

    def joined(i: int, j: int) -> bool:
        down, right = i // cols - j // cols, i % cols - j % cols
        return (down, right) in {(0, 1), (1, 0), (1, -1)}

    return edges_where(rows * cols, joined)


# ---------------------------------------------------------------------- patterns


def pattern(n: int, edges: Edges) -> Mask:
    """The diagonal and the edges."""
    mask = np.eye(n, dtype=bool)
    for i, j in edges:
        mask[max(i, j), min(i, j)] = True
    return mask


def filled(mask: Mask) -> Mask:
    """Where a Cholesky factor may be nonzero: eliminating a node joins all its later neighbours."""
    out = mask.copy()
    for j in range(len(out)):
        later = [i for i in range(j + 1, len(out)) if out[i, j]]
        for low, high in itertools.combinations(later, 2):
            out[high, low] = True
    return out


def gram(mask: Mask) -> Mask:
    """Where L Lᵀ may be nonzero."""
    return np.tril(mask.astype(int) @ mask.astype(int).T > 0)


def permuted(n: int, edges: Edges, order: list[int]) -> Edges:
    """The same graph with node order[k] renamed k."""
    place = {node: k for k, node in enumerate(order)}
    return [(place[i], place[j]) for i, j in edges]


# ---------------------------------------------------------------------- orders


def minimum_degree(n: int, edges: Edges) -> list[int]:
    """Eliminate a node of least degree, ties to the lowest number; its neighbours become a clique."""
    neighbours: dict[int, set[int]] = {v: set() for v in range(n)}
    for i, j in edges:
        neighbours[i].add(j)
        neighbours[j].add(i)
    order = []
    while neighbours:
        v = min(neighbours, key=lambda node: (len(neighbours[node]), node))
        clique = neighbours.pop(v)
        for u in clique:
            neighbours[u] |= clique
            neighbours[u] -= {u, v}
        order.append(v)
    return order


def nested_dissection(shape: tuple[int, ...]) -> list[int]:
    """Split at plane ⌊side/2⌋ of the first longest side: what is before it, what is after it, then the plane."""

    def dissect(points: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
        if len(points) <= 1:
            return points
        low = [min(coordinates) for coordinates in zip(*points, strict=True)]
        sides = [max(coordinates) + 1 - min(coordinates) for coordinates in zip(*points, strict=True)]
        axis = sides.index(max(sides))
        middle = low[axis] + sides[axis] // 2
        before = [point for point in points if point[axis] < middle]
        after = [point for point in points if point[axis] > middle]
        return dissect(before) + dissect(after) + [point for point in points if point[axis] == middle]

    points = list(itertools.product(*map(range, shape)))
    number = {point: k for k, point in enumerate(points)}
    return [number[point] for point in dissect(points)]


def work(n: int, edges: Edges, order: list[int]) -> int:
    """Σ c_j², c_j the entries in column j of the factor."""
    return int((filled(pattern(n, permuted(n, edges, order))).sum(axis=0) ** 2).sum())


def grid_order(shape: tuple[int, ...]) -> list[int]:
    """The better of the two orders in `work`; minimum degree on a tie."""
    n, edges = math.prod(shape), grid(shape)
    return min(minimum_degree(n, edges), nested_dissection(shape), key=lambda order: work(n, edges, order))
