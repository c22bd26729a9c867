"""KL from a batch of Gaussians to independent normals, v = diag Σ, d = loc − m, in one pass each way:

    KL(q ‖ N(m, s²)) = ½ [Σ (v + d²) / s² + 2 log s − n + log det P]
    L̄ = k̄ (½ Σ s⁻² ∂v/∂L + diag(1/L_jj)),   loc̄ = k̄ d / s²,   s̄ = k̄ (1/s − (v + d²) / s³)

Conventions are those of `density`.
"""

from __future__ import annotations

import numpy as np

from sparseggm.kernels import INNER, KERNEL, njit
from sparseggm.kernels.lanes.addresses import read_at, write_at, write_rows
from sparseggm.kernels.lanes.blocks import bad_lanes, bad_pivots, gather_runs, new_block, scatter
from sparseggm.kernels.lanes.sums import log_determinants, new_scratch
from sparseggm.kernels.lanes.tiles import block_of
from sparseggm.kernels.lanes.vector import (
    as_float64,
    full_like,
    lanes_of,
    load,
    minimum,
    not_finite,
    not_positive,
    store,
    store_run,
)
from sparseggm.kernels.sparse.inverse import takahashi, takahashi_adjoint
from sparseggm.kernels.sparse.numbering import following, gather_nodes, scatter_nodes


@njit(**KERNEL)
def kl_to_normal(like, count, is_chain, structure, fill, stride, given, sampled, kl_bar_at, results, first, last):
    """KL of the Gaussians given = (loc, L, m, s) to results[0], overwritten, if kl_bar_at is 0.

    Otherwise the cotangents of loc, L and s to results[1:]; no s̄ if its address is 0. Unless the addresses
    sampled = (z, z̄) are 0, those of loc and L include the cotangents for z = loc + L⁻ᵀ ε. Nonzero status: something is
    not finite, or a pivot or a scale not positive. One kernel serves both ways, because functions compiled into two
    callers would be compiled twice.
    """
    indptr, rows, nodes = structure
    n, nnz, backward, bad = indptr.shape[0] - 1, rows.shape[0], kl_bar_at != 0, 0
    loc, factor = read_at(given[0], count * n, like), read_at(given[1], count * nnz, like)
    size = (count - 1) * stride + n
    m, s = read_at(given[2], size, like), read_at(given[3], size, like)
    is_sampled = sampled[0] != 0
    sampled_size = count * n if is_sampled else 0
    z, z_bar = read_at(sampled[0], sampled_size, like), read_at(sampled[1], sampled_size, like)
    kl, kl_bar = write_at(results[0], 0 if backward else count, like), read_at(kl_bar_at, count, like)
    bars = write_rows(results[1], count, n, like), write_rows(results[2], count, nnz, like)
    scale_bar, lanes, entries = (
        write_rows(results[3], count, n, like),
        lanes_of(loc),
        0 if is_chain else fill.rows.shape[0],
    )
    blocks, L, sigma = new_block(8 * n, loc), new_block(nnz, loc), new_block(2 * entries, loc)
    d, v, w, memory = blocks[:n], blocks[n : 2 * n], blocks[2 * n : 3 * n], blocks[3 * n : 4 * n]
    prior = blocks[4 * n : 5 * n], blocks[5 * n : 6 * n]
    x, e = blocks[6 * n : 7 * n], blocks[7 * n :]
    x[:] = 0.0  # unless there is a sample
    e[:] = 0.0
    L_bar, k_bar, G = new_block(0 if is_chain else nnz, loc), new_block(1, loc), sigma[entries:]
    sigma, scratch, log_scales = sigma[:entries], new_scratch(loc), np.empty(lanes)
    for start in range(first, last, lanes):
        stop = min(start + lanes, last)
        if start == first or stride:
            gather_nodes(m, start, stride, stop, nodes, memory, prior[0])
            gather_nodes(s, start, stride, stop, nodes, memory, prior[1])
            bad += _invert(prior[1], scratch, log_scales) + bad_lanes(prior[0], 0, n)
        gather_runs(factor, start * nnz, nnz, stop - start, L, nnz)
        gather_nodes(loc, start, n, stop, nodes, memory, d)
        next_L = following(L, factor, start, nnz)
        bad += _variances(is_chain, indptr, rows, fill, next_L, sigma, v)
        if not backward:
            _divergences(indptr, L, d, prior, v, scratch, log_scales, kl[start:stop])
            bad += bad_lanes(kl, start, stop)
            continue
        gather_runs(kl_bar, start, 1, stop - start, k_bar, 1)
        if scale_bar.shape[0]:
            bad += _scales_bar(load(k_bar, 0), d, prior, v, w)
            scatter_nodes(w, nodes, memory, scale_bar, start, stop)
        if is_sampled:
            gather_nodes(z, start, n, stop, nodes, memory, x)
            gather_nodes(z_bar, start, n, stop, nodes, memory, e)
            next_z = following(x, z, start, n)
            for j in range(n):
                store(x, j, load(next_z, j) - load(d, j))
        bad += _moments_adjoint(load(k_bar, 0), d, prior, w, e)
        scatter_nodes(d, nodes, memory, bars[0], start, stop)
        bad += _factor_adjoint(is_chain, indptr, rows, fill, load(k_bar, 0), L, sigma, v, w, G, L_bar, x, e)
        scatter(L if is_chain else L_bar, bars[1], start, stop)
    return bad


