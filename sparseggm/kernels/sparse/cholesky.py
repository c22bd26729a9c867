"""Sparse Cholesky factorisation and its derivative, left-looking, on blocks of lanes or single matrices.

Conventions are those of `products`: C-contiguous rows, `first, last`, a status. `row_indptr, row_cols, row_positions`
list the entries of each row of the pattern left of its diagonal.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from sparseggm.kernels import INLINED, INNER, KERNEL, njit
from sparseggm.kernels.chain.recurrences import SMALL_PIVOT, factorise, small_share
from sparseggm.kernels.lanes.blocks import gather, new_block, new_like, scatter, too_few_for_lanes
from sparseggm.kernels.lanes.sums import log_determinants, new_scratch
from sparseggm.kernels.lanes.vector import (
    full_like,
    lanes_of,
    load,
    minimum,
    not_finite,
    not_positive,
    square_root,
    store,
    zero_below,
)


class Rows(NamedTuple):
    """The strictly lower entries of a pattern, row by row."""

    indptr: Any
    cols: Any
    positions: Any
    groups: Any
    """For each entry, the number of columns, from its own on, that are subtracted together: see `_subtract_columns`."""


@njit(**KERNEL)
def cholesky(is_chain, indptr, rows, by_rows, places, precision, factor, columns, sums, first, last):
    """L on a closed pattern with P = L Lᵀ, where P[p] stands at `places[p]`. Nonzero status: a row failed, or may have.

    columns[r] becomes −1; or the column in which row r failed, whose pivot is then on the diagonal of factor[r]; or
    `SMALL_PIVOT`, on which `singular_columns` decides. If `sums` is not empty, it becomes log det P and L is not
    stored; the kernel then stops at a block that fails or has a small pivot, and at rows too few for a block.
    An entry |L_ij| < √tiny √P_ii is set to zero: fill that decays so far would soon be subnormal, and slow.
    """
    lanes, status = lanes_of(precision), 0
    few = too_few_for_lanes(first, last, lanes)
    P, L = new_block(0 if few else precision.shape[1], precision), new_block(0 if few else rows.shape[0], precision)
    scratch, of_block = new_scratch(P), np.empty(lanes)
    for start in range(first, last, lanes):
        stop = min(start + lanes, last)
        failed = 0
        if not few:
            gather(precision, start, stop, P)
            failed = _factorise(is_chain, indptr, rows, by_rows, places, P, L)
        if sums.shape[0]:
            if failed != -1:
                return 1
            log_determinants(indptr, L, indptr.shape[0] - 1, scratch, of_block)
            sums[start:stop] = of_block[: stop - start]
            continue
        if not few:
            scatter(L, factor, start, stop)
        for r in range(start, stop):
            if failed >= 0:  # which one?
                columns[r] = _factorise(is_chain, indptr, rows, by_rows, places, precision[r], factor[r])
            else:
                columns[r] = failed
            status |= columns[r] != -1
    return status


@njit(**KERNEL)
def singular_columns(indptr, rows, factor, columns, first, last):
    """In `columns`, replace `SMALL_PIVOT` by the first column whose pivot rounding alone could have made, or by −1.

    The pivot is left on the diagonal of such a column. The computed L is exact for P + ΔP, |ΔP| ≤ γ_{r+1} |L| |L|ᵀ, r
    the longest row of L [Higham 2002, Thm 10.3]. So the pivot is L_kk² = wᵀ (P + ΔP) w for w = L_kk L⁻ᵀ e_k, and its
    rounding error wᵀ ΔP w is at most γ_{r+1} L_kk² f_k², f_k the 2-norm of row k of |L⁻¹| |L|, which does not change
    when P is scaled. The triangle inequality bounds f_k by the f_j of row k; f_k itself is computed only where that
    bound does not suffice.
    """
    n, unit = indptr.shape[0] - 1, 0.5 * np.finfo(factor.dtype).eps
    lengths = np.zeros(n, np.int64)
    for p in range(rows.shape[0]):
        lengths[rows[p]] += 1
    longest = lengths.max()
    gamma, small = (longest + 1) * unit / (1.0 - (longest + 1) * unit), small_share(factor)
    squares, pulls, scratch = np.empty(n), np.empty(n), np.empty(n)  # Σ L_kj² and Σ |L_kj| f_j of row k, so far
    for r in range(first, last):
        L = factor[r]
        squares[:], pulls[:] = 0.0, 0.0
        for k in range(n if columns[r] == SMALL_PIVOT else 0):
            L_kk = np.float64(L[indptr[k]])
            square = squares[k] + L_kk * L_kk
            f_k = (math.sqrt(square) + pulls[k]) / L_kk
            if L_kk * L_kk <= small * square and not gamma * f_k * f_k < 1.0:
                f_k = _row_condition(indptr, rows, L, k, scratch)
                if gamma * f_k * f_k >= 1.0:
                    columns[r], L[indptr[k]] = k, L_kk * L_kk
                    break
            for p in range(indptr[k] + 1, indptr[k + 1]):
                L_ik = abs(np.float64(L[p]))
                squares[rows[p]] += L_ik * L_ik
                pulls[rows[p]] += L_ik * f_k
        columns[r] = max(columns[r], -1)
    return 0


@njit(**INNER)
def _row_condition(indptr, rows, L, k, v):
    """The 2-norm of row k of |L⁻¹| |L|, which is |L|ᵀ |v| for v = L⁻ᵀ e_k."""
    v[k] = 1.0 / np.float64(L[indptr[k]])
    total = 1.0
    for j in range(k - 1, -1, -1):
        pull, size = 0.0, 0.0
        for p in range(indptr[j] + 1, indptr[j + 1]):
            if rows[p] <= k:
                pull += L[p] * v[rows[p]]
                size += abs(L[p] * v[rows[p]])
        v[j] = -pull / L[indptr[j]]
        total += (size + abs(pull)) ** 2
    return math.sqrt(total)


@njit(**KERNEL)
def log_determinants_of_factors(indptr, factor, sums, first, last):
    """sums[r] = log det L Lᵀ by the same operations, in the same order, as the `sums` of `cholesky`."""
    n, lanes = indptr.shape[0] - 1, lanes_of(factor)
    diagonal, of_block = new_block(n, factor), np.empty(lanes)
    scratch, own = new_scratch(diagonal), np.arange(n + 1).astype(indptr.dtype)
    for start in range(first, last, lanes):
        for lane in range(lanes):
            r = min(start + lane, last - 1)
            for j in range(n):
                diagonal[j, lane] = factor[r, indptr[j]]
        log_determinants(own, diagonal, n, scratch, of_block)
        stop = min(start + lanes, last)
        sums[start:stop] = of_block[: stop - start]
    return 0


@njit(**INNER)
def _factorise(is_chain, indptr, rows, by_rows, places, P, L):
    """Overwrite L. Returns the first column whose pivot is not positive, where it stops; `SMALL_PIVOT`; or −1."""
    n = indptr.shape[0] - 1
    negligible = full_like(L, math.sqrt(np.finfo(L.dtype).tiny))
    if is_chain:
        return factorise(P, L, negligible)
    slot = np.empty(n, np.int32)
    threshold = new_like(n, L)
    L[:] = 0.0
    for p in range(places.shape[0]):
        store(L, places[p], load(P, p))
    for j in range(n):
        store(threshold, j, negligible * square_root(load(L, indptr[j])))  # NaN where P_jj < 0: fails below
    for k in range(n):
        begin, end = indptr[k], indptr[k + 1]
        for q in range(begin, end):
            slot[rows[q]] = q
        _subtract_columns(indptr, rows, by_rows, k, slot, L)
        pivot = load(L, begin)
        if not_positive(pivot):
            return k
        pivot = square_root(pivot)
        store(L, begin, pivot)
        for q in range(begin + 1, end):
            store(L, q, zero_below(load(L, q) / pivot, load(threshold, rows[q])))
    least = full_like(L, 1.0)
    root_of_share = full_like(L, math.sqrt(small_share(L))) / negligible
    for k in range(n):  # L_kk² > ∛u P_kk; tested here, because it would cost the loop above a register
        least = minimum(load(L, indptr[k]) - root_of_share * load(threshold, k), least)
    return SMALL_PIVOT if not_positive(least) else -1


@njit(**INLINED)
def _subtract_columns(indptr, rows, by_rows, k, slot, L):
    """P_ik −= Σ_j L_ij L_kj over the columns j < k, where P_ik stands at slot[i].

    A single column loads and stores P_ik for each product. Neighbouring columns that have the same rows from k on go
    together, four or two at a time, and load and store it once. Indexes are unsigned, because Numba tests signed ones
    for counting from the end.
    """
    row_indptr, row_cols, row_positions, groups = by_rows
    t = row_indptr[k]
    while t < row_indptr[k + 1]:
        p, end, together = np.uint64(row_positions[t]), np.uint64(indptr[row_cols[t] + 1]), groups[t]
        a = load(L, p)
        if together == 1:
            for q in range(p, end):
                store(L, slot[np.uint32(rows[q])], load(L, slot[np.uint32(rows[q])]) - load(L, q) * a)
        else:
            second = np.uint64(row_positions[t + 1]) - p
            b = load(L, p + second)
            if together == 2:
                for q in range(p, end):
                    store(
                        L,
                        slot[np.uint32(rows[q])],
                        load(L, slot[np.uint32(rows[q])]) - load(L, q) * a - load(L, q + second) * b,
                    )
            else:
                third, fourth = np.uint64(row_positions[t + 2]) - p, np.uint64(row_positions[t + 3]) - p
                c, d = load(L, p + third), load(L, p + fourth)
                for q in range(p, end):
                    P_ik = load(L, slot[np.uint32(rows[q])]) - load(L, q) * a - load(L, q + second) * b
                    store(L, slot[np.uint32(rows[q])], P_ik - load(L, q + third) * c - load(L, q + fourth) * d)
        t += together


@njit(**KERNEL)
def cholesky_jvp(indptr, rows, row_indptr, row_cols, row_positions, factor, v, values, first, last):
    """values = X with X Lᵀ + L Xᵀ = V on a closed pattern. Nonzero status: not finite, or a pivot not positive."""
    lanes, bad = lanes_of(factor), 0
    if too_few_for_lanes(first, last, lanes):
        for r in range(first, last):
            values[r] = v[r]
            bad += _differentiate(indptr, rows, row_indptr, row_cols, row_positions, factor[r], values[r])
        return bad
    L, X = new_block(rows.shape[0], factor), new_block(rows.shape[0], factor)
    for start in range(first, last, lanes):
        stop = min(start + lanes, last)
        gather(factor, start, stop, L)
        gather(v, start, stop, X)
        bad += _differentiate(indptr, rows, row_indptr, row_cols, row_positions, L, X)
        scatter(X, values, start, stop)
    return bad


@njit(**INNER)
def _differentiate(indptr, rows, row_indptr, row_cols, row_positions, L, X):
    """Overwrite X, which holds V, with the solution. Returns the number of failures."""
    n = indptr.shape[0] - 1
    slot = np.empty(n, np.int32)
    zero, two = full_like(L, 0.0), full_like(L, 2.0)
    taint = zero
    bad = 0
    for k in range(n):
        begin, end = indptr[k], indptr[k + 1]
        for q in range(begin, end):
            slot[rows[q]] = q
        for t in range(row_indptr[k], row_indptr[k + 1]):  # V_ik −= Σ_{j<k} X_ij L_kj + L_ij X_kj
            L_kj, X_kj = load(L, row_positions[t]), load(X, row_positions[t])
            for p in range(row_positions[t], indptr[row_cols[t] + 1]):
                q = slot[rows[p]]
                store(X, q, load(X, q) - (load(X, p) * L_kj + load(L, p) * X_kj))
        pivot = load(L, begin)
        bad += not_positive(pivot)
        X_kk = load(X, begin) / (two * pivot)
        store(X, begin, X_kk)
        taint = taint + zero * X_kk
        for q in range(begin + 1, end):  # V_ik = X_ik L_kk + L_ik X_kk
            X_ik = (load(X, q) - load(L, q) * X_kk) / pivot
            store(X, q, X_ik)
            taint = taint + zero * X_ik
    return bad + not_finite(taint)
