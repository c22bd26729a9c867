"""Kernels of nested dissection: parts of a graph, and the lattices whose separators are known beforehand.

A graph enters as `indptr, neighbours`, both directions; see `separators`. The recursion over the parts of a graph is
`graph.dissection`; over those of a lattice it is here, where nothing but the levels of a part needs to be known.
"""

from __future__ import annotations

import numpy as np

from sparseggm.kernels import INNER, KERNEL, njit


@njit(**KERNEL)
def induced(indptr, neighbours, chosen, count, number):
    """`indptr, neighbours` of the subgraph on the chosen nodes, numbered as they are listed; neighbours ascending.

    Edges between two nodes after the first `count` are left out. `number` holds −1 for every node, before and after.
    """
    size = chosen.shape[0]
    for t in range(size):
        number[chosen[t]] = t
    starts = np.zeros(size + 1, np.int64)
    for t in range(count):
        for p in range(indptr[chosen[t]], indptr[chosen[t] + 1]):
            u = number[neighbours[p]]
            if u >= 0:
                starts[u + 1] += 1
                starts[t + 1] += u >= count
    for t in range(size):
        starts[t + 1] += starts[t]
    slots, inside = starts.copy(), np.empty(starts[size], np.int32)
    for t in range(count):
        for p in range(indptr[chosen[t]], indptr[chosen[t] + 1]):
            u = number[neighbours[p]]
            if u >= 0:
                inside[slots[u]] = t
                slots[u] += 1
                if u >= count:
                    inside[slots[t]] = u
                    slots[t] += 1
    for t in range(size):
        number[chosen[t]] = -1
    return starts, inside


@njit(**KERNEL)
def with_neighbours(indptr, neighbours, nodes, number):
    """The nodes, and after them their neighbours, each once. `number` as in `induced`."""
    size = nodes.shape[0]
    most = size
    for v in nodes:
        number[v] = 0
        most += indptr[v + 1] - indptr[v]
    chosen = np.empty(most, np.int64)
    for t in range(size):
        chosen[t] = nodes[t]
    for v in nodes:
        for p in range(indptr[v], indptr[v + 1]):
            u = neighbours[p]
            if number[u] < 0:
                number[u] = 0
                chosen[size] = u
                size += 1
    for t in range(size):
        number[chosen[t]] = -1
    return chosen[:size]


@njit(**KERNEL)
def dissect_by_levels(levels, order):
    """Reorder the nodes by nested dissection, where every separator is a level of one of the functions levels[k].

    Joined nodes differ by at most one in each function, so that a level parts what is below it from what is above.
    That level is taken which has the fewest nodes for the product of the two sides, the first such (a *ratio cut*).
    Where none has two sides, the smallest is taken: what remains is then a single level, without edges.
    """
    n = order.shape[0]
    scratch, counts, ends = np.empty(n, np.int64), np.zeros(n, np.int64), np.empty((n + 1, 2), np.int64)
    ends[0, 0], ends[0, 1], parts = 0, n, 1
    while parts > 0:
        parts -= 1
        first, last = ends[parts, 0], ends[parts, 1]
        size = last - first
        if size < 2:
            continue
        nodes = order[first:last]
        best, function, level = np.inf, 0, 0
        for k in range(levels.shape[0]):
            low = high = levels[k, nodes[0]]
            for v in nodes:
                f = levels[k, v]
                counts[f] += 1
                low, high = min(low, f), max(high, f)
            below = 0
            for f in range(low, high + 1):
                product = below * (size - below - counts[f])
                ratio = counts[f] / product if product > 0 else 1.0 * (size + counts[f])
                if ratio < best:
                    best, function, level = ratio, k, f
                below += counts[f]
                counts[f] = 0
        below, on = split(levels[function], level, nodes, scratch)
        ends[parts, 0], ends[parts, 1] = first, first + below
        ends[parts + 1, 0], ends[parts + 1, 1] = first + below, last - on
        parts += 2


@njit(**INNER)
def split(levels, level, nodes, scratch):
    """Nodes below the level first, above it next, on it last, as listed within each: how many below, and on it."""
    size = nodes.shape[0]
    below = on = 0
    for v in nodes:
        below += levels[v] < level
        on += levels[v] == level
    i, j, k = 0, below, size - on
    for v in nodes:
        if levels[v] < level:
            scratch[i] = v
            i += 1
        elif levels[v] > level:
            scratch[j] = v
            j += 1
        else:
            scratch[k] = v
            k += 1
    for t in range(size):
        nodes[t] = scratch[t]
    return below, on