# ---------------------------------------------------------------------- terms


@njit(**INNER)
def _invert(scales, scratch, log_scales):
    """1 / s in place of s, and 2 Σ log s; the number of lanes with a scale that is not positive and finite."""
    n = scales.shape[0]
    own = np.arange(n + 1).astype(np.int32)
    bad = bad_pivots(own, scales, n)
    log_determinants(own, scales, n, scratch, log_scales)
    for j in range(n):
        store(scales, j, full_like(scales, 1.0) / load(scales, j))
    return bad


@njit(**INNER)
def _divergences(indptr, L, loc, prior, v, scratch, log_scales, kl):
    """½ [Σ (v + d²) / s² + 2 log s − n + log det P], sums in float64."""
    n, logdet, total = loc.shape[0], np.empty(log_scales.shape[0]), as_float64(full_like(loc, 0.0))
    log_determinants(indptr, L, n, scratch, logdet)
    for j in range(n):
        d, r = as_float64(load(loc, j)) - as_float64(load(prior[0], j)), as_float64(load(prior[1], j))
        total = total + (as_float64(load(v, j)) + d * d) * (r * r)
    store_run(scratch, 0, total)
    for lane in range(kl.shape[0]):
        kl[lane] = 0.5 * (scratch[lane] + logdet[lane] + log_scales[lane] - n)


@njit(**INNER)
def _scales_bar(k_bar, loc, prior, v, s_bar):
    """k̄ (1/s − (v + d²) / s³); the number of lanes where it is not finite."""
    for j in range(loc.shape[0]):
        d, r = load(loc, j) - load(prior[0], j), load(prior[1], j)
        store(s_bar, j, (k_bar - (load(v, j) + d * d) * ((k_bar * r) * r)) * r)
    return bad_lanes(s_bar, 0, loc.shape[0])


@njit(**INNER)
def _moments_adjoint(k_bar, loc, prior, w, z_bar):
    """w = k̄ / s², and w d + z̄ in place of loc; the number of lanes where that is not finite."""
    zero = full_like(loc, 0.0)
    taint = zero
    for j in range(loc.shape[0]):
        r = load(prior[1], j)
        w_j = (k_bar * r) * r
        bar = w_j * (load(loc, j) - load(prior[0], j)) + load(z_bar, j)
        store(w, j, w_j)
        store(loc, j, bar)
        taint = taint + zero * bar
    return not_finite(taint)


