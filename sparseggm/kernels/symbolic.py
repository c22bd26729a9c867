"""Symbolic kernels: transposition, fill, orders of nodes, colouring. No values, no checks.

A lower pattern enters as `indptr, rows` (columns in order, the diagonal first). Its rows are listed by
`transpose`; symbolic elimination works row by row [Davis 2006, §4.3-4.4; Liu 1990].
"""

from __future__ import annotations

import heapq

import numpy as np

from sparseggm.kernels import INNER, KERNEL, njit

MOST = np.iinfo(np.int64).max


@njit(**KERNEL)
def transpose(indptr, rows, row_indptr, row_cols, row_positions):
    """List the strictly lower entries row by row: their columns (ascending) and their packed positions."""
    n = indptr.shape[0] - 1
    for j in range(n):
        for p in range(indptr[j] + 1, indptr[j + 1]):
            row_indptr[rows[p] + 1] += 1
    for i in range(n):
        row_indptr[i + 1] += row_indptr[i]
    next_slot = row_indptr[:-1].copy()
    for j in range(n):
        for p in range(indptr[j] + 1, indptr[j + 1]):
            slot = next_slot[rows[p]]
            row_cols[slot] = j
            row_positions[slot] = p
            next_slot[rows[p]] += 1


@njit(**KERNEL)
def group_columns(indptr, rows, row_indptr, row_cols, row_positions, groups):
    """groups[t] = 4, 2 or 1: from entry t on, so many entries of its row stand in columns that agree from that row on.

    An entry inside a group has 0. Where j + 1 is the first row below the diagonal of column j, column j + 1 has all
    further rows of column j; if it has equally many, they agree.
    """
    for k in range(indptr.shape[0] - 1):
        t, stop = row_indptr[k], row_indptr[k + 1]
        while t < stop:
            length = 1
            while length < 4 and t + length < stop:
                s = t + length
                j = row_cols[s - 1]
                agree = rows[indptr[j] + 1] == j + 1 and row_cols[s] == j + 1
                if not agree or indptr[j + 2] - row_positions[s] != indptr[j + 1] - row_positions[s - 1]:
                    break
                length += 1
            length = min(length, 2) if length < 4 else 4
            groups[t] = length
            t += length


@njit(**KERNEL)
def fill_counts(row_indptr, row_cols, parent, counts, first=0, limit=MOST):
    """Elimination tree, and the number of entries in each column of the Cholesky factor.

    Row k of L is the union of the tree paths from the columns of row k of P up to k: O(nnz(L)). Returns the number of
    entries in the columns from `first` on, and stops after the row where this number exceeds `limit`.
    """
    n = row_indptr.shape[0] - 1
    total = 0
    seen_by = np.empty(n, np.int64)
    for k in range(n):
        parent[k] = -1
        counts[k] = 1
        seen_by[k] = k
        for t in range(row_indptr[k], row_indptr[k + 1]):
            j = row_cols[t]
            while seen_by[j] != k:
                if parent[j] == -1:
                    parent[j] = k
                counts[j] += 1
                total += j >= first
                seen_by[j] = k
                j = parent[j]
        total += k >= first
        if total > limit:
            break
    return total


@njit(**KERNEL)
def fill_rows(row_indptr, row_cols, parent, indptr, rows):
    """Row indices of the Cholesky factor; they come out sorted, because row k is appended after row k − 1."""
    n = row_indptr.shape[0] - 1
    seen_by = np.empty(n, np.int64)
    next_slot = indptr[:-1].copy()
    for k in range(n):
        seen_by[k] = k
        rows[next_slot[k]] = k
        next_slot[k] += 1
        for t in range(row_indptr[k], row_indptr[k + 1]):
            j = row_cols[t]
            while seen_by[j] != k:
                rows[next_slot[j]] = k
                next_slot[j] += 1
                seen_by[j] = k
                j = parent[j]


