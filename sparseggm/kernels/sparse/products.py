"""Triangular products and solves, outer products and log determinants, on values of any pattern.

`product` walks a batch in blocks of lanes, see `vector`. Rows are transposed on the way into a block and out of it,
which reads memory in long runs; the recurrence over the columns then works on registers, where the lanes share the
latency of its divisions. Few rows are done one at a time, on their own memory. Where all right-hand sides of a block
share a factor, the factor is not copied: its scalars are combined with vectors.

Arguments are C-contiguous 2-D arrays, one batch element a row; `matrix_row[r]` is the row of the matrix that
belongs to row r of the vectors. The last arguments of every kernel, `first, last`, are the part of the batch that it
does, so that threads can share a call.

Kernels check nothing on entry. They add up 0 · v over the values v that they compute: the sum is NaN as soon as one of
them is not finite. They return 0 or a failure code; after a failure `linalg` looks for its cause.
"""

from __future__ import annotations

import math

import numpy as np

from sparseggm.kernels import INNER, KERNEL, njit
from sparseggm.kernels.chain.recurrences import solve_backward, solve_forward
from sparseggm.kernels.lanes.blocks import (
    after,
    bad_lanes,
    gather,
    gather_rows,
    is_in_lines,
    new_block,
    scatter,
    too_few_for_lanes,
)
from sparseggm.kernels.lanes.logarithm import logarithms
from sparseggm.kernels.lanes.tiles import block_of, streamed
from sparseggm.kernels.lanes.vector import full_like, lanes_of, load, not_finite, store

_TINY_PIVOT, _HUGE_PIVOT = 2.0**-127, 2.0**127

SOLVE, SOLVE_T, MATMUL, MATMUL_T, SYMMETRIC_MATMUL = range(5)


@njit(**KERNEL)
def product(verb, is_chain, indptr, rows, matrix, matrix_row, repeat, x, y, first, last):
    """y = verb(matrix, x), row by row. Nonzero status: something is not finite.

    Matrices that repeat after `repeat` rows (many vectors for each of many matrices) are gathered once a block.
    """
    lanes, bad, solves = lanes_of(x), 0, verb <= SOLVE_T
    if too_few_for_lanes(first, last, lanes):
        for r in range(first, last):
            if solves:
                y[r] = x[r]
            bad += _apply(verb, is_chain, indptr, rows, matrix[matrix_row[r]], x[r], y[r])
        return bad
    A, b, out = new_block(rows.shape[0], x), new_block(x.shape[1], x), new_block(x.shape[1], x)
    stride = repeat if repeat % lanes == 0 and first % lanes == 0 else last - first
    past_caches = is_in_lines(y)
    for own in range(first, min(first + stride, last), lanes):
        shared = (matrix_row[own : min(own + lanes, last)] == matrix_row[own]).all()
        if not shared:
            gather_rows(matrix, matrix_row[own : min(own + lanes, last)], A)
        for start in range(own, last, stride):
            stop, next_start = min(start + lanes, last), start + stride if start + stride < last else own + lanes
            gather(x, start, stop, out if solves else b)
            following = after(x, next_start - lanes, lanes)
            next_b, next_out = streamed(b, *following), streamed(out, *following)
            if shared:
                bad += _apply(verb, is_chain, indptr, rows, matrix[matrix_row[start]], next_b, next_out)
            else:
                next_A = streamed(A, *after(matrix, matrix_row[own], lanes))
                bad += _apply(verb, is_chain, indptr, rows, next_A, next_b, next_out)
            scatter(out, y, start, stop, past_caches)
    return bad


@njit(**INNER)
def _apply(verb, is_chain, indptr, rows, A, b, out):
    """out = verb(A, b). A verb that solves works in place: b is `out`."""
    if is_chain and verb <= SOLVE_T:
        return _solve_chain(verb, A, out)
    if verb == SOLVE:
        return solve(indptr, rows, A, out)
    if verb == SOLVE_T:
        return solve_t(indptr, rows, A, out)
    y = block_of(out)
    if verb == MATMUL:
        _matmul(indptr, rows, A, b, y)
    elif verb == MATMUL_T:
        _matmul_t(indptr, rows, A, b, y)
    else:
        _symmetric_matmul(indptr, rows, A, b, y)
    return bad_lanes(y, 0, y.shape[0])


