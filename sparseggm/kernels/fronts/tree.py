"""The tree of supernodes: which columns of L are eliminated together, in one dense front, and in what order.

A *supernode* is a set of columns on paths of the elimination tree; its *front* is the dense matrix of these columns and
of the rows below the last of them [Duff & Reid 1983]. Columns of the same structure below the diagonal form one; others
join where the zeros that the front then holds cost less than a front of their own [Ashcraft & Grimes 1989].
"""

from __future__ import annotations

import numpy as np

from sparseggm.kernels import INNER, KERNEL, njit

ENTRY_WORK = 40.0
"""Multiply-adds that assembling one entry of a front is worth."""

FRONT_WORK = 10_000.0
"""Multiply-adds that a front of one entry is worth."""


@njit(**INNER)
def front_work(width, below):
    """The cost of a front of `width` columns and as many rows and `below` more, in multiply-adds of dense matrices."""
    m = width + below
    squares = m * (m + 1.0) * (2.0 * m + 1.0) - below * (below + 1.0) * (2.0 * below + 1.0)
    return squares / 6.0 + ENTRY_WORK * (m * width + below * below) + FRONT_WORK


@njit(**KERNEL)
def merge_columns(indptr, last, width):
    """last[j] = the last column of j's supernode, width[last[j]] = how many it has. Returns the sum of `front_work`.

    `last` holds the parent of each column in the elimination tree, −1 for a root. Columns go up the tree, and each
    joins the supernode of its parent where the one front costs no more than the two.
    """
    n = indptr.shape[0] - 1
    parent = last.copy()
    work = 0.0
    for j in range(n):
        last[j], width[j] = j, 1
    for j in range(n):
        below = indptr[j + 1] - indptr[j] - 1
        alone = front_work(width[j], below)
        work += alone
        k = parent[j]  # still the last of its supernode, as columns join in order
        if k < 0:
            continue
        below_k = indptr[k + 1] - indptr[k] - 1
        if front_work(width[j] + width[k], below_k) <= alone + front_work(width[k], below_k):
            last[j] = k
            width[k] += width[j]
            work -= alone
    for j in range(n - 1, -1, -1):
        last[j] = last[last[j]]
    return work


@njit(**KERNEL)
def number_fronts(indptr, parent, last, width, front_indptr, columns, child_indptr, children):
    """Number the supernodes so that children come before parents, and each subtree without a gap: in postorder.

    Returns their number; the most rows of a front, and the most entries in the columns of one; and the most numbers
    that wait for a parent at one time, each child leaving the lower triangle of its rows below.
    """
    n = indptr.shape[0] - 1
    first_child, sibling, root = np.full(n, -1), np.full(n, -1), -1
    for j in range(n - 1, -1, -1):
        if last[j] != j:
            continue
        if parent[j] < 0:
            sibling[j], root = root, j
        else:
            above = last[parent[j]]
            sibling[j], first_child[above] = first_child[above], j
    order, number = np.empty(n, np.int64), np.empty(n, np.int64)
    count = _visit(root, first_child, sibling, order, number)
    front_indptr[0] = child_indptr[0] = 0
    largest, panel, waiting, most = 0, 0, 0, 0
    for s in range(count):
        j = order[s]
        front_indptr[s + 1], c, child = front_indptr[s] + width[j], child_indptr[s], first_child[j]
        while child >= 0:
            children[c] = number[child]
            waiting -= triangle(indptr, child)
            c += 1
            child = sibling[child]
        child_indptr[s + 1] = c
        waiting += triangle(indptr, j)
        m = width[j] + indptr[j + 1] - indptr[j] - 1
        largest, panel, most = max(largest, m), max(panel, m * width[j]), max(most, waiting)
    place = front_indptr[:count].copy()
    for j in range(n):
        s = number[last[j]]
        columns[place[s]] = j
        place[s] += 1
    return count, largest, panel, most


@njit(**INNER)
def _visit(root, first_child, sibling, order, number):
    """order[s] = the s-th column that is left for good, number its inverse; `root` is the first. Returns how many."""
    path, unvisited, count = np.empty(order.shape[0], np.int64), first_child.copy(), 0
    while root >= 0:
        path[0], depth = root, 1
        while depth:
            j = path[depth - 1]
            child = unvisited[j]
            if child >= 0:
                path[depth] = child
                unvisited[j] = sibling[child]
                depth += 1
            else:
                order[count], number[j] = j, count
                count += 1
                depth -= 1
        root = sibling[root]
    return count


@njit(**INNER)
def triangle(indptr, j):
    """Entries of the lower triangle of the rows below column j."""
    below = indptr[j + 1] - indptr[j] - 1
    return below * (below + 1) // 2