@njit(**KERNEL)
def locate(indptr, rows, wanted_rows, wanted_cols, positions):
    """positions[q] = the place of entry (wanted_rows[q], wanted_cols[q]); −1 where there is none."""
    for q in range(positions.shape[0]):
        i, j = wanted_rows[q], wanted_cols[q]
        positions[q] = -1
        if 0 <= j < indptr.shape[0] - 1:
            low, high = indptr[j], indptr[j + 1]
            while low < high:
                middle = (low + high) // 2
                if rows[middle] < i:
                    low = middle + 1
                else:
                    high = middle
            if low < indptr[j + 1] and rows[low] == i:
                positions[q] = low


@njit(**KERNEL)
def minimum_degree(indptr, neighbours, count):
    """Eliminate a node of least degree in the graph that elimination has made so far; ties to the lowest number.

    Only the first `count` nodes are eliminated; the others count in degrees.

    `indptr, neighbours` list the neighbours of every node, both directions. The graph is kept as a quotient graph
    [George & Liu 1981, §5.5]: an eliminated node becomes an *element*, the clique of its neighbours; elements
    that it touched are absorbed, so that memory never grows past that of the input. Degrees are exact.
    """
    n = indptr.shape[0] - 1
    variables = neighbours.copy()  # of each node: neighbours that share no element with it
    start = indptr[:-1].copy()
    num_variables = indptr[1:] - indptr[:-1]
    elements = [np.empty(0, np.int64) for _ in range(n)]  # of each node: the elements it belongs to
    members = [np.empty(0, np.int64) for _ in range(n)]  # of each element: its nodes
    degree = num_variables.astype(np.int64)
    absorbed = np.zeros(n, np.bool_)
    eliminated = np.zeros(n, np.bool_)
    mark = np.full(n, -1, np.int64)
    stamp = 0
    clique = np.empty(n, np.int64)
    order = np.empty(count, np.int64)
    heap = [degree[v] * n + v for v in range(count)]
    heapq.heapify(heap)
    for k in range(count):
        while True:  # entries of a changed degree stay behind in the heap, and are passed over
            code = heapq.heappop(heap)
            v = code % n
            if not eliminated[v] and code // n == degree[v]:
                break
        eliminated[v] = True
        order[k] = v
        # The clique of v: its variables and the members of its elements, which v absorbs.
        mark[v] = stamp
        size = 0
        for t in range(start[v], start[v] + num_variables[v]):
            u = variables[t]
            mark[u] = stamp
            clique[size] = u
            size += 1
        for e in elements[v]:
            absorbed[e] = True
            for u in members[e]:
                if not eliminated[u] and mark[u] != stamp:
                    mark[u] = stamp
                    clique[size] = u
                    size += 1
            members[e] = np.empty(0, np.int64)
        members[v] = clique[:size].copy()
        clique_stamp = stamp
        stamp += 1
        # Each of them forgets v, neighbours now reached through v, and absorbed elements.
        for u in members[v]:
            kept = 0
            for t in range(start[u], start[u] + num_variables[u]):
                if mark[variables[t]] != clique_stamp:
                    variables[start[u] + kept] = variables[t]
                    kept += 1
            num_variables[u] = kept
            alive = 1
            for e in elements[u]:
                if not absorbed[e]:
                    alive += 1
            own = np.empty(alive, np.int64)
            own[0] = v
            alive = 1
            for e in elements[u]:
                if not absorbed[e]:
                    own[alive] = e
                    alive += 1
            elements[u] = own
        # New degrees: |variables| + |union of the elements|; the clique of v is marked once for all.
        for u in members[v]:
            if u >= count:
                continue
            reached = num_variables[u] + size - 1
            for e in elements[u][1:]:
                for w in members[e]:
                    if not eliminated[w] and mark[w] != clique_stamp and mark[w] != stamp:
                        mark[w] = stamp
                        reached += 1
            stamp += 1
            if reached != degree[u]:
                degree[u] = reached
                heapq.heappush(heap, reached * n + u)
    return order