@njit(**INNER)
def _solve_chain(verb, L, b):
    """`solve` or `solve_t` without index work. NaN and infinity propagate; infinite pivots are tested separately."""
    factor, y = block_of(L), block_of(b)
    last, zero = y.shape[0] - 1, full_like(y, 0.0)
    if verb == SOLVE:
        carried = solve_forward(L, b, last, zero)
        end = (load(b, last) - carried) / load(L, 2 * last)
        store(y, last, end)
    else:
        end = load(b, last) / load(L, 2 * last)
        store(y, last, end)
        end = solve_backward(L, b, last, end)
    taint = zero * end
    for j in range(last + 1):
        taint = taint + zero * load(factor, 2 * j)
    return not_finite(taint)


@njit(**INNER)
def solve(indptr, rows, L, b):
    """y = L⁻¹ b in place of b: forward substitution, one column of L at a time; the number of tainted lanes."""
    y = block_of(b)
    zero = full_like(y, 0.0)
    taint = zero
    for j in range(y.shape[0]):
        begin, end = indptr[j], indptr[j + 1]
        pivot = load(L, begin)
        y_j = load(b, j) / pivot
        store(y, j, y_j)
        taint = taint + zero * pivot + zero * y_j  # an infinite pivot leaves a finite y
        for p in range(begin + 1, end):  # y_i −= L_ij y_j
            store(y, rows[p], load(y, rows[p]) - load(L, p) * y_j)
    return not_finite(taint)


@njit(**INNER)
def solve_t(indptr, rows, L, b):
    """y = L⁻ᵀ b in place of b: backward substitution, one column of L at a time; the number of tainted lanes."""
    y = block_of(b)
    zero = full_like(y, 0.0)
    taint = zero
    for j in range(y.shape[0] - 1, -1, -1):
        begin, end = indptr[j], indptr[j + 1]
        y_j = load(b, j)
        for p in range(begin + 1, end):  # L_jj y_j = b_j − Σ_{i>j} L_ij y_i
            y_j = y_j - load(L, p) * load(y, rows[p])
        pivot = load(L, begin)
        y_j = y_j / pivot
        store(y, j, y_j)
        taint = taint + zero * pivot + zero * y_j
    return not_finite(taint)


@njit(**INNER)
def _matmul(indptr, rows, L, b, y):
    """y = L b."""
    for j in range(y.shape[0]):
        store(y, j, full_like(y, 0.0))
    for j in range(y.shape[0]):
        b_j = load(b, j)
        for p in range(indptr[j], indptr[j + 1]):  # y_i += L_ij b_j
            store(y, rows[p], load(y, rows[p]) + load(L, p) * b_j)


@njit(**INNER)
def _matmul_t(indptr, rows, L, b, y):
    """y = Lᵀ b."""
    seen = block_of(b)
    for j in range(y.shape[0]):
        y_j = load(L, indptr[j]) * load(b, j)
        for p in range(indptr[j] + 1, indptr[j + 1]):  # y_j = Σ_{i≥j} L_ij b_i
            y_j = y_j + load(L, p) * load(seen, rows[p])
        store(y, j, y_j)


@njit(**INNER)
def _symmetric_matmul(indptr, rows, P, b, y):
    """y = P b from the lower triangle of P."""
    seen = block_of(b)
    for j in range(y.shape[0]):
        store(y, j, full_like(y, 0.0))
    for j in range(y.shape[0]):
        begin, end = indptr[j], indptr[j + 1]
        b_j = load(b, j)
        y_j = load(P, begin) * b_j
        for p in range(begin + 1, end):  # P_ij stands for two entries
            i, P_ij = rows[p], load(P, p)
            store(y, i, load(y, i) + P_ij * b_j)
            y_j = y_j + P_ij * load(seen, i)
        store(y, j, load(y, j) + y_j)


# ---------------------------------------------------------------------- outer products


