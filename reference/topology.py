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
    """All pairs i > j for which `joined` is true, in canonical order."""
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


def band(n: int, bandwidth: int) -> Edges:
    """Numbers that differ by at most the bandwidth."""
    return edges_where(n, lambda i, j: i - j <= bandwidth)


def stencil_factor(rows: int, cols: int, radius: int, channels: int) -> Edges:
    """The edges of L: channels of one pixel, and of pixels at most `radius` rows and columns apart."""

    def pixel(node: int) -> tuple[int, int]:
        return divmod(node // channels, cols)

    def joined(i: int, j: int) -> bool:
        return all(abs(a - b) <= radius for a, b in zip(pixel(i), pixel(j), strict=True))

    return edges_where(rows * cols * channels, joined)


def torus(shape: tuple[int, ...]) -> Edges:
    """Lattice points of which one coordinate differs, by one or by the side less one."""
    points = list(itertools.product(*map(range, shape)))

    def joined(i: int, j: int) -> bool:
        apart = [(abs(a - b), side) for a, b, side in zip(points[i], points[j], shape, strict=True) if a != b]
        return len(apart) == 1 and apart[0][0] in (1, apart[0][1] - 1)

    return edges_where(len(points), joined)


def tree(parents: list[int]) -> Edges:
    """One of two nodes is the parent of the other."""
    return edges_where(len(parents), lambda i, j: parents[i] == j or parents[j] == i)


def star(n: int) -> Edges:
    """Node 0 with all others."""
    return edges_where(n, lambda i, j: j == 0)


def cycle(n: int) -> Edges:
    """Numbers that differ by one, and the two ends."""
    return edges_where(n, lambda i, j: i - j in (1, n - 1))


def neighbours_of(n: int, edges: Edges) -> dict[int, set[int]]:
    """The neighbours of every node."""
    neighbours: dict[int, set[int]] = {v: set() for v in range(n)}
    for i, j in edges:
        neighbours[i].add(j)
        neighbours[j].add(i)
    return neighbours


# ---------------------------------------------------------------------- chordality


def has_induced_cycle(n: int, edges: Edges) -> bool:
    """Whether some four or more nodes have exactly the edges of a ring among them, by a test of every subset."""
    neighbours = neighbours_of(n, edges)
    return any(is_ring(chosen, neighbours) for k in range(4, n + 1) for chosen in itertools.combinations(range(n), k))


def is_ring(chosen: tuple[int, ...], neighbours: dict[int, set[int]]) -> bool:
    """Whether each of the chosen has two neighbours among them, and all are reached from the first."""
    among = {v: neighbours[v] & set(chosen) for v in chosen}
    if any(len(ends) != 2 for ends in among.values()):
        return False
    reached, frontier = set[int](), [chosen[0]]
    while frontier:
        v = frontier.pop()
        if v not in reached:
            reached.add(v)
            frontier.extend(among[v])
    return len(reached) == len(chosen)


def is_perfect(n: int, edges: Edges, order: list[int]) -> bool:
    """Whether the neighbours of every node that come later are joined to each other, so that nothing is filled."""
    neighbours, place = neighbours_of(n, edges), {node: k for k, node in enumerate(order)}
    return all(
        b in neighbours[a]
        for v in range(n)
        for a, b in itertools.combinations([u for u in neighbours[v] if place[u] > place[v]], 2)
    )


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


def minimum_degree(n: int, edges: Edges, count: int | None = None) -> list[int]:
    """Eliminate a node of least degree, ties to the lowest number; its neighbours become a clique.

    Only the first `count` nodes are eliminated, the others have their part in degrees.
    """
    neighbours = neighbours_of(n, edges)
    order: list[int] = []
    while len(order) < (n if count is None else count):
        v = min(
            (node for node in neighbours if count is None or node < count),
            key=lambda node: (len(neighbours[node]), node),
        )
        clique = neighbours.pop(v)
        for u in clique:
            neighbours[u] |= clique
            neighbours[u] -= {u, v}
        order.append(v)
    return order


def maximum_cardinality(n: int, edges: Edges) -> list[int]:
    """Visit a node with most visited neighbours, ties to the highest number; the order is the reverse."""
    neighbours = neighbours_of(n, edges)
    visited: list[int] = []
    while len(visited) < n:
        rest = set(range(n)) - set(visited)
        visited.append(max(rest, key=lambda node: (len(neighbours[node] & set(visited)), node)))
    return visited[::-1]


def axis_parallel_dissection(shape: tuple[int, ...]) -> list[int]:
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


def lattice_dissection(shape: tuple[int, ...], most_signs: int = 4) -> list[int]:
    """Split at a level of ± x ± y …: what is below it, what is above it, then the level.

    The longest axis counts with +, the next ones up to `most_signs` axes with both signs, the others with +. That level
    has the fewest points for the product of the sides, the first such; the fewest points, where no level has two sides.
    """
    axes = sorted(range(len(shape)), key=lambda axis: -shape[axis])
    signed = [[1], *[[1, -1]] * (min(len(shape), most_signs) - 1), *[[1]] * (len(shape) - most_signs)]

    def dissect(points: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
        if len(points) <= 1:
            return points
        best: tuple[float, list[list[tuple[int, ...]]]] = (math.inf, [])
        for signs in itertools.product(*signed):
            levels = [sum(sign * point[axis] for sign, axis in zip(signs, axes, strict=True)) for point in points]
            for level in range(min(levels), max(levels) + 1):
                below, above, on = (
                    [point for point, value in zip(points, levels, strict=True) if np.sign(value - level) == side]
                    for side in (-1, 1, 0)
                )
                product = len(below) * len(above)
                ratio = len(on) / product if product else float(len(points) + len(on))
                if ratio < best[0]:
                    best = ratio, [below, above, on]
        below, above, on = best[1]
        return dissect(below) + dissect(above) + on

    points = list(itertools.product(*map(range, shape)))
    number = {point: k for k, point in enumerate(points)}
    return [number[point] for point in dissect(points)]


def smallest_cut(n: int, edges: Edges, source: set[int], sink: set[int]) -> int:
    """The fewest nodes without which no path leads from the source to the sink: every subset of the nodes is looked at.

    Source and sink are nodes next to an end beyond the graph, so that they may be among the nodes that are taken out.
    """

    def is_cut(taken: set[int]) -> bool:
        neighbours, frontier = neighbours_of(n, edges), list(source - taken)
        reached = set(frontier)
        while frontier:
            new = neighbours[frontier.pop()] - reached - taken
            reached |= new
            frontier.extend(new)
        return not reached & sink

    return next(k for k in range(n + 1) if any(is_cut(set(taken)) for taken in itertools.combinations(range(n), k)))


def work(n: int, edges: Edges, order: list[int]) -> int:
    """Σ c_j², c_j the number of entries in column j of the factor."""
    return int((filled(pattern(n, permuted(n, edges, order))).sum(axis=0) ** 2).sum())


def graph_order(n: int, edges: Edges) -> list[int]:
    """An order without fill if there is one, else minimum degree: of graphs that are too small for dissection."""
    perfect = maximum_cardinality(n, edges)
    return perfect if is_perfect(n, edges, perfect) else minimum_degree(n, edges)


def grid_order(shape: tuple[int, ...]) -> list[int]:
    """The better of the two orders in `work`, minimum degree on a tie: of grids that are not large."""
    n, edges = math.prod(shape), grid(shape)
    return min(minimum_degree(n, edges), lattice_dissection(shape), key=lambda order: work(n, edges, order))
