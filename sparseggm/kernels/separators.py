"""Separators: nodes without which a graph falls into two sides that no edge joins. Nested dissection is made of them.

A graph enters as `indptr, neighbours`: the neighbours of every node, both directions. A smallest separator of two sets
has as many nodes as there are paths between them without a common node [Menger 1927]: `vertex_cut` finds both.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from sparseggm.kernels import INNER, KERNEL, njit

BELOW, ABOVE, SEPARATOR = 0, 1, 2
"""The sides of a separator, and itself."""

FREE, END = -1, -2
"""In place of the node before or after it on a path: the node is on none; the path begins or ends there."""


@njit(**KERNEL)
def components(indptr, neighbours, component):
    """Number the connected components by their first nodes. Returns how many there are, and the node found last.

    `component` is that of each node; in each, nodes are found by their distance from the first.
    """
    n = component.shape[0]
    queue = np.empty(n, np.int32)
    for v in range(n):
        component[v] = -1
    found = size = 0
    for first in range(n):
        if component[first] >= 0:
            continue
        component[first] = found
        queue[0] = first
        at, size = 0, 1
        while at < size:
            v = queue[at]
            at += 1
            for p in range(indptr[v], indptr[v + 1]):
                u = neighbours[p]
                if component[u] < 0:
                    component[u] = found
                    queue[size] = u
                    size += 1
        found += 1
    return found, queue[size - 1]


@njit(**KERNEL)
def distances(indptr, neighbours, first, distance):
    """Distance of every node of a connected graph from the first. Returns the last of the farthest."""
    n = distance.shape[0]
    queue = np.empty(n, np.int32)
    for v in range(n):
        distance[v] = -1
    distance[first] = 0
    queue[0] = first
    size = 1
    for at in range(n):
        v = queue[at]
        for p in range(indptr[v], indptr[v + 1]):
            u = neighbours[p]
            if distance[u] < 0:
                distance[u] = distance[v] + 1
                queue[size] = u
                size += 1
    return queue[n - 1]


@njit(**KERNEL)
def sort_by(keys, nodes):
    """Sort the nodes by their keys, small integers; ties by number."""
    low = high = keys[0]
    for key in keys:
        low, high = min(low, key), max(high, key)
    starts = np.zeros(high - low + 2, np.int64)
    for key in keys:
        starts[key - low + 1] += 1
    for k in range(high - low + 1):
        starts[k + 1] += starts[k]
    for v in range(keys.shape[0]):
        nodes[starts[keys[v] - low]] = v
        starts[keys[v] - low] += 1


@njit(**KERNEL)
def frontiers(indptr, neighbours, sides):
    """How many nodes BELOW have a neighbour ABOVE, and how many ABOVE one BELOW."""
    counts = np.zeros(2, np.int64)
    for v in range(sides.shape[0]):
        if sides[v] == SEPARATOR:
            continue
        for p in range(indptr[v], indptr[v + 1]):
            if sides[neighbours[p]] == 1 - sides[v]:
                counts[sides[v]] += 1
                break
    return counts


@njit(**KERNEL)
def is_next_to(indptr, neighbours, sides, side, nodes):
    """Which of the nodes have a neighbour on a side."""
    out = np.zeros(nodes.shape[0], np.bool_)
    for t in range(nodes.shape[0]):
        for p in range(indptr[nodes[t]], indptr[nodes[t] + 1]):
            if sides[neighbours[p]] == side:
                out[t] = True
                break
    return out


class Paths(NamedTuple):
    """Paths from a source to a sink without a common node: their graph, which nodes are next to the ends, the paths."""

    indptr: Any
    neighbours: Any
    from_source: Any
    to_sink: Any
    before: Any
    after: Any


@njit(**KERNEL)
def vertex_cut(indptr, neighbours, from_source, to_sink, sides):
    """Cut the source off the sink by the fewest nodes there are: how many.

    `from_source` and `to_sink` say which nodes are next to them; a node may be next to both. As many paths as possible
    without a common node are found [Even 1979, §6.2], depth first, the highest number first. Of the smallest cuts the
    one nearest to the source and the one nearest to the sink are compared. That is taken whose smaller side is the
    larger, the first on a tie; `sides` is BELOW towards the source.
    """
    n = from_source.shape[0]
    before, after = np.full(n, FREE, np.int32), np.full(n, FREE, np.int32)
    forwards = Paths(indptr, neighbours, from_source, to_sink, before, after)
    backwards = Paths(indptr, neighbours, to_sink, from_source, after, before)
    seen, edge, path = np.empty(2 * n, np.bool_), np.empty(n, np.int64), np.empty(2 * n, np.int32)
    size, found = 0, 1
    while found > 0:
        found = search(forwards, seen, edge, path)
        size += found
    above = 0
    for v in range(n):
        sides[v] = BELOW if seen[v + n] else (SEPARATOR if seen[v] else ABOVE)
        above += sides[v] == ABOVE
    search(backwards, seen, edge, path)  # finds none; what it sees is above
    below = 0
    for v in range(n):
        below += not seen[v]
    if min(below, n - size - below) > min(above, n - size - above):
        for v in range(n):
            sides[v] = ABOVE if seen[v + n] else (SEPARATOR if seen[v] else BELOW)
    return size


@njit(**INNER)
def search(paths, seen, edge, path):
    """Search once from every node next to the source, no state twice, and add what reaches the sink: how many."""
    n = paths.before.shape[0]
    for v in range(n):
        seen[v] = seen[v + n] = False
        edge[v] = paths.indptr[v + 1]
    found = 0
    for root in range(n):
        if paths.from_source[root] and not seen[root]:
            last = walk(paths, seen, edge, path, root)
            if last >= 0:
                exchange(paths, path, last)
                found += 1
    return found


@njit(**INNER)
def walk(paths, seen, edge, path, root):
    """Walk from the root to the sink: the place of the last state in `path`, or −1.

    There are 2n states: a walk arrives at a node v (state v) and leaves it (state v + n). From a node of a path it goes
    back along that, to the node before, and leaves this one for another, or goes back further.
    """
    n, last = paths.before.shape[0], 0
    path[0] = root
    seen[root] = True
    while last >= 0:
        state, onward = path[last], -1
        v = state % n
        if state < n:
            if paths.after[v] == FREE:
                onward = v + n
            elif paths.before[v] != END:
                onward = paths.before[v] + n
            if onward >= 0 and seen[onward]:
                onward = -1
        elif paths.to_sink[v] and paths.after[v] != END:
            return last
        else:
            while onward < 0 and edge[v] > paths.indptr[v]:
                edge[v] -= 1
                u = paths.neighbours[edge[v]]
                if u != paths.after[v] and not seen[u]:
                    onward = u
            if onward < 0 and paths.after[v] != FREE and not seen[v]:
                onward = v
        last += 1
        if onward < 0:
            last -= 2
        else:
            seen[onward] = True
            path[last] = onward
    return last


@njit(**INNER)
def exchange(paths, path, last):
    """Add a walk to the paths; where it goes back along one of them, the two exchange their ends."""
    n = paths.before.shape[0]
    for d in range(last):
        v, w = path[d], path[d + 1] - n
        if v < n and v != w:
            paths.before[v] = paths.after[w] = FREE
    paths.before[path[0]] = END
    for d in range(last):
        v, w = path[d] - n, path[d + 1]
        if v >= 0 and v != w:
            paths.after[v], paths.before[w] = w, v
    paths.after[path[last] - n] = END
