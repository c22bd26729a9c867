"""Partial factorisation and inversion of one front, four columns at a time.

A front of m rows and columns is a block of vectors, see `lanes.vector`: row b · m + k of the block holds rows
b · lanes … (b + 1) · lanes − 1 of its column k. So the innermost loops read memory in order, each vector that they load
meets four numbers, and the four sums stay in registers. Rows beyond m hold zeros; above the diagonal stands what nobody
reads. Sums go along k as in `sparse.cholesky` and `sparse.inverse`, and bounds are the same.

Fewer than four columns are done as four, of which the surplus repeats the last and is not stored.
"""

from __future__ import annotations

import numpy as np

from sparseggm.kernels import INLINED, INNER, njit
from sparseggm.kernels.lanes.vector import full_like, lanes_of, load, square_root, store, zero_below

FOUR = 4


@njit(**INLINED)
def at(m, lanes, i, k):
    """Where entry (i, k) stands in the memory of a front."""
    return (i // lanes * m + k) * lanes + i % lanes


@njit(**INNER)
def eliminate(front, memory, m, width, threshold, corner):
    """Overwrite the first `width` columns by those of L, the others by the update −L Lᵀ; False if a pivot fails.

    `memory` is the front's, as a 1-D array; `corner` is scratch, 4 × 4. An entry of row i below threshold[i] becomes 0.
    """
    lanes = lanes_of(front)
    thresholds = threshold.reshape(-1, lanes)
    j = 0
    while j < m:
        count = min(FOUR, (width if j < width else m) - j)
        _subtract(front, memory, m, j, count, min(j, width))
        if j < width:
            if not _factorise_corner(memory, lanes, m, j, count, threshold, corner):
                return False
            _divide(front, m, j, count, thresholds, corner)
            for c in range(count):
                memory[at(m, lanes, j + c, j + c)] = corner[c, c]
        j += count
    return True


@njit(**INLINED)
def _subtract(front, memory, m, j, count, stop):
    """A_ic −= Σ_{k < stop} L_ik L_ck for the columns c = j … j + count − 1 and all rows from j's on.

    Indexes are unsigned, because Numba tests signed ones for counting from the end.
    """
    lanes, one = lanes_of(front), np.uint64(1)
    lane, last = np.uint64(lanes), j + count - 1
    second, third = min(j + 1, last), min(j + 2, last)
    for b in range(j // lanes, (m + lanes - 1) // lanes):
        row = np.uint64(b * m)
        p0, p1 = np.uint64(at(m, lanes, j, 0)), np.uint64(at(m, lanes, second, 0))
        p2, p3 = np.uint64(at(m, lanes, third, 0)), np.uint64(at(m, lanes, last, 0))
        a0, a1 = load(front, b * m + j), load(front, b * m + second)
        a2, a3 = load(front, b * m + third), load(front, b * m + last)
        for _ in range(stop):
            L_ik = load(front, row)
            a0 = a0 - L_ik * memory[p0]
            a1 = a1 - L_ik * memory[p1]
            a2 = a2 - L_ik * memory[p2]
            a3 = a3 - L_ik * memory[p3]
            row, p0, p1, p2, p3 = row + one, p0 + lane, p1 + lane, p2 + lane, p3 + lane
        _store_four(front, b * m + j, count, a0, a1, a2, a3)


@njit(**INLINED)
def _store_four(front, place, count, a0, a1, a2, a3):
    store(front, place, a0)
    if count > 1:
        store(front, place + 1, a1)
    if count > 2:
        store(front, place + 2, a2)
    if count > 3:
        store(front, place + 3, a3)


@njit(**INNER)
def _factorise_corner(memory, lanes, m, j, count, threshold, corner):
    """The Cholesky factor of rows and columns j … j + count − 1; 1 on the diagonal and 0 below for surplus columns."""
    corner[:] = 0.0
    for c in range(FOUR):
        corner[c, c] = 1.0
    for c in range(count):
        for i in range(c, count):
            entry = memory[at(m, lanes, j + i, j + c)]
            for k in range(c):
                entry -= corner[i, k] * corner[c, k]
            if i > c:
                entry /= corner[c, c]
                corner[i, c] = corner[i, c] if abs(entry) < threshold[j + i] else entry
            elif entry > 0.0 and entry < np.inf:
                corner[c, c] = square_root(entry)
            else:
                return False
    return True


@njit(**INLINED)
def _divide(front, m, j, count, thresholds, corner):
    """A ← A C⁻ᵀ for the corner's factor C, in all rows from j's on; 0 where |A_ic| < threshold_i."""
    lanes = lanes_of(front)
    last = j + count - 1
    for b in range(j // lanes, (m + lanes - 1) // lanes):
        least = load(thresholds, b)
        a0, a1 = load(front, b * m + j), load(front, b * m + min(j + 1, last))
        a2, a3 = load(front, b * m + min(j + 2, last)), load(front, b * m + last)
        a0 = zero_below(a0 / corner[0, 0], least)
        a1 = zero_below((a1 - a0 * corner[1, 0]) / corner[1, 1], least)
        a2 = zero_below((a2 - a0 * corner[2, 0] - a1 * corner[2, 1]) / corner[2, 2], least)
        a3 = zero_below((a3 - a0 * corner[3, 0] - a1 * corner[3, 1] - a2 * corner[3, 2]) / corner[3, 3], least)
        _store_four(front, b * m + j, count, a0, a1, a2, a3)


@njit(**INNER)
def invert(is_covariance, front, memory, panel, m, width, threshold, corner, lower):
    """W on the first `width` columns and rows, by equation (1) of `sparse.inverse`, given W on the others.

    The front holds W, both triangles, beyond the first columns, and in these X, on and below the diagonal. `panel`
    holds the columns of L row by row, so that the four numbers that a vector meets are neighbours. If W is Σ, an entry
    of row i below threshold[i] = √tiny √Σ_ii becomes 0 before it is divided. `corner` and `lower` are scratch, 4 × 4.

    The corner, rows and columns j … stop − 1, is taken out first: vectors of the rows from `stop` on may begin in it.
    In `lower`, surplus columns are those of the identity.
    """
    lanes = lanes_of(front)
    thresholds = threshold.reshape(-1, lanes)
    zero, small = full_like(memory, 0.0), square_root(full_like(memory, np.finfo(memory.dtype).tiny))
    stop = width
    while stop > 0:
        j = max(stop - FOUR, 0)
        for i in range(FOUR):
            for c in range(FOUR):
                inside = i < stop - j and c <= i
                lower[i, c] = panel[(j + i) * width + j + c] if inside else i == c
                corner[i, c] = memory[at(m, lanes, j + i, j + c)] if inside else 0.0
        _solve_columns(front, panel, m, width, j, stop, thresholds, lower)
        _multiply_corner(memory, panel, lanes, m, width, j, stop, corner)
        for c in range(stop - j - 1, -1, -1):
            for i in range(stop - j - 1, c - 1, -1):
                entry = corner[i, c]
                for k in range(c + 1, stop - j):
                    entry -= corner[max(i, k), min(i, k)] * lower[k, c]
                if i > c and abs(entry) < threshold[j + i]:
                    entry = zero
                corner[i, c] = entry / lower[c, c]
                memory[at(m, lanes, j + i, j + c)] = memory[at(m, lanes, j + c, j + i)] = corner[i, c]
            if is_covariance:
                threshold[j + c] = small * square_root(corner[c, c])
        stop = j


@njit(**INLINED)
def _solve_columns(front, panel, m, width, j, stop, thresholds, lower):
    """W_ic = (X_ic − Σ_{k > c} W_ik L_kc) / L_cc for the columns c = j … stop − 1 and the rows from `stop`'s on."""
    lanes, one, wide, last = lanes_of(front), np.uint64(1), np.uint64(width), stop - 1
    c1, c2, c3 = np.uint64(min(1, last - j)), np.uint64(min(2, last - j)), np.uint64(last - j)
    for b in range(stop // lanes, (m + lanes - 1) // lanes if stop < m else 0):
        row, p = np.uint64(b * m + stop), np.uint64(stop * width + j)
        a0, a1 = load(front, b * m + j), load(front, b * m + min(j + 1, last))
        a2, a3 = load(front, b * m + min(j + 2, last)), load(front, b * m + last)
        for _ in range(m - stop):
            W_ik = load(front, row)
            a0 = a0 - W_ik * panel[p]
            a1 = a1 - W_ik * panel[p + c1]
            a2 = a2 - W_ik * panel[p + c2]
            a3 = a3 - W_ik * panel[p + c3]
            row, p = row + one, p + wide
        least = load(thresholds, b)
        a3 = zero_below(a3, least) / lower[3, 3]
        a2 = zero_below(a2 - a3 * lower[3, 2], least) / lower[2, 2]
        a1 = zero_below(a1 - a2 * lower[2, 1] - a3 * lower[3, 1], least) / lower[1, 1]
        a0 = zero_below(a0 - a1 * lower[1, 0] - a2 * lower[2, 0] - a3 * lower[3, 0], least) / lower[0, 0]
        _store_four(front, b * m + j, stop - j, a0, a1, a2, a3)


@njit(**INNER)
def _multiply_corner(memory, panel, lanes, m, width, j, stop, corner):
    """X_ic −= Σ_{k ≥ stop} W_ki L_kc for i, c in the corner, i ≥ c; and the W_ki are written across the diagonal."""
    last = stop - 1
    c1, c2, c3 = min(j + 1, last), min(j + 2, last), last
    x00, x11, x22, x33 = corner[0, 0], corner[1, 1], corner[2, 2], corner[3, 3]
    x10, x20, x30, x21, x31, x32 = corner[1, 0], corner[2, 0], corner[3, 0], corner[2, 1], corner[3, 1], corner[3, 2]
    across0, across1 = at(m, lanes, j, 0), at(m, lanes, c1, 0)
    across2, across3 = at(m, lanes, c2, 0), at(m, lanes, c3, 0)
    for k in range(stop, m):
        below, p, right = at(m, lanes, k, 0), k * width, k * lanes
        W0, W1 = memory[below + j * lanes], memory[below + c1 * lanes]
        W2, W3 = memory[below + c2 * lanes], memory[below + c3 * lanes]
        memory[across0 + right], memory[across1 + right] = W0, W1
        memory[across2 + right], memory[across3 + right] = W2, W3
        L0, L1, L2, L3 = panel[p + j], panel[p + c1], panel[p + c2], panel[p + c3]
        x00, x11, x22, x33 = x00 - W0 * L0, x11 - W1 * L1, x22 - W2 * L2, x33 - W3 * L3
        x10, x21, x32 = x10 - W1 * L0, x21 - W2 * L1, x32 - W3 * L2
        x20, x31, x30 = x20 - W2 * L0, x31 - W3 * L1, x30 - W3 * L0
    corner[0, 0], corner[1, 1], corner[2, 2], corner[3, 3] = x00, x11, x22, x33
    corner[1, 0], corner[2, 1], corner[3, 2] = x10, x21, x32
    corner[2, 0], corner[3, 1], corner[3, 0] = x20, x31, x30