# ---------------------------------------------------------------------- variances


@njit(**INNER)
def _variances(is_chain, indptr, rows, fill, next_L, sigma, v):
    """v, and Σ unless it is a chain. Returns the number of lanes with a pivot that is not positive and finite."""
    if is_chain:
        return _chain_variances(next_L, v)
    L = block_of(next_L)
    bad = bad_pivots(indptr, L, v.shape[0])
    takahashi(True, indptr, rows, fill, L, sigma)
    for j in range(v.shape[0]):
        store(v, j, load(sigma, fill.indptr[j]))
    return bad


@njit(**INNER)
def _factor_adjoint(is_chain, indptr, rows, fill, k_bar, L, sigma, v, w, G, L_bar, x, z_bar):
    """½ Σ w ∂v/∂L + k̄ diag(1/L_jj) − x ε̄ᵀ, ε̄ = L⁻¹ z̄, in L_bar, for a chain in L.

    Returns the number of lanes where it is not finite.
    """
    if is_chain:
        return _chain_factor_adjoint(k_bar, L, v, w, x, z_bar)
    G[:] = 0.0
    for j in range(v.shape[0]):
        store(G, fill.indptr[j], full_like(w, 0.5) * load(w, j))
    takahashi_adjoint(indptr, rows, fill, L, sigma, G, L_bar)
    for j in range(v.shape[0]):
        begin = indptr[j]
        pivot = load(L, begin)
        e_j = load(z_bar, j) / pivot
        store(L_bar, begin, load(L_bar, begin) + (k_bar / pivot - load(x, j) * e_j))
        for p in range(begin + 1, indptr[j + 1]):  # z̄_i −= L_ij ε̄_j
            i = rows[p]
            store(z_bar, i, load(z_bar, i) - load(L, p) * e_j)
            store(L_bar, p, load(L_bar, p) - load(x, i) * e_j)
    return bad_lanes(L_bar, 0, rows.shape[0])


@njit(**INNER)
def _chain_variances(L, v):
    """v of a chain, see `recurrences`; the number of lanes with a pivot that is not positive and finite."""
    one, zero = full_like(v, 1.0), full_like(v, 0.0)
    least, taint, v_j, coupling = one, zero, zero, zero
    for j in range(v.shape[0] - 1, -1, -1):
        pivot = load(L, 2 * j)
        least, taint = minimum(pivot, least), taint + zero * pivot
        inverse = one / pivot
        ratio = coupling * inverse
        v_j = inverse * inverse + (ratio * ratio) * v_j
        store(v, j, v_j)
        coupling = load(L, max(2 * j - 1, 0))
    return not_positive(least + taint)


@njit(**INNER)
def _chain_factor_adjoint(k_bar, L, v, w, x, z_bar):
    """`_factor_adjoint` in place of a chain's L: g_j = w_j + (b_{j−1} / a_{j−1})² g_{j−1}; it leaves z̄ as it is."""
    one, zero, last = full_like(L, 1.0), full_like(L, 0.0), v.shape[0] - 1
    taint, carried, g, v_j, x_j = zero, zero, load(w, 0), load(v, 0), load(x, 0)
    for j in range(last + 1):
        inverse = one / load(L, 2 * j)
        e_j = (load(z_bar, j) - carried) * inverse
        bar = inverse * (k_bar - g * v_j) - x_j * e_j
        store(L, 2 * j, bar)
        taint = taint + zero * bar
        if j < last:
            coupling, v_j, x_j = load(L, 2 * j + 1), load(v, j + 1), load(x, j + 1)
            ratio, carried = coupling * inverse, coupling * e_j
            pull = ratio * g
            bar = (pull * inverse) * v_j - x_j * e_j
            store(L, 2 * j + 1, bar)
            taint = taint + zero * bar
            g = load(w, j + 1) + ratio * pull
    return not_finite(taint)
