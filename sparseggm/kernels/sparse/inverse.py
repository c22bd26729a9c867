"""The selected inverse, its derivatives and the Gram product, on blocks of lanes or single matrices.

L is on S; the wide pattern is that of the Gram product, or a closed F ⊇ S. Conventions are those of `products`.

With W = V + Vᵀ, tril(W L) = X reads, column by column from the last,
    W_ij = (X_ij − Σ_{k ∈ S_j} W_ik L_kj) / L_jj   for i ∈ F_j, i > j, then for i = j                  (1)
and every W_ik that (1) reads is on F, because F is closed. X = diag(1/L) gives W = Σ [Takahashi 1973; Erisman & Tinney
1975]. Only pairs {i, k} ⊂ F_j with i or k in S_j contribute: Σ_j |S_j| |F_j| pairs.

The module is longer than others, so that a recursion and its reverse mode are read side by side.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from sparseggm.kernels import INLINED, INNER, KERNEL, njit
from sparseggm.kernels.chain.recurrences import variances, variances_adjoint
from sparseggm.kernels.lanes.blocks import (
    bad_lanes,
    bad_pivots,
    gather,
    new_block,
    new_like,
    scatter,
    too_few_for_lanes,
)
from sparseggm.kernels.lanes.vector import full_like, lanes_of, load, square_root, store, zero_below

(
    GRAM_JVP,
    GRAM_VJP,
    CHOLESKY_VJP,
    SELECTED_INVERSE,
    MARGINAL_VARIANCES,
    SELECTED_INVERSE_VJP,
    MARGINAL_VARIANCES_VJP,
) = range(7)


class Fill(NamedTuple):
    """The wide pattern, by columns and, strictly below the diagonal, by rows."""

    indptr: Any
    rows: Any
    row_indptr: Any
    row_cols: Any
    row_positions: Any


@njit(**KERNEL)
def sweep(verb, is_chain, indptr, rows, wide, chosen, a, b, values, first, last):
    """values = verb(a, b), row by row. Nonzero status: something is not finite, or a pivot not positive.

    `wide` is a `Fill`. If `chosen` is not empty, only those entries of the result of CHOLESKY_VJP are given.
    """
    lanes, bad = lanes_of(a), 0
    size = wide.rows.shape[0] if verb >= MARGINAL_VARIANCES else 0  # Σ is scratch
    twice = size if verb > MARGINAL_VARIANCES else 0  # and so is its cotangent
    some = chosen.shape[0] > 0
    if too_few_for_lanes(first, last, lanes):
        memory = np.empty(size + twice, a.dtype)
        sigma, G, whole = memory[:size], memory[size:], np.empty(rows.shape[0] if some else 0, a.dtype)
        for r in range(first, last):
            result = whole if some else values[r]
            bad += _apply(verb, is_chain, indptr, rows, wide, a[r], b[r], result, sigma, G)
            _choose(whole, chosen, values[r])
        return bad
    A, B = new_block(a.shape[1], a), new_block(b.shape[1], a)
    result = new_block(rows.shape[0] if some else values.shape[1], a)
    memory = new_block(size + twice, a)  # one piece: much free memory the C library unmaps, and maps anew
    sigma, G = memory[:size], memory[size:]
    for start in range(first, last, lanes):
        stop = min(start + lanes, last)
        gather(a, start, stop, A)
        gather(b, start, stop, B)
        bad += _apply(verb, is_chain, indptr, rows, wide, A, B, result, sigma, G)
        _choose(result, chosen, result)
        scatter(result[: values.shape[1]], values, start, stop)
    return bad


@njit(**INNER)
def _choose(values, chosen, result):
    """result = values[chosen]. Positions increase, so the result may begin at the same address as the values."""
    for p in range(chosen.shape[0]):
        store(result, p, load(values, chosen[p]))


@njit(**INNER)
def _apply(verb, is_chain, indptr, rows, wide, a, b, out, sigma, G):
    """out = verb(a, b); `sigma` and `G` are memory for Σ and its cotangent. Returns the number of failures.

    Numba compiles a function again into each caller; so the recursion is called from one place only.
    """
    if verb == GRAM_JVP:
        _gram_jvp(indptr, rows, wide, a, b, out)
        return bad_lanes(out, 0, out.shape[0])
    if verb == GRAM_VJP:
        _gram_vjp(indptr, rows, wide, a, b, out)
        return bad_lanes(out, 0, out.shape[0])
    bad = bad_pivots(indptr, a, indptr.shape[0] - 1)
    if is_chain and verb == MARGINAL_VARIANCES:
        variances(a, out)
    elif is_chain and verb == MARGINAL_VARIANCES_VJP:
        v = sigma[: b.shape[0]]
        variances(a, v)
        variances_adjoint(a, v, b, out)
    else:
        W = out if verb <= SELECTED_INVERSE else sigma
        if verb == CHOLESKY_VJP:
            for p in range(rows.shape[0]):
                store(W, p, load(b, p))
        takahashi(verb != CHOLESKY_VJP, indptr, rows, wide, a, W)
        if verb == CHOLESKY_VJP:
            for j in range(indptr.shape[0] - 1):
                store(W, indptr[j], full_like(W, 0.5) * load(W, indptr[j]))
        elif verb == MARGINAL_VARIANCES:
            for j in range(indptr.shape[0] - 1):
                store(out, j, load(sigma, wide.indptr[j]))
        elif verb > MARGINAL_VARIANCES:
            _spread(verb, wide.indptr, b, G)
            takahashi_adjoint(indptr, rows, wide, a, sigma, G, out)
    return bad + bad_lanes(out, 0, out.shape[0])


@njit(**INNER)
def _spread(verb, fill_indptr, b, G):
    """The cotangent of Σ on F: b itself, or b on the diagonal and zeros elsewhere."""
    if verb == SELECTED_INVERSE_VJP:
        for q in range(G.shape[0]):
            store(G, q, load(b, q))
    else:
        G[:] = 0.0
        for j in range(fill_indptr.shape[0] - 1):
            store(G, fill_indptr[j], load(b, j))


@njit(**INNER)
def find(rows, low, stop, row):
    """Position of `row` in the increasing rows[low:stop], which holds it: the first, or by doubling and bisection."""
    if rows[low] == row:
        return low
    step = 1
    while low + step < stop and rows[low + step] < row:
        low += step
        step *= 2
    if low + step < stop and rows[low + step] == row:
        return low + step
    high = min(low + step, stop)
    while high - low > 1:
        middle = (low + high) // 2
        if rows[middle] <= row:
            low = middle
        else:
            high = middle
    return low


# ---------------------------------------------------------------------- the Gram product


@njit(**INNER)
def _gram_jvp(indptr, rows, gram, A, B, out):
    """out = tril(A Bᵀ + B Aᵀ) on the gram pattern."""
    gram_indptr, gram_rows = gram.indptr, gram.rows
    out[:] = 0.0
    for j in range(indptr.shape[0] - 1):
        for p in range(indptr[j], indptr[j + 1]):
            A_p, B_p = load(A, p), load(B, p)
            q, column_end = gram_indptr[rows[p]], gram_indptr[rows[p] + 1]
            for s in range(p, indptr[j + 1]):
                q = find(gram_rows, q, column_end, rows[s])
                store(out, q, load(out, q) + (load(A, s) * B_p + load(B, s) * A_p))


@njit(**INNER)
def _gram_vjp(indptr, rows, gram, A, V, out):
    """out = tril((V + Vᵀ) A) on the pattern of A, V on the gram pattern."""
    gram_indptr, gram_rows = gram.indptr, gram.rows
    out[:] = 0.0
    for j in range(indptr.shape[0] - 1):
        for p in range(indptr[j], indptr[j + 1]):
            A_p = load(A, p)
            q, column_end = gram_indptr[rows[p]], gram_indptr[rows[p] + 1]
            for s in range(p, indptr[j + 1]):
                q = find(gram_rows, q, column_end, rows[s])
                V_q = load(V, q)
                store(out, s, load(out, s) + V_q * A_p)
                store(out, p, load(out, p) + V_q * load(A, s))


# ---------------------------------------------------------------------- the selected inverse


# The W_ik of the pairs {i, k} ⊂ F_j: those with i ∈ S_j and k ≥ i stand in column i of F; those with i ∉ S_j, k ∈ S_j
# and i < k in row k, right of `left[k]`, the place of column j in that row.


@njit(**INNER)
def takahashi(is_covariance, indptr, rows, fill, L, W):
    """Overwrite W, which holds X on F unless Σ is wanted, with the solution of (1).

    An entry |Σ_ij| < √tiny √Σ_ii / L_jj ≤ √tiny √(Σ_ii Σ_jj) is set to zero.
    """
    fill_indptr, fill_rows, row_indptr, row_cols, row_positions = fill
    small = full_like(L, math.sqrt(np.float64(np.finfo(L.dtype).tiny)))
    threshold = new_like(indptr.shape[0] - 1 if is_covariance else 0, L)
    if is_covariance:
        W[:] = 0.0
        for j in range(indptr.shape[0] - 1):
            store(W, fill_indptr[j], full_like(L, 1.0) / load(L, indptr[j]))
    left = row_indptr[1:].copy()
    outside = np.empty(np.diff(fill_indptr).max(), np.int32)
    for j in range(indptr.shape[0] - 2, -1, -1):
        begin, end = indptr[j], indptr[j + 1]
        fill_begin, fill_end = fill_indptr[j], fill_indptr[j + 1]
        s, others, u = begin + 1, 0, fill_begin + 1
        while u < fill_end:
            left[fill_rows[u]] -= 1
            if s == end or rows[s] != fill_rows[u]:
                outside[others] = u
                others += 1
                u += 1
            elif s + 1 < end and u + 1 < fill_end and rows[s + 1] == fill_rows[u + 1]:
                left[fill_rows[u + 1]] -= 1
                _add_two_columns(rows, fill_indptr, fill_rows, s, end, u, fill_end, L, W)
                s += 2
                u += 2
            else:
                _add_column(rows, fill_indptr, fill_rows, s, end, u, fill_end, L, W)
                s += 1
                u += 1
        for s in range(begin + 1, end if others else 0):
            k, L_kj = rows[s], load(L, s)
            t, row_end = left[k], row_indptr[k + 1]
            for v in range(others):
                u = outside[v]
                if fill_rows[u] > k:
                    break
                t = find(row_cols, t, row_end, fill_rows[u])
                store(W, u, load(W, u) - L_kj * load(W, row_positions[t]))
        pivot = load(L, begin)
        W_jj = load(W, fill_begin)
        s = begin + 1
        for u in range(fill_begin + 1, fill_end):
            i = fill_rows[u]
            W_ij = load(W, u)
            if is_covariance:
                W_ij = zero_below(W_ij, load(threshold, i))
            W_ij = W_ij / pivot
            store(W, u, W_ij)
            if s < end and rows[s] == i:
                W_jj = W_jj - load(L, s) * W_ij
                s += 1
        W_jj = W_jj / pivot
        store(W, fill_begin, W_jj)
        if is_covariance:
            store(threshold, j, small * square_root(W_jj))


@njit(**INNER)
def _next(rows, q, stop, row):
    """Position of `row` beyond q in the increasing rows[:stop], which holds it."""
    q += np.uint64(1)
    return q if rows[q] == row else np.uint64(find(rows, np.int64(q), stop, row))


@njit(**INLINED)
def _add_column(rows, fill_indptr, fill_rows, s, end, u, fill_end, L, W):
    """In column j: W_kj −= L_ij W_ik for k > i, and W_ij −= L_kj W_ik; i is the row at s of L and at u of W.

    Indexes are unsigned, because Numba tests signed ones for counting from the end.
    """
    i, L_ij, one = fill_rows[u], load(L, s), np.uint64(1)
    q, stop = np.uint64(fill_indptr[i]), fill_indptr[i + 1]
    t, last = np.uint64(s + 1), np.uint64(end)
    W_ij = load(W, u) - L_ij * load(W, q)
    for w in range(np.uint64(u + 1), np.uint64(fill_end)):
        k = fill_rows[w]
        q = _next(fill_rows, q, stop, k)
        W_ik = load(W, q)
        store(W, w, load(W, w) - L_ij * W_ik)
        if t < last and rows[t] == k:
            W_ij = W_ij - load(L, t) * W_ik
            t += one
    store(W, u, W_ij)


@njit(**INLINED)
def _add_two_columns(rows, fill_indptr, fill_rows, s, end, u, fill_end, L, W):
    """`_add_column` at s, u and then at s + 1, u + 1, to the same bits, with one load and store of W_kj for both."""
    first, second = fill_rows[u], fill_rows[u + 1]
    L_1, L_2, one = load(L, s), load(L, s + 1), np.uint64(1)
    q, stop = np.uint64(fill_indptr[first]), fill_indptr[first + 1]
    v, last_v = np.uint64(fill_indptr[second]), fill_indptr[second + 1]
    t, last = np.uint64(s + 2), np.uint64(end)
    W_1 = load(W, u) - L_1 * load(W, q)
    q = _next(fill_rows, q, stop, second)
    W_12 = load(W, q)
    W_2 = load(W, u + 1) - L_1 * W_12
    W_1 = W_1 - L_2 * W_12
    W_2 = W_2 - L_2 * load(W, v)
    for w in range(np.uint64(u + 2), np.uint64(fill_end)):
        k = fill_rows[w]
        q, v = _next(fill_rows, q, stop, k), _next(fill_rows, v, last_v, k)
        W_1k, W_2k = load(W, q), load(W, v)
        store(W, w, load(W, w) - L_1 * W_1k - L_2 * W_2k)
        if t < last and rows[t] == k:
            L_kj = load(L, t)
            W_1 = W_1 - L_kj * W_1k
            W_2 = W_2 - L_kj * W_2k
            t += one
    store(W, u, W_1)
    store(W, u + 1, W_2)


@njit(**INNER)
def takahashi_adjoint(indptr, rows, fill, L, sigma, G, L_bar):
    """Reverse mode of (1) with X = diag(1/L): G enters as Σ̄ and is overwritten; L̄ is written to L_bar.

    Column j of (1) reads only columns > j of Σ, so the columns go forward; with h_i = G_ij / L_jj,
        L̄_kj −= h_i Σ_ik,   G_ik −= h_i L_kj   for k ∈ S_j,   and L̄_jj −= h_i Σ_ij.
    """
    fill_indptr, fill_rows, row_indptr, row_cols, row_positions = fill
    one = full_like(L, 1.0)
    h = new_like(np.diff(fill_indptr).max(), G)
    left = row_indptr[:-1].copy()
    outside = np.empty(h.shape[0], np.int32)
    L_bar[:] = 0.0
    for j in range(indptr.shape[0] - 1):
        begin, end = indptr[j], indptr[j + 1]
        fill_begin, fill_end = fill_indptr[j], fill_indptr[j + 1]
        pivot = load(L, begin)
        h_j = load(G, fill_begin) / pivot  # Σ_jj = 1/L_jj² − Σ_k L_kj Σ_kj / L_jj
        pivot_bar = load(L_bar, begin) - h_j * (load(sigma, fill_begin) + one / (pivot * pivot))
        s, others = begin + 1, 0
        for u in range(fill_begin + 1, fill_end):
            sigma_ij, G_ij = load(sigma, u), load(G, u)
            if s < end and rows[s] == fill_rows[u]:
                store(L_bar, s, load(L_bar, s) - h_j * sigma_ij)
                G_ij = G_ij - h_j * load(L, s)
                s += 1
            else:
                outside[others] = u
                others += 1
            h_i = G_ij / pivot
            store(h, u - fill_begin, h_i)
            pivot_bar = pivot_bar - h_i * sigma_ij
        store(L_bar, begin, pivot_bar)
        u = fill_begin
        for s in range(begin + 1, end):
            i, L_ij, L_ij_bar = rows[s], load(L, s), load(L_bar, s)
            u = find(fill_rows, u, fill_end, i)
            h_i = load(h, u - fill_begin)
            q, stop = np.uint64(fill_indptr[i]), fill_indptr[i + 1]
            L_ij_bar = L_ij_bar - h_i * load(sigma, q)
            store(G, q, load(G, q) - h_i * L_ij)
            t, last = np.uint64(s + 1), np.uint64(end)
            for w in range(np.uint64(u + 1), np.uint64(fill_end)):
                k = fill_rows[w]
                q = _next(fill_rows, q, stop, k)
                h_k, sigma_ik = load(h, w - np.uint64(fill_begin)), load(sigma, q)
                L_ij_bar = L_ij_bar - h_k * sigma_ik
                G_ik = load(G, q) - h_k * L_ij
                if t < last and rows[t] == k:
                    store(L_bar, t, load(L_bar, t) - h_i * sigma_ik)
                    G_ik = G_ik - h_i * load(L, t)
                    t += np.uint64(1)
                store(G, q, G_ik)
            t, row_end = left[i], row_indptr[i + 1]
            for v in range(others):
                w = outside[v]
                if fill_rows[w] > i:
                    break
                t = find(row_cols, t, row_end, fill_rows[w])
                q, h_k = row_positions[t], load(h, w - fill_begin)
                L_ij_bar = L_ij_bar - h_k * load(sigma, q)
                store(G, q, load(G, q) - h_k * L_ij)
            store(L_bar, s, L_ij_bar)
        for u in range(fill_begin + 1, fill_end):
            left[fill_rows[u]] += 1
