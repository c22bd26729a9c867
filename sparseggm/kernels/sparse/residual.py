"""A sample and KL to a prior, node by node, of a posterior that is the prior moved in its regression coordinates.

Per batch element, all in the pattern's numbering; M is the factor of p, R = S_j without j, and packed moves hold δ_j on
the diagonal and Δ_ij below it:

    the map     L_jj = M_jj e^{−δ_j},   L_ij = e^{−δ_j} (M_ij − Δ_ij M_jj)
    forward     s = M⁻ᵀ a,   y = L⁻ᵀ ε,   z = loc + s + y
                t_j = h(δ_j) + ½ a_j² + ½ M_jj² Δ_jᵀ Σ_RR Δ_j,   h(δ) = ½ (e^{2δ} − 1) − δ
    backward    ᾱ = M⁻¹ z̄,   ε̄ = L⁻¹ z̄,   ā = ᾱ + t̄ a,   M̄ = −s ᾱᵀ,   L̄ = −y ε̄ᵀ + ∂⟨Σ̄, Σ⟩/∂L,   w_j = t̄_j M_jj²
                with w_j Δ_i Δ_k in Σ̄_ik and half of that in Σ̄_ii; then, through the terms and the map,
                M̄_jj += t̄_j M_jj Δ_jᵀ Σ_RR Δ_j + e^{−δ_j} (L̄_jj − Σ_i L̄_ij Δ_ij),   M̄_ij += e^{−δ_j} L̄_ij
                δ̄_j = t̄_j (e^{2δ_j} − 1) − Σ_i L̄_ij L_ij, i = j too,   Δ̄_j = w_j Σ_RR Δ_j − e^{−δ_j} M_jj L̄_Rj

Conventions are those of `step`. Σ is that of q, on the fill, where all pairs of R stand.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from sparseggm.kernels import INNER, KERNEL, njit
from sparseggm.kernels.lanes.addresses import read_rows, write_rows
from sparseggm.kernels.lanes.blocks import bad_lanes, bad_pivots, gather, new_block, scatter
from sparseggm.kernels.lanes.normal import exp, exp_and_expm1, where_positive
from sparseggm.kernels.lanes.vector import as_float64, full_like, lanes_of, load, minimum, store, store_run
from sparseggm.kernels.sparse.inverse import find, takahashi, takahashi_adjoint
from sparseggm.kernels.sparse.products import solve, solve_t

_LARGEST = 710.0  # its exponential is infinite

SERIES = np.array([0.5 / math.factorial(k) for k in range(16, 1, -1)])
"""Of ½ (eˣ − 1 − x) / x², highest power first; the first term left out is below 1e-19 for |x| < ½."""


class Nodes(NamedTuple):
    """Blocks of a row a node, in the order in which the kernel gathers, solves and scatters them."""

    a: Any
    s: Any
    y: Any
    alpha: Any
    """Forward loc."""
    eps_bar: Any
    t_bar: Any
    """Forward the terms."""
    w: Any
    shrink: Any
    """e^{−δ}."""
    growth: Any
    """Forward h(δ), backward e^{2δ} − 1."""


class Entries(NamedTuple):
    """Blocks of a row an entry of the pattern."""

    M: Any
    moves: Any
    L: Any
    pulls: Any
    """Σ_RR Δ_j in column j, nothing on the diagonal."""
    L_bar: Any


@njit(**KERNEL)
def sample_and_kl_terms(like, count, structure, fill, given, cotangents, results, first, last):
    """z and the terms of given = (loc, M, a, moves, ε) to results[:2], overwritten, if `cotangents` are at 0.

    Otherwise, for the cotangents (z̄, t̄), those of a, ε, M and moves to results[2:]; no ε̄ if its address is 0. That of
    loc is z̄. Nonzero status: something is not finite, or a pivot not positive. One kernel serves both ways, and loops
    over its arrays, because functions compiled at two calls would be compiled twice.
    """
    indptr, rows = structure
    n, nnz, backward, bad = indptr.shape[0] - 1, rows.shape[0], cotangents[0] != 0, 0
    packed = read_rows(given[1], count, nnz, like), read_rows(given[3], count, nnz, like)
    shift, noise = read_rows(given[2], count, n, like), read_rows(given[4], count, n, like)
    loc = read_rows(cotangents[0] if backward else given[0], count, n, like)
    t_bar = read_rows(cotangents[1], count, n, like)
    vectors = shift, shift, noise, loc, loc, t_bar
    outputs = (
        (2, write_rows(results[0], count, n, like)),
        (5, write_rows(results[1], count, n, like)),
        (0, write_rows(results[2], count, n, like)),
        (4, write_rows(results[3], count, n, like)),
    )
    bars = write_rows(results[4], count, nnz, like), write_rows(results[5], count, nnz, like)
    lanes, entries = lanes_of(shift), fill.rows.shape[0]
    x, v = _new_nodes(n, shift), _new_entries(nnz, shift)
    sigma, G = new_block(entries, shift), new_block(entries if backward else 0, shift)
    for start in range(first, last, lanes):
        stop = min(start + lanes, last)
        for k in range(6 if backward else 4):
            gather(vectors[k], start, stop, x[k])
        for k in range(2):
            gather(packed[k], start, stop, v[k])
        bad += _move(backward, indptr, x, v)
        for k in range(2):
            bad += solve_t(indptr, rows, v[2 * k], x[1 + k])
        takahashi(True, indptr, rows, fill, v.L, sigma)
        for k in range(2 if backward else 0):
            bad += solve(indptr, rows, v[2 * k], x[3 + k])
        pull(indptr, rows, fill, x, v, sigma, G)
        if backward:
            takahashi_adjoint(indptr, rows, fill, v.L, sigma, G, v.L_bar)
            bad += _adjoint(indptr, rows, x, v)
        else:
            bad += _sample_and_terms(indptr, x, v)
        for k in range(4):
            if outputs[k][1].shape[0]:
                scatter(x[outputs[k][0]], outputs[k][1], start, stop)
        for k in range(2 if backward else 0):
            scatter(v[k], bars[k], start, stop)
    return bad


@njit(**INNER)
def _new_nodes(n, like):
    b = new_block(9 * n, like)
    first = b[:n], b[n : 2 * n], b[2 * n : 3 * n], b[3 * n : 4 * n], b[4 * n : 5 * n]
    return Nodes(*first, b[5 * n : 6 * n], b[6 * n : 7 * n], b[7 * n : 8 * n], b[8 * n :])


@njit(**INNER)
def _new_entries(nnz, like):
    b = new_block(5 * nnz, like)
    return Entries(b[:nnz], b[nnz : 2 * nnz], b[2 * nnz : 3 * nnz], b[3 * nnz : 4 * nnz], b[4 * nnz :])


# ---------------------------------------------------------------------- the map


@njit(**INNER)
def _move(backward, indptr, x, v):
    """L, e^{−δ}, and h(δ) or e^{2δ} − 1; the number of lanes with a pivot that is not positive and finite."""
    n, scratch = x.a.shape[0], np.empty(lanes_of(x.a))
    for j in range(n):
        begin = indptr[j]
        shrink, h, growth = _scales(v.moves, begin)
        store_rounded(x.shrink, j, shrink, scratch)
        store_rounded(x.growth, j, growth if backward else h, scratch)
        e, pivot = load(x.shrink, j), load(v.M, begin)
        store(v.L, begin, e * pivot)
        for p in range(begin + 1, indptr[j + 1]):
            store(v.L, p, e * (load(v.M, p) - load(v.moves, p) * pivot))
    return bad_pivots(indptr, v.M, n) + bad_pivots(indptr, v.L, n)


@njit(**INNER)
def _scales(moves, i):
    """e^{−δ}, h(δ) and e^{2δ} − 1 in float64 of the δ in row i; infinite beyond the range, and for NaN."""
    delta, zero = as_float64(load(moves, i)), as_float64(full_like(moves, 0.0))
    x = minimum(delta + delta, zero + _LARGEST)
    growth = exp_and_expm1(x)[1]
    small = (x * x) * -1.0 + 0.25
    h = where_positive(small, halved_rest_of_exp(x), (growth - x) * 0.5)
    return exp(minimum(delta * -1.0, zero + _LARGEST)), h, growth


@njit(**INNER)
def halved_rest_of_exp(x):
    """½ (eˣ − 1 − x) of each lane, |x| < ½."""
    series = x * 0.0
    for k in range(len(SERIES)):
        series = series * x + SERIES[k]
    return series * (x * x)


@njit(**INNER)
def store_rounded(block, i, value, scratch):
    """Row i of a block: a float64 value, in the block's dtype."""
    store_run(scratch, 0, value)
    for lane in range(block.shape[1]):
        block[i, lane] = scratch[lane]


