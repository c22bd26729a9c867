"""Cholesky factorisation and selected inverse of one large matrix by dense fronts, along the tree of supernodes.

The factorisation goes up the tree [Duff & Reid 1983; Liu 1992]: a front takes P in its columns and what its children
have left, eliminates its columns, and leaves the update of its rows below on a stack. The inverse goes down [Campbell &
Davis 1995]: a front takes W on its rows below from the stack, computes W in its columns, and leaves each child the part
that it needs. Both are for patterns of which a lane each would not stay in cache; rows of a batch go one by one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from sparseggm.kernels import INNER, KERNEL, njit
from sparseggm.kernels.chain.recurrences import SMALL_PIVOT, small_share
from sparseggm.kernels.fronts.dense import at, eliminate, invert
from sparseggm.kernels.lanes.blocks import bad_numbers, bad_pivots, new_block
from sparseggm.kernels.lanes.vector import full_like, lanes_of, square_root


class Tree(NamedTuple):
    """Supernodes, children before parents."""

    indptr: Any
    columns: Any
    """columns[indptr[s] : indptr[s + 1]], increasing: those of supernode s. Its rows below are those of the last."""
    child_indptr: Any
    children: Any
    largest: int
    """Rows of the largest front."""
    panel: int
    """Most entries of a front in its columns."""
    waiting: int
    """Most numbers that lie on the stack."""

    @property
    def scratch(self) -> int:
        """Numbers that a thread needs beside its arguments and results."""
        return self.largest**2 + self.panel + self.waiting


class Memory(NamedTuple):
    """Scratch, for one front after the other."""

    block: Any
    panel: Any
    stack: Any
    threshold: Any
    corner: Any
    lower: Any
    slot: Any
    """The row of the front that each node is."""
    place: Any
    """Of each row of the front, where its first entry stands: the entry in column k is k · lanes further."""
    target: Any
    """The same for the rows below a child."""


class Front(NamedTuple):
    """Front s: its block, the same memory as a 1-D array, its columns and rows, and where its rows below begin."""

    block: Any
    numbers: Any
    threshold: Any
    first: int
    width: int
    m: int
    below: int


@njit(**INNER)
def _new_memory(tree, n, panel, like):
    lanes, m = lanes_of(like), tree.largest
    rows = (m + lanes - 1) // lanes * lanes
    of_front = new_block(rows // lanes * m, like), np.empty(panel, like.dtype), np.empty(tree.waiting, like.dtype)
    small = np.zeros(rows, like.dtype), np.empty((4, 4), like.dtype), np.empty((4, 4), like.dtype)
    return Memory(*of_front, *small, np.empty(n, np.int64), np.empty(m, np.int64), np.empty(m, np.int64))


@njit(**INNER)
def _enter(tree, s, indptr, rows, lanes, memory):
    """Front s, its rows numbered."""
    first, width = tree.indptr[s], tree.indptr[s + 1] - tree.indptr[s]
    begin, stop = _rows_below(tree, s, indptr)
    m = width + stop - begin
    for c in range(width):
        memory.slot[tree.columns[first + c]] = c
    for i in range(width, m):
        memory.slot[rows[begin + i - width]] = i
    for i in range(m):
        memory.place[i] = at(m, lanes, i, 0)
    blocks = (m + lanes - 1) // lanes
    block = memory.block[: blocks * m]
    return Front(block, block.reshape(block.size), memory.threshold[: blocks * lanes], first, width, m, begin)


@njit(**INNER)
def _rows_below(tree, s, indptr):
    """Where the rows below supernode s stand among all rows."""
    last = tree.columns[tree.indptr[s + 1] - 1]
    return indptr[last] + 1, indptr[last + 1]


@njit(**INNER)
def _find_rows(rows, begin, stop, memory):
    """Where the rows below a child stand in the front."""
    for i in range(stop - begin):
        memory.target[i] = memory.place[memory.slot[rows[begin + i]]]


# ---------------------------------------------------------------------- factorisation


@njit(**KERNEL)
def cholesky(p_indptr, p_rows, indptr, rows, tree, precision, factor, columns, first, last):
    """L on the closed pattern (indptr, rows), of P on (p_indptr, p_rows). Nonzero status: a row failed, or may have.

    columns[r] becomes −1; or 0 if row r failed, in whatever column; or `SMALL_PIVOT` as in `sparse.cholesky`.
    """
    memory, status = _new_memory(tree, indptr.shape[0] - 1, 0, precision), 0
    for r in range(first, last):
        columns[r] = _factorise(p_indptr, p_rows, indptr, rows, tree, precision[r], factor[r], memory)
        status |= columns[r] != -1
    return status


@njit(**INNER)
def _factorise(p_indptr, p_rows, indptr, rows, tree, P, L, memory):
    """Overwrite L. Returns 0 if a pivot fails, where it stops; `SMALL_PIVOT`; or −1."""
    lanes, end, result = lanes_of(P), 0, -1
    share = small_share(P)
    for s in range(tree.indptr.shape[0] - 1):
        front = _enter(tree, s, indptr, rows, lanes, memory)
        _take_precision(p_indptr, p_rows, rows, tree, front, P, lanes, memory)
        for x in range(tree.child_indptr[s + 1] - 1, tree.child_indptr[s] - 1, -1):
            end = _take_update(*_rows_below(tree, tree.children[x], indptr), rows, front.numbers, lanes, end, memory)
        if not eliminate(front.block, front.numbers, front.m, front.width, front.threshold, memory.corner):
            return 0
        for c in range(front.width):
            j = tree.columns[front.first + c]
            for p in range(indptr[j], indptr[j + 1]):
                L[p] = front.numbers[memory.place[memory.slot[rows[p]]] + c * lanes]
            if not L[indptr[j]] * L[indptr[j]] > share * P[p_indptr[j]]:
                result = SMALL_PIVOT
        for k in range(front.width, front.m):
            for i in range(k, front.m):
                memory.stack[end] = front.numbers[memory.place[i] + k * lanes]
                end += 1
    return result


@njit(**INNER)
def _take_precision(p_indptr, p_rows, rows, tree, front, P, lanes, memory):
    """P in the columns of the front, zeros elsewhere, and √tiny √P_ii of each row."""
    negligible = square_root(full_like(P, np.finfo(P.dtype).tiny))
    front.numbers[:] = 0.0
    for c in range(front.width):
        j = tree.columns[front.first + c]
        front.threshold[c] = negligible * square_root(P[p_indptr[j]])  # NaN where P_jj < 0: fails as a pivot
        for p in range(p_indptr[j], p_indptr[j + 1]):
            front.numbers[memory.place[memory.slot[p_rows[p]]] + c * lanes] = P[p]
    for i in range(front.width, front.m):
        front.threshold[i] = negligible * square_root(P[p_indptr[rows[front.below + i - front.width]]])


@njit(**INNER)
def _take_update(begin, stop, rows, numbers, lanes, end, memory):
    """Add what a child left on top of the stack. Returns where the stack ends now.

    Rows below a child increase, and so do their rows in the front: the lower triangle comes to lie in the lower one.
    """
    _find_rows(rows, begin, stop, memory)
    stack, target = memory.stack, memory.target
    end -= (stop - begin) * (stop - begin + 1) // 2
    p = end
    for k in range(stop - begin):
        right = memory.slot[rows[begin + k]] * lanes
        for i in range(k, stop - begin):
            numbers[target[i] + right] += stack[p]
            p += 1
    return end


# ---------------------------------------------------------------------- selected inverse


@njit(**KERNEL)
def sweep(is_covariance, variances_only, indptr, rows, tree, chosen, a, b, values, first, last):
    """values = Σ, or its diagonal, for a = L on a closed pattern; or tril(W L) = b solved for W, with W_jj halved.

    See `sparse.inverse`. If `chosen` is not empty, only those entries of W are given. Nonzero status: something is not
    finite, or a pivot not positive.
    """
    n, some, bad = indptr.shape[0] - 1, chosen.shape[0] > 0, 0
    memory, whole = _new_memory(tree, n, tree.panel, a), np.empty(rows.shape[0] if some else 0, a.dtype)
    for r in range(first, last):
        bad += bad_pivots(indptr, a[r], n)
        W = whole if some else values[r]
        _invert(is_covariance, variances_only, indptr, rows, tree, a[r], b[r], W, memory)
        for p in range(chosen.shape[0]):
            values[r, p] = whole[chosen[p]]
        bad += bad_numbers(values[r])
    return bad


@njit(**INNER)
def _invert(is_covariance, variances_only, indptr, rows, tree, L, X, W, memory):
    """Overwrite W by Σ or its diagonal; or by W of tril(W L) = X with its diagonal halved."""
    lanes, end = lanes_of(L), 0
    half = full_like(L, 1.0 if is_covariance else 0.5)
    for s in range(tree.indptr.shape[0] - 2, -1, -1):
        front = _enter(tree, s, indptr, rows, lanes, memory)
        end = _take_inverse(is_covariance, front, lanes, end, memory)
        panel = memory.panel[: front.m * front.width]
        panel[:] = 0.0
        for c in range(front.width):
            j = tree.columns[front.first + c]
            for p in range(indptr[j], indptr[j + 1]):
                panel[memory.slot[rows[p]] * front.width + c] = L[p]
                if not is_covariance:
                    front.numbers[memory.place[memory.slot[rows[p]]] + c * lanes] = X[p]
            if is_covariance:
                front.numbers[memory.place[c] + c * lanes] = full_like(L, 1.0) / L[indptr[j]]
        sizes = front.m, front.width, front.threshold, memory.corner, memory.lower
        invert(is_covariance, front.block, front.numbers, panel, *sizes)
        for c in range(front.width):
            j = tree.columns[front.first + c]
            if variances_only:
                W[j] = front.numbers[memory.place[c] + c * lanes]
                continue
            for p in range(indptr[j], indptr[j + 1]):
                W[p] = front.numbers[memory.place[memory.slot[rows[p]]] + c * lanes]
            W[indptr[j]] *= half
        for x in range(tree.child_indptr[s], tree.child_indptr[s + 1]):
            end = _leave_inverse(*_rows_below(tree, tree.children[x], indptr), rows, front.numbers, lanes, end, memory)


@njit(**INNER)
def _take_inverse(is_covariance, front, lanes, end, memory):
    """W on the rows below, from the top of the stack, zeros elsewhere. Returns where the stack ends now."""
    small = square_root(full_like(memory.stack, np.finfo(memory.stack.dtype).tiny))
    below = front.m - front.width
    front.numbers[:], front.threshold[:] = 0.0, 0.0
    end -= below * (below + 1) // 2
    p = end
    for k in range(front.width, front.m):
        if is_covariance:
            front.threshold[k] = small * square_root(memory.stack[p])
        for i in range(k, front.m):
            front.numbers[memory.place[i] + k * lanes] = memory.stack[p]
            front.numbers[memory.place[k] + i * lanes] = memory.stack[p]
            p += 1
    return end


@njit(**INNER)
def _leave_inverse(begin, stop, rows, numbers, lanes, end, memory):
    """Put what a child needs on top of the stack. Returns where the stack ends now."""
    _find_rows(rows, begin, stop, memory)
    for k in range(stop - begin):
        right = memory.slot[rows[begin + k]] * lanes
        for i in range(k, stop - begin):
            memory.stack[end] = numbers[memory.target[i] + right]
            end += 1
    return end
