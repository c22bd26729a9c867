"""Kernels on values of any pattern, many rows in lockstep.

Every kernel ends in `first, last`: the part of the batch it is to do, so that threads can share a call. It walks
the pattern once for LANES batch elements: the inner loop over lanes hides the latency of each recurrence and
spreads the cost of index work. Kernels that compute more than they move (`cholesky` and below) copy their lanes to
scratch of shape (nnz, lanes), where a lane step is contiguous.

Arguments are C-contiguous 2-D arrays, one batch element a row. `owner[r]` is the row of the factor that belongs to
row r of the right-hand sides: a shared factor is never copied.

Kernels check nothing on entry. They test values as they pass and return 0 or a failure code; `linalg` then looks for
the culprit. Counting `not |v| < ∞` is exact for NaN too, and, being integer, does not serialise the lanes.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

LANES = 16


# ---------------------------------------------------------------------- triangular products and solves


@njit(cache=True, nogil=True, error_model="numpy")
def _not_finite(rows):
    """The number of entries that are NaN or infinite."""
    bad = 0
    for r in range(rows.shape[0]):
        for i in range(rows.shape[1]):
            bad += not abs(rows[r, i]) < math.inf
    return bad


@njit(cache=True, nogil=True, error_model="numpy")
def solve(indptr, rows, factor, owner, rhs, x, first, last):
    """x = L⁻¹ rhs: forward substitution, one column of L at a time. Nonzero status: something is not finite."""
    n = rhs.shape[1]
    bad = 0
    pending = np.empty(LANES, x.dtype)
    probe = np.zeros(LANES, x.dtype)  # an infinite pivot leaves a finite x: 0 · ∞ betrays it
    for start in range(first, last, LANES):
        own, b, y = owner[start:last][:LANES], rhs[start:last][:LANES], x[start:last][:LANES]
        width = own.shape[0]
        for lane in range(width):
            for i in range(n):
                y[lane, i] = b[lane, i]
        for j in range(n):
            begin, end = indptr[j], indptr[j + 1]
            for lane in range(width):
                pivot = factor[own[lane], begin]
                probe[lane] += 0 * pivot
                pending[lane] = y[lane, j] / pivot
                y[lane, j] = pending[lane]
            for p in range(begin + 1, end):  # x_i −= L_ij x_j
                i = rows[p]
                for lane in range(width):
                    y[lane, i] -= factor[own[lane], p] * pending[lane]
        bad += _not_finite(y)
    return bad + _not_finite(probe.reshape(1, LANES))


@njit(cache=True, nogil=True, error_model="numpy")
def solve_t(indptr, rows, factor, owner, rhs, x, first, last):
    """x = L⁻ᵀ rhs: backward substitution, one column of L at a time. Nonzero status: something is not finite."""
    n = rhs.shape[1]
    bad = 0
    pending = np.empty(LANES, x.dtype)
    probe = np.zeros(LANES, x.dtype)  # as in `solve`
    for start in range(first, last, LANES):
        own, b, y = owner[start:last][:LANES], rhs[start:last][:LANES], x[start:last][:LANES]
        width = own.shape[0]
        for j in range(n - 1, -1, -1):
            begin, end = indptr[j], indptr[j + 1]
            for lane in range(width):
                pending[lane] = b[lane, j]
            for p in range(begin + 1, end):  # L_jj x_j = b_j − Σ_{i>j} L_ij x_i
                i = rows[p]
                for lane in range(width):
                    pending[lane] -= factor[own[lane], p] * y[lane, i]
            for lane in range(width):
                pivot = factor[own[lane], begin]
                probe[lane] += 0 * pivot
                y[lane, j] = pending[lane] / pivot
        bad += _not_finite(y)
    return bad + _not_finite(probe.reshape(1, LANES))


@njit(cache=True, nogil=True, error_model="numpy")
def matmul(indptr, rows, factor, owner, x, y, first, last):
    """y = L x. Nonzero status: something is not finite."""
    n = x.shape[1]
    bad = 0
    for start in range(first, last, LANES):
        own, b, out = owner[start:last][:LANES], x[start:last][:LANES], y[start:last][:LANES]
        width = own.shape[0]
        out[:] = 0
        for j in range(n):
            for p in range(indptr[j], indptr[j + 1]):  # y_i += L_ij x_j
                i = rows[p]
                for lane in range(width):
                    out[lane, i] += factor[own[lane], p] * b[lane, j]
        bad += _not_finite(out)
    return bad


@njit(cache=True, nogil=True, error_model="numpy")
def matmul_t(indptr, rows, factor, owner, x, y, first, last):
    """y = Lᵀ x. Nonzero status: something is not finite."""
    n = x.shape[1]
    bad = 0
    total = np.empty(LANES, x.dtype)
    for start in range(first, last, LANES):
        own, b, out = owner[start:last][:LANES], x[start:last][:LANES], y[start:last][:LANES]
        width = own.shape[0]
        for j in range(n):
            total[:] = 0
            for p in range(indptr[j], indptr[j + 1]):  # y_j = Σ_{i≥j} L_ij x_i
                i = rows[p]
                for lane in range(width):
                    total[lane] += factor[own[lane], p] * b[lane, i]
            for lane in range(width):
                out[lane, j] = total[lane]
        bad += _not_finite(out)
    return bad


@njit(cache=True, nogil=True, error_model="numpy")
def symmetric_matmul(indptr, rows, precision, owner, x, y, first, last):
    """y = P x from the lower triangle of P. Nonzero status: something is not finite."""
    n = x.shape[1]
    bad = 0
    total = np.empty(LANES, x.dtype)
    for start in range(first, last, LANES):
        own, b, out = owner[start:last][:LANES], x[start:last][:LANES], y[start:last][:LANES]
        width = own.shape[0]
        out[:] = 0
        for j in range(n):
            begin, end = indptr[j], indptr[j + 1]
            for lane in range(width):
                total[lane] = precision[own[lane], begin] * b[lane, j]
            for p in range(begin + 1, end):  # P_ij stands for two entries
                i = rows[p]
                for lane in range(width):
                    out[lane, i] += precision[own[lane], p] * b[lane, j]
                    total[lane] += precision[own[lane], p] * b[lane, i]
            for lane in range(width):
                out[lane, j] += total[lane]
        bad += _not_finite(out)
    return bad


@njit(cache=True, nogil=True, error_model="numpy")
def outer(indptr, rows, members_indptr, members, x, y, values, first, last):
    """values[g] = Σ_r x_r y_rᵀ on the pattern, over the rows r of group g, in float64."""
    n = x.shape[1]
    accumulated = np.empty(rows.shape[0], np.float64)
    bad = 0
    for g in range(first, last):
        accumulated[:] = 0.0
        for t in range(members_indptr[g], members_indptr[g + 1]):
            r = members[t]
            for j in range(n):
                factor = np.float64(y[r, j])
                for p in range(indptr[j], indptr[j + 1]):
                    accumulated[p] += x[r, rows[p]] * factor
        for p in range(rows.shape[0]):
            values[g, p] = accumulated[p]
            bad += not abs(values[g, p]) < math.inf
    return bad


@njit(cache=True, nogil=True, error_model="numpy")
def logdet(indptr, factor, result, first, last):
    """result = 2 Σ log L_jj, in float64. Nonzero status: 1 + a row with a diagonal that is not finite and positive."""
    for r in range(first, last):
        total = 0.0
        for j in range(indptr.shape[0] - 1):
            pivot = factor[r, indptr[j]]
            if not 0.0 < pivot < math.inf:
                return r + 1
            total += math.log(np.float64(pivot))
        result[r] = 2.0 * total
    return 0


# ---------------------------------------------------------------------- lanes


@njit(cache=True, nogil=True, error_model="numpy")
def _gather_lanes(values, start, stop, lanes):
    """lanes[p, r − start] = values[r, p]."""
    for r in range(start, stop):
        for p in range(values.shape[1]):
            lanes[p, r - start] = values[r, p]


@njit(cache=True, nogil=True, error_model="numpy")
def _scatter_lanes(lanes, start, stop, values):
    """values[r, p] = lanes[p, r − start]; the number of values that are not finite."""
    bad = 0
    for r in range(start, stop):
        for p in range(values.shape[1]):
            values[r, p] = lanes[p, r - start]
            bad += not abs(values[r, p]) < math.inf
    return bad


@njit(cache=True, nogil=True, error_model="numpy")
def _bad_pivots(indptr, L):
    """The number of diagonal entries that are not positive and finite."""
    bad = 0
    for j in range(indptr.shape[0] - 1):
        for lane in range(L.shape[1]):
            bad += not 0.0 < L[indptr[j], lane] < math.inf
    return bad


@njit(cache=True, nogil=True, error_model="numpy")
def _find(rows, low, stop, row):
    """Position of `row` in the increasing rows[low:stop], which holds it; doubling steps, then bisection."""
    step = 1
    while low + step < stop and rows[low + step] <= row:
        low += step
        step *= 2
    high = min(low + step, stop)
    while high - low > 1:
        middle = (low + high) // 2
        if rows[middle] <= row:
            low = middle
        else:
            high = middle
    return low


# ---------------------------------------------------------------------- factorisation and its calculus


@njit(cache=True, nogil=True, error_model="numpy")
def cholesky(indptr, rows, row_indptr, row_cols, row_positions, values, columns, first, last):
    """Overwrite P, on a closed pattern, with L, P = L Lᵀ; left-looking. Nonzero status: 1 + the first failing row.

    columns[r] becomes the failing column of row r, or −1; values[r] at its diagonal is then the pivot.
    An entry |L_ij| < √tiny √P_ii is set to zero: fill that decays so far would soon be subnormal, and slow.
    """
    n = indptr.shape[0] - 1
    slot = np.empty(n, np.int64)
    negligible = math.sqrt(np.finfo(values.dtype).tiny)
    status = 0
    for start in range(first, last, LANES):
        stop = min(start + LANES, last)
        width = stop - start
        L = np.empty((rows.shape[0], width), values.dtype)
        _gather_lanes(values, start, stop, L)
        threshold = np.empty((n, width), values.dtype)
        for j in range(n):
            for lane in range(width):
                threshold[j, lane] = negligible * math.sqrt(abs(L[indptr[j], lane]))
        columns[start:stop] = -1
        for k in range(n):
            begin, end = indptr[k], indptr[k + 1]
            for q in range(begin, end):
                slot[rows[q]] = q
            for t in range(row_indptr[k], row_indptr[k + 1]):  # P_ik −= Σ_{j<k} L_ij L_kj
                pk = row_positions[t]
                for p in range(pk, indptr[row_cols[t] + 1]):
                    q = slot[rows[p]]
                    for lane in range(width):
                        L[q, lane] -= L[p, lane] * L[pk, lane]
            for lane in range(width):
                pivot = L[begin, lane]
                if 0.0 < pivot < math.inf:  # NaN fails too
                    L[begin, lane] = math.sqrt(pivot)
                elif columns[start + lane] < 0:
                    columns[start + lane] = k
                    if status == 0 or start + lane + 1 < status:
                        status = start + lane + 1
            for q in range(begin + 1, end):
                i = rows[q]
                for lane in range(width):
                    entry = L[q, lane] / L[begin, lane]
                    L[q, lane] = 0.0 if abs(entry) < threshold[i, lane] else entry
        _scatter_lanes(L, start, stop, values)
    return status


@njit(cache=True, nogil=True, error_model="numpy")
def gram_jvp(indptr, rows, gram_indptr, gram_rows, a, b, values, first, last):
    """values = tril(A Bᵀ + B Aᵀ) on the gram pattern. Nonzero status: something is not finite."""
    bad = 0
    for start in range(first, last, LANES):
        stop = min(start + LANES, last)
        width = stop - start
        A = np.empty((rows.shape[0], width), a.dtype)
        B = np.empty((rows.shape[0], width), a.dtype)
        G = np.zeros((gram_rows.shape[0], width), a.dtype)
        _gather_lanes(a, start, stop, A)
        _gather_lanes(b, start, stop, B)
        for j in range(indptr.shape[0] - 1):
            for p in range(indptr[j], indptr[j + 1]):
                q, column_end = gram_indptr[rows[p]], gram_indptr[rows[p] + 1]
                for s in range(p, indptr[j + 1]):
                    q = _find(gram_rows, q, column_end, rows[s])
                    for lane in range(width):
                        G[q, lane] += A[s, lane] * B[p, lane] + B[s, lane] * A[p, lane]
        bad += _scatter_lanes(G, start, stop, values)
    return bad


@njit(cache=True, nogil=True, error_model="numpy")
def gram_vjp(indptr, rows, gram_indptr, gram_rows, a, v, values, first, last):
    """values = tril((V + Vᵀ) A) on the pattern of A, V on the gram pattern. Nonzero status: something is not finite."""
    bad = 0
    for start in range(first, last, LANES):
        stop = min(start + LANES, last)
        width = stop - start
        A = np.empty((rows.shape[0], width), a.dtype)
        V = np.empty((gram_rows.shape[0], width), a.dtype)
        out = np.zeros((rows.shape[0], width), a.dtype)
        _gather_lanes(a, start, stop, A)
        _gather_lanes(v, start, stop, V)
        for j in range(indptr.shape[0] - 1):
            for p in range(indptr[j], indptr[j + 1]):
                q, column_end = gram_indptr[rows[p]], gram_indptr[rows[p] + 1]
                for s in range(p, indptr[j + 1]):
                    q = _find(gram_rows, q, column_end, rows[s])
                    for lane in range(width):
                        out[s, lane] += V[q, lane] * A[p, lane]
                        out[p, lane] += V[q, lane] * A[s, lane]
        bad += _scatter_lanes(out, start, stop, values)
    return bad


@njit(cache=True, nogil=True, error_model="numpy")
def cholesky_jvp(indptr, rows, row_indptr, row_cols, row_positions, factor, v, values, first, last):
    """values = X with X Lᵀ + L Xᵀ = V on a closed pattern; left-looking. Nonzero status: something is not finite."""
    n = indptr.shape[0] - 1
    slot = np.empty(n, np.int64)
    bad = 0
    for start in range(first, last, LANES):
        stop = min(start + LANES, last)
        width = stop - start
        L = np.empty((rows.shape[0], width), factor.dtype)
        X = np.empty((rows.shape[0], width), factor.dtype)
        _gather_lanes(factor, start, stop, L)
        _gather_lanes(v, start, stop, X)
        bad += _bad_pivots(indptr, L)
        for k in range(n):
            begin, end = indptr[k], indptr[k + 1]
            for q in range(begin, end):
                slot[rows[q]] = q
            for t in range(row_indptr[k], row_indptr[k + 1]):  # V_ik −= Σ_{j<k} X_ij L_kj + L_ij X_kj
                pk = row_positions[t]
                for p in range(pk, indptr[row_cols[t] + 1]):
                    q = slot[rows[p]]
                    for lane in range(width):
                        X[q, lane] -= X[p, lane] * L[pk, lane] + L[p, lane] * X[pk, lane]
            for lane in range(width):
                X[begin, lane] /= 2.0 * L[begin, lane]
            for q in range(begin + 1, end):  # V_ik = X_ik L_kk + L_ik X_kk
                for lane in range(width):
                    X[q, lane] = (X[q, lane] - L[q, lane] * X[begin, lane]) / L[begin, lane]
        bad += _scatter_lanes(X, start, stop, values)
    return bad


# ---------------------------------------------------------------------- selected inverse and its calculus
#
# L on S, Σ on F ⊇ S, F closed. With W = V + Vᵀ, tril(W L) = X reads, column by column from the last,
#     W_ij = (X_ij − Σ_{k ∈ S_j} W_ik L_kj) / L_jj   for i ∈ F_j, i > j, then for i = j                  (1)
# and every W_ik it reads is on F, because F is closed. X = diag(1/L) gives W = Σ [Takahashi 1973; Erisman & Tinney
# 1975]. Only pairs {i, k} ⊂ F_j with one of them in S_j contribute: Σ_j |S_j| |F_j| of them.


@njit(cache=True, nogil=True, error_model="numpy")
def _backward_recursion(indptr, rows, fill_indptr, fill_rows, L, W, negligible):
    """Overwrite W, holding X on F, with the solution of (1), on lanes.

    An entry |W_ij| < negligible √W_ii / L_jj is set to zero; for W = Σ the right side is ≤ negligible √(Σ_ii Σ_jj).
    """
    width = L.shape[1]
    for j in range(indptr.shape[0] - 2, -1, -1):
        begin, end = indptr[j], indptr[j + 1]
        fill_begin, fill_end = fill_indptr[j], fill_indptr[j + 1]
        s = begin + 1
        for u in range(fill_begin + 1, fill_end):
            i = fill_rows[u]
            q, column_end = fill_indptr[i], fill_indptr[i + 1]
            if s < end and rows[s] == i:  # i ∈ S_j: every pair {i, k} with k ≥ i
                t = s
                for w in range(u, fill_end):
                    q = _find(fill_rows, q, column_end, fill_rows[w])
                    for lane in range(width):
                        W[w, lane] -= L[s, lane] * W[q, lane]
                    if t < end and rows[t] == fill_rows[w]:
                        if w != u:
                            for lane in range(width):
                                W[u, lane] -= L[t, lane] * W[q, lane]
                        t += 1
                s += 1
            else:  # only those with k ∈ S_j
                for t in range(s, end):
                    q = _find(fill_rows, q, column_end, rows[t])
                    for lane in range(width):
                        W[u, lane] -= L[t, lane] * W[q, lane]
        s = begin + 1
        for u in range(fill_begin + 1, fill_end):
            i = fill_rows[u]
            for lane in range(width):
                W[u, lane] /= L[begin, lane]
            if negligible > 0.0:
                for lane in range(width):
                    scale = math.sqrt(W[fill_indptr[i], lane]) / L[begin, lane]
                    if abs(W[u, lane]) < negligible * scale:
                        W[u, lane] = 0.0
            if s < end and rows[s] == i:
                for lane in range(width):
                    W[fill_begin, lane] -= L[s, lane] * W[u, lane]
                s += 1
        for lane in range(width):
            W[fill_begin, lane] /= L[begin, lane]


@njit(cache=True, nogil=True, error_model="numpy")
def _inverse_lanes(indptr, rows, fill_indptr, fill_rows, L, sigma):
    """Overwrite sigma with Σ on F, on lanes."""
    width = L.shape[1]
    sigma[:] = 0.0
    for j in range(indptr.shape[0] - 1):
        for lane in range(width):
            sigma[fill_indptr[j], lane] = 1.0 / L[indptr[j], lane]
    negligible = math.sqrt(np.finfo(L.dtype).tiny)
    _backward_recursion(indptr, rows, fill_indptr, fill_rows, L, sigma, negligible)


@njit(cache=True, nogil=True, error_model="numpy")
def cholesky_vjp(indptr, rows, factor, x, values, first, last):
    """values = V with tril((V + Vᵀ) L) = X on a closed pattern. Nonzero status: something is not finite."""
    bad = 0
    for start in range(first, last, LANES):
        stop = min(start + LANES, last)
        L = np.empty((rows.shape[0], stop - start), factor.dtype)
        W = np.empty((rows.shape[0], stop - start), factor.dtype)
        _gather_lanes(factor, start, stop, L)
        _gather_lanes(x, start, stop, W)
        bad += _bad_pivots(indptr, L)
        _backward_recursion(indptr, rows, indptr, rows, L, W, 0.0)
        for j in range(indptr.shape[0] - 1):
            for lane in range(stop - start):
                W[indptr[j], lane] *= 0.5
        bad += _scatter_lanes(W, start, stop, values)
    return bad


@njit(cache=True, nogil=True, error_model="numpy")
def selected_inverse(indptr, rows, fill_indptr, fill_rows, factor, values, first, last):
    """values = Σ on F from L on S. Nonzero status: something is not finite, or a pivot not positive."""
    bad = 0
    for start in range(first, last, LANES):
        stop = min(start + LANES, last)
        L = np.empty((rows.shape[0], stop - start), factor.dtype)
        sigma = np.empty((fill_rows.shape[0], stop - start), factor.dtype)
        _gather_lanes(factor, start, stop, L)
        bad += _bad_pivots(indptr, L)
        _inverse_lanes(indptr, rows, fill_indptr, fill_rows, L, sigma)
        bad += _scatter_lanes(sigma, start, stop, values)
    return bad


@njit(cache=True, nogil=True, error_model="numpy")
def marginal_variances(indptr, rows, fill_indptr, fill_rows, factor, variances, first, last):
    """variances = diag Σ from L on S; Σ on F lives in scratch. Status as `selected_inverse`."""
    bad = 0
    for start in range(first, last, LANES):
        stop = min(start + LANES, last)
        L = np.empty((rows.shape[0], stop - start), factor.dtype)
        sigma = np.empty((fill_rows.shape[0], stop - start), factor.dtype)
        _gather_lanes(factor, start, stop, L)
        bad += _bad_pivots(indptr, L)
        _inverse_lanes(indptr, rows, fill_indptr, fill_rows, L, sigma)
        for r in range(start, stop):
            for j in range(indptr.shape[0] - 1):
                variances[r, j] = sigma[fill_indptr[j], r - start]
                bad += not variances[r, j] < math.inf
    return bad


@njit(cache=True, nogil=True, error_model="numpy")
def _inverse_adjoint(indptr, rows, fill_indptr, fill_rows, L, sigma, G, L_bar):
    """Reverse mode of (1) with X = diag(1/L): G enters as Σ̄ and is used up; L̄ is added to L_bar. On lanes.

    Column j of (1) reads only columns > j of Σ, so the columns go forward; with h_i = G_ij / L_jj,
        L̄_kj −= h_i Σ_ik,   G_ik −= h_i L_kj   for k ∈ S_j,   and L̄_jj −= h_i Σ_ij.
    Callers allocate sigma and G as one block: the C library gives memory back to the system once more than twice its
    largest block is free, and two blocks, mapped anew at each call, took as long as the arithmetic.
    """
    width = L.shape[1]
    h = np.empty((np.diff(fill_indptr).max(), width), L.dtype)
    for j in range(indptr.shape[0] - 1):
        begin, end = indptr[j], indptr[j + 1]
        fill_begin, fill_end = fill_indptr[j], fill_indptr[j + 1]
        for lane in range(width):  # Σ_jj = 1/L_jj² − Σ_k L_kj Σ_kj / L_jj
            g = G[fill_begin, lane] / L[begin, lane]
            h[0, lane] = g
            L_bar[begin, lane] -= g * (sigma[fill_begin, lane] + 1.0 / (L[begin, lane] * L[begin, lane]))
        s = begin + 1
        for u in range(fill_begin + 1, fill_end):
            if s < end and rows[s] == fill_rows[u]:
                for lane in range(width):
                    L_bar[s, lane] -= h[0, lane] * sigma[u, lane]
                    G[u, lane] -= h[0, lane] * L[s, lane]
                s += 1
            for lane in range(width):
                h[u - fill_begin, lane] = G[u, lane] / L[begin, lane]
                L_bar[begin, lane] -= h[u - fill_begin, lane] * sigma[u, lane]
        s = begin + 1
        for u in range(fill_begin + 1, fill_end):  # the pairs of `_backward_recursion`
            i = fill_rows[u]
            q, column_end = fill_indptr[i], fill_indptr[i + 1]
            if s < end and rows[s] == i:
                t = s
                for w in range(u, fill_end):
                    q = _find(fill_rows, q, column_end, fill_rows[w])
                    for lane in range(width):
                        L_bar[s, lane] -= h[w - fill_begin, lane] * sigma[q, lane]
                        G[q, lane] -= h[w - fill_begin, lane] * L[s, lane]
                    if t < end and rows[t] == fill_rows[w]:
                        if w != u:
                            for lane in range(width):
                                L_bar[t, lane] -= h[u - fill_begin, lane] * sigma[q, lane]
                                G[q, lane] -= h[u - fill_begin, lane] * L[t, lane]
                        t += 1
                s += 1
            else:
                for t in range(s, end):
                    q = _find(fill_rows, q, column_end, rows[t])
                    for lane in range(width):
                        L_bar[t, lane] -= h[u - fill_begin, lane] * sigma[q, lane]
                        G[q, lane] -= h[u - fill_begin, lane] * L[t, lane]


@njit(cache=True, nogil=True, error_model="numpy")
def selected_inverse_vjp(indptr, rows, fill_indptr, fill_rows, factor, sigma_bar, factor_bar, first, last):
    """factor_bar = L̄ on S from Σ̄ on F; Σ is computed again in scratch. Status as `selected_inverse`."""
    bad = 0
    for start in range(first, last, LANES):
        stop = min(start + LANES, last)
        L = np.empty((rows.shape[0], stop - start), factor.dtype)
        scratch = np.empty((2, fill_rows.shape[0], stop - start), factor.dtype)  # as one block, see `_inverse_adjoint`
        G, sigma = scratch[0], scratch[1]
        L_bar = np.zeros((rows.shape[0], stop - start), factor.dtype)
        _gather_lanes(factor, start, stop, L)
        _gather_lanes(sigma_bar, start, stop, G)
        bad += _bad_pivots(indptr, L)
        _inverse_lanes(indptr, rows, fill_indptr, fill_rows, L, sigma)
        _inverse_adjoint(indptr, rows, fill_indptr, fill_rows, L, sigma, G, L_bar)
        bad += _scatter_lanes(L_bar, start, stop, factor_bar)
    return bad


@njit(cache=True, nogil=True, error_model="numpy")
def marginal_variances_vjp(indptr, rows, fill_indptr, fill_rows, factor, variances_bar, factor_bar, first, last):
    """factor_bar = L̄ on S from the adjoint of diag Σ. Status as `selected_inverse`."""
    bad = 0
    for start in range(first, last, LANES):
        stop = min(start + LANES, last)
        L = np.empty((rows.shape[0], stop - start), factor.dtype)
        scratch = np.empty((2, fill_rows.shape[0], stop - start), factor.dtype)  # as one block, see `_inverse_adjoint`
        G, sigma = scratch[0], scratch[1]
        L_bar = np.zeros((rows.shape[0], stop - start), factor.dtype)
        _gather_lanes(factor, start, stop, L)
        G[:] = 0.0
        for r in range(start, stop):
            for j in range(indptr.shape[0] - 1):
                G[fill_indptr[j], r - start] = variances_bar[r, j]
        bad += _bad_pivots(indptr, L)
        _inverse_lanes(indptr, rows, fill_indptr, fill_rows, L, sigma)
        _inverse_adjoint(indptr, rows, fill_indptr, fill_rows, L, sigma, G, L_bar)
        bad += _scatter_lanes(L_bar, start, stop, factor_bar)
    return bad
