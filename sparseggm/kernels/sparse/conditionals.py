"""KL between Gaussians whose factors are on one pattern, node by node: the mean divergence of their conditionals.

Per batch element, all in the pattern's numbering; L is the factor of q, M that of p, d = loc_q − loc_p, R = S_j without
j, and packed changes hold Δ_ij = M_ij/M_jj − L_ij/L_jj, the difference of regression weights:

    forward     a = Mᵀ d,   δ_j = log M_jj/L_jj,   t_j = h(δ_j) + ½ a_j² + ½ M_jj² Δ_jᵀ Σ_RR Δ_j,
                h(δ) = ½ (e^{2δ} − 1) − δ,   e^{2δ} − 1 = r (2 + r),   r = (M_jj − L_jj) / L_jj
    backward    ā = t̄ a,   d̄ = M ā,   w_j = t̄_j M_jj²,   Δ̄_j = w_j Σ_RR Δ_j,   δ̄_j = t̄_j (e^{2δ_j} − 1),
                M̄ = d āᵀ,   M̄_ij += Δ̄_ij / M_jj,   M̄_jj += t̄_j M_jj Δ_jᵀ Σ_RR Δ_j + (δ̄_j − Σ_i Δ̄_ij M_ij / M_jj) / M_jj
                L̄ = ∂⟨Σ̄, Σ⟩/∂L,   L̄_ij −= Δ̄_ij / L_jj,   L̄_jj −= (δ̄_j − Σ_i Δ̄_ij L_ij / L_jj) / L_jj
                with w_j Δ_i Δ_k in Σ̄_ik and half of that in Σ̄_ii

Conventions are those of `residual`, of which this is the case that both factors are given.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from sparseggm.kernels import INNER, KERNEL, njit
from sparseggm.kernels.lanes.addresses import read_rows, write_rows
from sparseggm.kernels.lanes.blocks import bad_lanes, bad_pivots, gather, new_block, scatter
from sparseggm.kernels.lanes.normal import log, log1p, where_positive
from sparseggm.kernels.lanes.vector import as_float64, full_like, lanes_of, load, minimum, store
from sparseggm.kernels.sparse.inverse import takahashi, takahashi_adjoint
from sparseggm.kernels.sparse.residual import halved_rest_of_exp, pull, store_rounded, term

_TINY = float(np.finfo(np.float64).tiny)
_LIFT, _LOG_OF_LIFT = 2.0**54, 54.0 * math.log(2.0)


class Nodes(NamedTuple):
    """Blocks of a row a node."""

    d: Any
    t_bar: Any
    """Forward the terms."""
    d_bar: Any
    a: Any
    w: Any
    growth: Any
    """Forward h(δ), backward e^{2δ} − 1."""


class Entries(NamedTuple):
    """Blocks of a row an entry of the pattern."""

    L: Any
    M: Any
    moves: Any
    """Δ, nothing on the diagonal."""
    pulls: Any
    """Σ_RR Δ_j in column j, nothing on the diagonal."""
    L_bar: Any


@njit(**KERNEL)
def kl_terms(like, count, structure, fill, given, t_bar, results, first, last):
    """The terms of given = (d, L, M) to results[0], overwritten, if `t_bar` is at 0; else d̄, L̄, M̄ to results[1:].

    Nonzero status: something is not finite, or a pivot not positive. One kernel serves both ways: see `residual`.
    """
    indptr, rows = structure
    n, nnz, backward, bad = indptr.shape[0] - 1, rows.shape[0], t_bar != 0, 0
    vectors = read_rows(given[0], count, n, like), read_rows(t_bar, count, n, like)
    packed = read_rows(given[1], count, nnz, like), read_rows(given[2], count, nnz, like)
    outputs = (1, write_rows(results[0], count, n, like)), (2, write_rows(results[1], count, n, like))
    bars = write_rows(results[2], count, nnz, like), write_rows(results[3], count, nnz, like)
    lanes, entries = lanes_of(vectors[0]), fill.rows.shape[0]
    x, v = _new_nodes(n, vectors[0]), _new_entries(nnz, vectors[0])
    sigma, G = new_block(entries, vectors[0]), new_block(entries if backward else 0, vectors[0])
    for start in range(first, last, lanes):
        stop = min(start + lanes, last)
        for k in range(2 if backward else 1):
            gather(vectors[k], start, stop, x[k])
        for k in range(2):
            gather(packed[k], start, stop, v[k])
        bad += _compare(backward, indptr, rows, x, v)
        takahashi(True, indptr, rows, fill, v.L, sigma)
        pull(indptr, rows, fill, x, v, sigma, G)
        if backward:
            takahashi_adjoint(indptr, rows, fill, v.L, sigma, G, v.L_bar)
            bad += _adjoint(indptr, rows, x, v)
        else:
            bad += _terms(indptr, x, v)
        for k in range(2):
            if outputs[k][1].shape[0]:
                scatter(x[outputs[k][0]], outputs[k][1], start, stop)
        for k in range(2 if backward else 0):
            scatter(v[k], bars[k], start, stop)
    return bad


@njit(**INNER)
def _new_nodes(n, like):
    b = new_block(6 * n, like)
    return Nodes(b[:n], b[n : 2 * n], b[2 * n : 3 * n], b[3 * n : 4 * n], b[4 * n : 5 * n], b[5 * n :])


@njit(**INNER)
def _new_entries(nnz, like):
    b = new_block(5 * nnz, like)
    return Entries(b[:nnz], b[nnz : 2 * nnz], b[2 * nnz : 3 * nnz], b[3 * nnz : 4 * nnz], b[4 * nnz :])


@njit(**INNER)
def _compare(backward, indptr, rows, x, v):
    """a, Δ, and h(δ) or e^{2δ} − 1, formed in float64; the number of lanes with a pivot not positive and finite."""
    n, scratch = x.a.shape[0], np.empty(lanes_of(x.a))
    for j in range(n):
        begin = indptr[j]
        own, pivot = as_float64(load(v.L, begin)), as_float64(load(v.M, begin))
        white = pivot * as_float64(load(x.d, j))
        store(v.moves, begin, full_like(v.M, 0.0))
        for p in range(begin + 1, indptr[j + 1]):
            M_p = as_float64(load(v.M, p))
            white = white + M_p * as_float64(load(x.d, rows[p]))
            store_rounded(v.moves, p, M_p / pivot - as_float64(load(v.L, p)) / own, scratch)
        store_rounded(x.a, j, white, scratch)
        h, growth = _divergence_of_scales(own, pivot)
        store_rounded(x.growth, j, growth if backward else h, scratch)
    return bad_pivots(indptr, v.M, n) + bad_pivots(indptr, v.L, n)


@njit(**INNER)
def _divergence_of_scales(own, pivot):
    """h(δ) and e^{2δ} − 1 of e^δ = pivot / own, in float64, without cancellation where these are nearly equal."""
    r, ratio = (pivot - own) / own, pivot / own
    growth, near = r * (r + 2.0), (r * r) * -1.0 + 0.04
    far = where_positive(minimum(ratio - _TINY, ratio * -1.0 + 1.0 / _TINY), log(ratio), _log(pivot) - _log(own))
    delta = where_positive(near, log1p(r), far)
    return where_positive(near, halved_rest_of_exp(delta + delta), growth * 0.5 - delta), growth


@njit(**INNER)
def _log(x):
    """log x of each lane, positive: subnormal too."""
    tiny = x * -1.0 + _TINY
    return log(where_positive(tiny, x * _LIFT, x)) - where_positive(tiny, x * 0.0 + _LOG_OF_LIFT, x * 0.0)


@njit(**INNER)
def _terms(indptr, x, v):
    """The terms in `t_bar`; the number of lanes not finite."""
    n, scratch = x.a.shape[0], np.empty(lanes_of(x.a))
    for j in range(n):
        store_rounded(x.t_bar, j, term(indptr, x, v, j), scratch)
    return bad_lanes(x.t_bar, 0, n)


@njit(**INNER)
def _adjoint(indptr, rows, x, v):
    """d̄, and L̄ and M̄ in place of L and M; the number of lanes not finite."""
    n, zero = x.a.shape[0], full_like(v.M, 0.0)
    for j in range(n):
        store(x.d_bar, j, zero)
    for j in range(n):
        begin, t, w = indptr[j], load(x.t_bar, j), load(x.w, j)
        own, pivot, a_bar = load(v.L, begin), load(v.M, begin), load(x.t_bar, j) * load(x.a, j)
        delta_bar = t * load(x.growth, j)
        of_own, of_pivot, square = delta_bar, delta_bar, zero
        for p in range(begin + 1, indptr[j + 1]):
            i, pulled, M_p = rows[p], load(v.pulls, p), load(v.M, p)
            D_bar, L_slope, M_slope = w * pulled, load(v.L, p) / own, M_p / pivot
            square = square + load(v.moves, p) * pulled
            of_own, of_pivot = of_own - D_bar * L_slope, of_pivot - D_bar * M_slope
            store(x.d_bar, i, load(x.d_bar, i) + M_p * a_bar)
            store(v.M, p, load(x.d, i) * a_bar + D_bar / pivot)
            store(v.L, p, load(v.L_bar, p) - D_bar / own)
        store(x.d_bar, j, load(x.d_bar, j) + pivot * a_bar)
        store(v.M, begin, load(x.d, j) * a_bar + (t * pivot) * square + of_pivot / pivot)
        store(v.L, begin, load(v.L_bar, begin) - of_own / own)
    entries = indptr[n]
    return bad_lanes(v.L, 0, entries) + bad_lanes(v.M, 0, entries) + bad_lanes(x.d_bar, 0, n)