# ---------------------------------------------------------------------- both ways


@njit(**INNER)
def pull(indptr, rows, fill, x, v, sigma, G):
    """Σ_RR Δ_j of each column; unless G is empty also w, and G = Σ_j w_j Δ_j Δ_jᵀ, its diagonal halved."""
    zero, half, spreads = full_like(v.M, 0.0), full_like(v.M, 0.5), G.shape[0] > 0
    G[:] = 0.0
    for j in range(indptr.shape[0] - 1):
        begin, end, w = indptr[j], indptr[j + 1], zero
        if spreads:
            pivot = load(v.M, begin)
            w = (load(x.t_bar, j) * pivot) * pivot
            store(x.w, j, w)
        for p in range(begin, end):
            store(v.pulls, p, zero)
        for p in range(begin + 1, end):
            q, stop = fill.indptr[rows[p]], fill.indptr[rows[p] + 1]
            D_p, weighted = load(v.moves, p), zero
            pull = load(v.pulls, p) + load(sigma, q) * D_p
            if spreads:
                weighted = w * D_p
                store(G, q, load(G, q) + half * weighted * D_p)
            for s in range(p + 1, end):
                q = find(fill.rows, q, stop, rows[s])
                D_s, sigma_ps = load(v.moves, s), load(sigma, q)
                pull = pull + sigma_ps * D_s
                store(v.pulls, s, load(v.pulls, s) + sigma_ps * D_p)
                if spreads:
                    store(G, q, load(G, q) + weighted * D_s)
            store(v.pulls, p, pull)