@njit(**KERNEL)
def maximum_cardinality(indptr, neighbours, perfect):
    """Visit, each time, a node with most visited neighbours, ties to the highest number; the reverse of that order.

    With `perfect` the order is empty if it has fill. It has none if the visited neighbours of every node are joined to
    the last of them [Tarjan & Yannakakis 1984]; the first node where one is not ends the search.
    """
    n = indptr.shape[0] - 1
    visited_neighbours = np.zeros(n, np.int64)
    visited = np.zeros(n, np.bool_)
    order, place = np.empty(n, np.int64), np.full(n, n, np.int64)
    heap = [n - 1 - v for v in range(n - 1, -1, -1)]  # code (−count) · n + (n − 1 − v); increasing, so a heap
    for k in range(n - 1, -1, -1):
        while True:  # entries of an old count stay behind in the heap, and are passed over
            code = heapq.heappop(heap)
            v = n - 1 - code % n
            if not visited[v] and (code - (n - 1 - v)) // n == -visited_neighbours[v]:
                break
        if perfect and not joined_to_last(indptr, neighbours, place, v):
            return order[:0]
        visited[v] = True
        order[k] = v
        place[v] = k
        for t in range(indptr[v], indptr[v + 1]):
            u = neighbours[t]
            if not visited[u]:
                visited_neighbours[u] += 1
                heapq.heappush(heap, -visited_neighbours[u] * n + (n - 1 - u))
    return order


@njit(**INNER)
def joined_to_last(indptr, neighbours, place, v):
    """Whether the visited neighbours of a node are joined to the last visited of them, that of the least place."""
    n, last = place.shape[0], -1
    for t in range(indptr[v], indptr[v + 1]):
        u = neighbours[t]
        if place[u] < n and (last < 0 or place[u] < place[last]):
            last = u
    for t in range(indptr[v], indptr[v + 1]):
        u = neighbours[t]
        if place[u] < n and u != last:
            low, high = indptr[last], indptr[last + 1]
            while low < high:  # the first neighbour of the last that is not below u
                middle = (low + high) // 2
                if neighbours[middle] < u:
                    low = middle + 1
                else:
                    high = middle
            if low == indptr[last + 1] or neighbours[low] != u:
                return False
    return True


@njit(**KERNEL)
def breadth_first(indptr, neighbours):
    """Nodes by distance from the first of their component, neighbours in the order listed; components by first node."""
    n = indptr.shape[0] - 1
    order = np.empty(n, np.int64)
    seen = np.zeros(n, np.bool_)
    size = 0
    for first in range(n):
        if seen[first]:
            continue
        seen[first] = True
        order[size] = first
        at = size
        size += 1
        while at < size:
            v = order[at]
            at += 1
            for t in range(indptr[v], indptr[v + 1]):
                u = neighbours[t]
                if not seen[u]:
                    seen[u] = True
                    order[size] = u
                    size += 1
    return order


@njit(**KERNEL)
def distance_colouring(indptr, neighbours, order, distance):
    """Give each node, in this order, the least colour that no node within `distance` edges has; colours from 0.

    Each node takes one breadth-first search, so the work is that of all edges in all balls. A node may list itself.
    """
    n = indptr.shape[0] - 1
    colours = np.full(n, -1, np.int64)
    seen_by = np.full(n, -1, np.int64)  # of each node: the last node whose search met it
    taken_for = np.full(n, -1, np.int64)  # of each colour: the last node that may not have it
    ball = np.empty(n, np.int64)
    for v in order:
        seen_by[v] = v
        ball[0] = v
        begin, size = 0, 1
        for _ in range(distance):
            end = size
            for t in range(begin, end):
                for s in range(indptr[ball[t]], indptr[ball[t] + 1]):
                    u = neighbours[s]
                    if seen_by[u] != v:
                        seen_by[u] = v
                        ball[size] = u
                        size += 1
                        if colours[u] >= 0:
                            taken_for[colours[u]] = v
            if size == end:  # the whole component is in the ball
                break
            begin = end
        least = 0
        while taken_for[least] == v:
            least += 1
        colours[v] = least
    return colours