@njit(**KERNEL)
def outer(indptr, rows, terms, x, y, values, first, last):
    """values[g] = Σ_r x_r y_rᵀ on the pattern, over the rows r = terms[g], in float64. Nonzero status: not finite.

    Each lane holds one group. A single group has its terms in the lanes, which are added at the end; a single term of
    it needs no sum.
    """
    wide, few = np.empty(0), last - first == 1 and terms.shape[1] == 1
    a, b = new_block(0 if few else x.shape[1], wide), new_block(0 if few else x.shape[1], wide)
    total = new_block(0 if few else rows.shape[0], wide)
    lanes = total.shape[1]
    chosen = np.empty(lanes, terms.dtype)  # a column; of the type of a row's copy, so that one `gather_rows` serves
    for start in range(first, last, lanes):
        stop = min(start + lanes, last)
        some = chosen[: stop - start]
        total[:] = 0.0
        if stop - start > 1:
            for t in range(terms.shape[1]):
                for g in range(start, stop):
                    some[g - start] = terms[g, t]
                gather_rows(x, some, a)
                gather_rows(y, some, b)
                _add_outer(indptr, rows, a, b, total)
            scatter(total, values, start, stop)
        elif few:
            x_r, y_r = x[terms[start, 0]], y[terms[start, 0]]
            for j in range(indptr.shape[0] - 1):
                for p in range(indptr[j], indptr[j + 1]):
                    values[start, p] = x_r[rows[p]] * y_r[j]
        else:
            _outer_of_one_group(indptr, rows, terms[start].copy(), x, y, a, b, total, values[start])
    bad = 0
    for g in range(first, last):
        for p in range(rows.shape[0]):
            bad += not abs(values[g, p]) < math.inf
    return bad


@njit(**INNER)
def _outer_of_one_group(indptr, rows, terms, x, y, a, b, total, values):
    lanes = a.shape[1]
    for t in range(0, terms.shape[0], lanes):
        some = terms[t : t + lanes]
        gather_rows(x, some, a)
        gather_rows(y, some, b)
        a[:, some.shape[0] :] = 0.0
        _add_outer(indptr, rows, a, b, total)
    for p in range(rows.shape[0]):
        values[p] = total[p].sum()


@njit(**INNER)
def _add_outer(indptr, rows, a, b, total):
    for j in range(indptr.shape[0] - 1):
        b_j = load(b, j)
        for p in range(indptr[j], indptr[j + 1]):
            store(total, p, load(total, p) + load(a, rows[p]) * b_j)


# ---------------------------------------------------------------------- log determinants


@njit(**KERNEL)
def logdet(indptr, factor, sums, first, last):
    """sums[r, s] = Σ log L_jj over segment s of the nodes, in float64, for the entries first … last of `sums`.

    Threads share the segments of one large matrix. Nonzero status: a diagonal entry is not finite and positive.
    """
    n, segments = indptr.shape[0] - 1, sums.shape[1]
    size, bad = (n + segments - 1) // segments, 0
    logs = np.empty(min(n, 4096))
    for i in range(first, last):
        start = i % segments * size
        total = _sum_of_logarithms(indptr, factor[i // segments], start, min(start + size, n), logs)
        bad += not abs(total) < math.inf
        sums[i // segments, i % segments] = total
    return bad


@njit(**INNER)
def _sum_of_logarithms(indptr, L, first, last, logs):
    """Σ log L_jj of nodes first … last, NaN if a pivot is not positive and finite; `logs` is scratch for some pivots.

    The product of eight pivots between 2⁻¹²⁷ and 2¹²⁷ is a normal number, so one logarithm serves eight pivots.
    """
    size, total = logs.shape[0], 0.0
    for start in range(first, last, size):
        part = logs[: min(size, last - start)]
        diagonal = indptr[start : start + part.shape[0]]
        for i in range(part.shape[0]):
            part[i] = L[np.uint32(diagonal[i])]  # Numba tests a signed index for counting from the end
        outside = 0
        for i in range(part.shape[0]):
            outside += not _TINY_PIVOT < part[i] < _HUGE_PIVOT
        if not outside:
            part = _halved_product(_halved_product(_halved_product(part)))
        elif not (part > 0.0).all() or not (part < math.inf).all():
            return math.nan
        logarithms(part)
        total += _halved_sum(part)
    return total


@njit(**INNER)
def _halved_product(x):
    """Each number of the first half, times its partner in the second, if it has one."""
    half = (x.shape[0] + 1) // 2
    for i in range(x.shape[0] - half):
        x[i] *= x[half + i]
    return x[:half]


@njit(**INNER)
def _halved_sum(x):
    """The sum, by halves; x is overwritten."""
    size = x.shape[0]
    while size > 1:
        half = (size + 1) // 2
        for i in range(size - half):
            x[i] += x[half + i]
        size = half
    return x[0]