# ---------------------------------------------------------------------- forward


@njit(**INNER)
def _sample_and_terms(indptr, x, v):
    """loc + s + y in place of y, where loc is in `alpha`, and the terms in `t_bar`; the number of lanes not finite.

    The terms are summed in float64. Rounding can make Δ_jᵀ Σ_RR Δ_j negative, which is then replaced by zero.
    """
    n, scratch = x.a.shape[0], np.empty(lanes_of(x.a))
    for j in range(n):
        store(x.y, j, (load(x.alpha, j) + load(x.s, j)) + load(x.y, j))
        store_rounded(x.t_bar, j, term(indptr, x, v, j), scratch)
    return bad_lanes(x.y, 0, n) + bad_lanes(x.t_bar, 0, n)


@njit(**INNER)
def term(indptr, x, v, j):
    """h(δ_j) + ½ a_j² + ½ M_jj² Δ_jᵀ Σ_RR Δ_j in float64, h(δ_j) in `growth`."""
    square, begin = as_float64(full_like(x.a, 0.0)), indptr[j]
    for p in range(begin + 1, indptr[j + 1]):
        square = square + as_float64(load(v.moves, p)) * as_float64(load(v.pulls, p))
    pivot, a = as_float64(load(v.M, begin)), as_float64(load(x.a, j))
    square = (pivot * where_positive(square, square, square * 0.0)) * pivot  # NaN stays NaN
    return as_float64(load(x.growth, j)) + (a * a + square) * 0.5


# ---------------------------------------------------------------------- backward


@njit(**INNER)
def _adjoint(indptr, rows, x, v):
    """M̄, ā and the cotangents of the moves in place of M, a and the moves; the number of lanes not finite."""
    n, zero = x.a.shape[0], full_like(v.M, 0.0)
    for j in range(n):
        begin, e, alpha, eps_bar = indptr[j], load(x.shrink, j), load(x.alpha, j), load(x.eps_bar, j)
        pivot, t, w = load(v.M, begin), load(x.t_bar, j), load(x.w, j)
        L_bar = load(v.L_bar, begin) - load(x.y, j) * eps_bar
        pivot_bar, delta_bar, square = e * L_bar, t * load(x.growth, j) - L_bar * load(v.L, begin), zero
        for p in range(begin + 1, indptr[j + 1]):
            D, pull, i = load(v.moves, p), load(v.pulls, p), rows[p]
            L_bar = load(v.L_bar, p) - load(x.y, i) * eps_bar
            M_bar = e * L_bar
            square, pivot_bar = square + D * pull, pivot_bar - M_bar * D
            delta_bar = delta_bar - L_bar * load(v.L, p)
            store(v.M, p, M_bar - load(x.s, i) * alpha)
            store(v.moves, p, w * pull - pivot * M_bar)
        store(v.M, begin, pivot_bar + (t * pivot) * square - load(x.s, j) * alpha)
        store(v.moves, begin, delta_bar)
        store(x.a, j, alpha + t * load(x.a, j))
    entries = indptr[n]
    return bad_lanes(v.M, 0, entries) + bad_lanes(v.moves, 0, entries) + bad_lanes(x.a, 0, n)
