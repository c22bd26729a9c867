"""Samples, log-densities and cross-entropies of a batch of Gaussians, each in one pass forward and one backward.

Per batch element, d = m − loc, r = Lᵀ d; m and s are the mean and the scales of independent normals:

    sample            z = loc + L⁻ᵀ ε                                          L̄ = −(z − loc) ε̄ᵀ,  ε̄ = L⁻¹ z̄
    KL(N(m, s²) ‖ q)  ½ [‖r‖² + Σ L_ij² s_i² − 2 Σ log s − n − log det P]      L̄ = k̄ (d rᵀ + s² L − diag(1/L_jj))
    log q(m)          ½ [log det P − ‖r‖² − n log 2π], the same without s      L̄ = −k̄ (d rᵀ − diag(1/L_jj))

L̄ is on the pattern of L. Conventions are those of `step`, whose arguments are addresses too; but vectors are in the
caller's numbering of nodes. `structure` holds the pattern's indptr and rows, and the caller's node of each column,
which is empty where the two numberings agree. If `stride` is 0, all rows share one m and one s.
"""

from __future__ import annotations

import math

import numpy as np

from sparseggm.kernels import INNER, KERNEL, njit
from sparseggm.kernels.lanes.addresses import read_at, read_rows, write_at, write_rows
from sparseggm.kernels.lanes.blocks import (
    bad_lanes,
    bad_numbers,
    bad_pivots,
    gather,
    gather_runs,
    new_block,
    scatter,
)
from sparseggm.kernels.lanes.sums import log_determinants, new_scratch
from sparseggm.kernels.lanes.tiles import block_of
from sparseggm.kernels.lanes.vector import (
    as_float64,
    full_like,
    lanes_of,
    load,
    not_finite,
    store,
    store_run,
)
from sparseggm.kernels.sparse.numbering import following, gather_nodes, scatter_nodes

LOG_2PI = math.log(2.0 * math.pi)


@njit(**KERNEL)
def invalid(like, indptr, loc_at, loc_size, factor_at, rows, nnz):
    """Nonzero if a number of loc (loc_size) or of the factors (rows, nnz) is not finite, or a pivot not positive."""
    factor = read_at(factor_at, rows * nnz, like)
    bad = bad_numbers(read_at(loc_at, loc_size, like)) + bad_numbers(factor)
    for r in range(rows):
        for j in range(indptr.shape[0] - 1):
            bad += not factor[r * nnz + indptr[j]] > 0.0
    return bad


# ---------------------------------------------------------------------- samples


@njit(**KERNEL)
def sample(like, count, is_chain, structure, loc_at, factor_at, z_at, first, last):
    """z = loc + L⁻ᵀ ε in place of ε. Nonzero status: something is not finite."""
    indptr, rows, nodes = structure
    n, nnz, bad = indptr.shape[0] - 1, rows.shape[0], 0
    loc, noise, z = read_at(loc_at, count * n, like), read_at(z_at, count * n, like), write_rows(z_at, count, n, like)
    factor = read_at(factor_at, count * nnz, like)
    L, mean, y, memory = new_block(nnz, z), new_block(n, z), new_block(n, z), new_block(n, z)
    lanes = lanes_of(z)
    for start in range(first, last, lanes):
        stop = min(start + lanes, last)
        gather_runs(factor, start * nnz, nnz, stop - start, L, nnz)
        gather_nodes(noise, start, n, stop, nodes, memory, y)
        gather_nodes(loc, start, n, stop, nodes, memory, mean)
        next_L, next_eps = following(L, factor, start, nnz), following(y, noise, start, n)
        next_loc = following(mean, loc, start, n)
        if is_chain:
            bad += _sample_chain(next_L, next_eps, next_loc)
        else:
            bad += _sample(indptr, rows, next_L, next_eps, next_loc)
        scatter_nodes(mean, nodes, memory, z, start, stop)
    return bad


@njit(**INNER)
def _sample(indptr, rows, L, eps, z):
    """z + y in place of z and y = L⁻ᵀ ε in place of ε. Returns the number of tainted lanes."""
    y = block_of(eps)
    zero = full_like(y, 0.0)
    taint = zero
    for j in range(y.shape[0] - 1, -1, -1):
        begin, y_j = indptr[j], load(eps, j)
        for p in range(begin + 1, indptr[j + 1]):  # L_jj y_j = ε_j − Σ_{i>j} L_ij y_i
            y_j = y_j - load(L, p) * load(y, rows[p])
        pivot = load(L, begin)
        y_j = y_j / pivot
        z_j = load(z, j) + y_j
        store(y, j, y_j)
        store(z, j, z_j)
        taint = taint + (zero * pivot + zero * z_j)  # an infinite pivot leaves a finite z
    return not_finite(taint)


@njit(**INNER)
def _sample_chain(L, eps, z):
    """`_sample` for chains, without index work; it leaves ε as it is."""
    y = block_of(eps)
    zero, last = full_like(y, 0.0), y.shape[0] - 1
    taint, y_j, coupling = zero, zero, zero
    for j in range(last, -1, -1):
        pivot = load(L, 2 * j)
        y_j = (load(eps, j) - coupling * y_j) / pivot
        z_j = load(z, j) + y_j
        store(z, j, z_j)
        taint = taint + (zero * pivot + zero * z_j)
        coupling = load(L, max(2 * j - 1, 0))
    return not_finite(taint)


@njit(**KERNEL)
def sample_vjp(like, count, is_chain, structure, loc_at, factor_at, z_at, z_bar_at, factor_bar_at, first, last):
    """The cotangent of L, overwritten. Status as `sample`."""
    indptr, rows, nodes = structure
    n, nnz, bad = indptr.shape[0] - 1, rows.shape[0], 0
    loc, z, z_bar = (
        read_at(loc_at, count * n, like),
        read_at(z_at, count * n, like),
        read_at(z_bar_at, count * n, like),
    )
    factor, factor_bar = read_at(factor_at, count * nnz, like), write_rows(factor_bar_at, count, nnz, like)
    L, mean, y, e = new_block(nnz, loc), new_block(n, loc), new_block(n, loc), new_block(n, loc)
    memory, lanes = new_block(n, loc), lanes_of(loc)
    for start in range(first, last, lanes):
        stop = min(start + lanes, last)
        gather_runs(factor, start * nnz, nnz, stop - start, L, nnz)
        gather_nodes(z, start, n, stop, nodes, memory, y)
        gather_nodes(loc, start, n, stop, nodes, memory, mean)
        gather_nodes(z_bar, start, n, stop, nodes, memory, e)
        next_L, next_e = following(L, factor, start, nnz), following(e, z_bar, start, n)
        next_z, next_loc = following(y, z, start, n), following(mean, loc, start, n)
        for j in range(n):
            store(y, j, load(next_loc, j) - load(next_z, j))
        if is_chain:
            bad += _sample_chain_adjoint(next_L, y, next_e)
        else:
            bad += _sample_adjoint(indptr, rows, next_L, y, next_e)
        scatter(L, factor_bar, start, stop)
    return bad


@njit(**INNER)
def _sample_adjoint(indptr, rows, L, x, z_bar):
    """x ε̄ᵀ on the pattern in place of L, ε̄ = L⁻¹ z̄ in place of z̄. Returns the number of tainted lanes."""
    e = block_of(z_bar)
    zero = full_like(x, 0.0)
    taint = zero
    for j in range(x.shape[0]):
        begin = indptr[j]
        pivot = load(L, begin)
        e_j = load(z_bar, j) / pivot
        bar = load(x, j) * e_j
        store(L, begin, bar)
        taint = taint + (zero * pivot + zero * bar)
        for p in range(begin + 1, indptr[j + 1]):  # z̄_i −= L_ij ε̄_j
            i = rows[p]
            store(e, i, load(e, i) - load(L, p) * e_j)
            bar = load(x, i) * e_j
            store(L, p, bar)
            taint = taint + zero * bar
    return not_finite(taint)


@njit(**INNER)
def _sample_chain_adjoint(L, x, z_bar):
    """`_sample_adjoint` for chains, without index work; it leaves z̄ as it is."""
    zero, last = full_like(x, 0.0), x.shape[0] - 1
    taint, carried, x_j = zero, zero, load(x, 0)
    for j in range(last + 1):
        pivot = load(L, 2 * j)
        e_j = (load(z_bar, j) - carried) / pivot
        bar = x_j * e_j
        store(L, 2 * j, bar)
        taint = taint + (zero * pivot + zero * bar)
        if j < last:
            carried, x_j = load(L, 2 * j + 1) * e_j, load(x, j + 1)
            bar = x_j * e_j
            store(L, 2 * j + 1, bar)
            taint = taint + zero * bar
    return not_finite(taint)


# ---------------------------------------------------------------------- log q(m), and KL from independent normals


@njit(**KERNEL)
def cross_entropy(like, count, structure, stride, loc_at, factor_at, mean_at, scale_at, result_at, first, last):
    """KL(N(m, s²) ‖ q), overwritten; log q(m) if scale_at is 0.

    Nonzero status: something is not finite, or a pivot or a scale not positive.
    """
    indptr, rows, nodes = structure
    n, nnz, is_point, bad = indptr.shape[0] - 1, rows.shape[0], scale_at == 0, 0
    loc, factor = read_at(loc_at, count * n, like), read_rows(factor_at, count, nnz, like)
    size = (count - 1) * stride + n
    m, s = read_at(mean_at, size, like), read_at(scale_at, 0 if is_point else size, like)
    result, lanes, own = write_at(result_at, count, like), lanes_of(loc), np.arange(n + 1).astype(indptr.dtype)
    L, d, mean = new_block(nnz, loc), new_block(n, loc), new_block(n, loc)
    scale, memory = new_block(0 if is_point else n, loc), new_block(n, loc)
    scratch, logdet, log_scales = new_scratch(loc), np.empty(lanes), np.zeros(lanes)
    for start in range(first, last, lanes):
        stop = min(start + lanes, last)
        if start == first or stride:
            gather_nodes(m, start, stride, stop, nodes, memory, mean)
            if not is_point:
                gather_nodes(s, start, stride, stop, nodes, memory, scale)
                bad += bad_pivots(own, scale, n)
                log_determinants(own, scale, n, scratch, log_scales)
        gather(factor, start, stop, L)
        gather_nodes(loc, start, n, stop, nodes, memory, d)
        bad += bad_pivots(indptr, L, n)
        for j in range(n):
            store(d, j, load(mean, j) - load(d, j))
        log_determinants(indptr, L, n, scratch, logdet)
        store_run(scratch, 0, _square_distance(indptr, rows, L, d, scale))
        for lane in range(stop - start):
            if is_point:
                result[start + lane] = 0.5 * (logdet[lane] - scratch[lane] - n * LOG_2PI)
            else:
                result[start + lane] = 0.5 * (scratch[lane] - log_scales[lane] - n - logdet[lane])
        bad += bad_lanes(result, start, stop)
    return bad


@njit(**KERNEL)
def cross_entropy_vjp(
    like,
    count,
    structure,
    stride,
    loc_at,
    factor_at,
    mean_at,
    scale_at,
    bar_at,
    loc_bar_at,
    factor_bar_at,
    scale_bar_at,
    first,
    last,
):
    """The cotangents of loc, L and s, overwritten; no s̄ if its address is 0, and m̄ is −loc̄. Status likewise."""
    indptr, rows, nodes = structure
    n, nnz, is_point, bad = indptr.shape[0] - 1, rows.shape[0], scale_at == 0, 0
    loc, factor = read_at(loc_at, count * n, like), read_rows(factor_at, count, nnz, like)
    size = (count - 1) * stride + n
    m, s = read_at(mean_at, size, like), read_at(scale_at, 0 if is_point else size, like)
    bars, loc_bar = read_at(bar_at, count, like), write_rows(loc_bar_at, count, n, like)
    factor_bar, scale_bar = write_rows(factor_bar_at, count, nnz, like), write_rows(scale_bar_at, count, n, like)
    L, L_bar, d, mean = new_block(nnz, loc), new_block(nnz, loc), new_block(n, loc), new_block(n, loc)
    d_bar, memory, k_bar = new_block(n, loc), new_block(n, loc), new_block(1, loc)
    scale, s_bar = new_block(0 if is_point else n, loc), new_block(0 if is_point else n, loc)
    zero, sign = full_like(d, 0.0), full_like(d, -1.0 if is_point else 1.0)
    for start in range(first, last, lanes_of(loc)):
        stop = min(start + lanes_of(loc), last)
        gather(factor, start, stop, L)
        gather_nodes(m, start, stride, stop, nodes, memory, mean)
        gather_nodes(loc, start, n, stop, nodes, memory, d)
        gather_runs(bars, start, 1, stop - start, k_bar, 1)
        if not is_point:
            gather_nodes(s, start, stride, stop, nodes, memory, scale)
        for j in range(n):
            store(d, j, load(d, j) - load(mean, j))
        k = sign * load(k_bar, 0)
        bad += bad_pivots(indptr, L, n)
        _distance_adjoint(indptr, rows, L, d, k, L_bar, d_bar)
        if not is_point:
            _scales_adjoint(indptr, rows, L, scale, k, L_bar, s_bar)
            bad += bad_lanes(s_bar, 0, n)
            scatter_nodes(s_bar, nodes, memory, scale_bar, start, stop)
        _add_reciprocals(indptr, L, zero - k, L_bar)
        bad += bad_lanes(d_bar, 0, n) + bad_lanes(L_bar, 0, nnz)
        scatter(L_bar, factor_bar, start, stop)
        scatter_nodes(d_bar, nodes, memory, loc_bar, start, stop)
    return bad


@njit(**INNER)
def _square_distance(indptr, rows, L, d, scale):
    """‖Lᵀ d‖² + Σ L_ij² s_i² in float64; without scales only the first term."""
    total = as_float64(full_like(L, 0.0))
    for j in range(d.shape[0]):
        r = full_like(L, 0.0)
        for p in range(indptr[j], indptr[j + 1]):
            r = r + load(L, p) * load(d, rows[p])
        total = total + as_float64(r) * as_float64(r)
        for p in range(indptr[j], indptr[j + 1] if scale.shape[0] else 0):
            root = as_float64(load(L, p)) * as_float64(load(scale, rows[p]))
            total = total + root * root
    return total


@njit(**INNER)
def _distance_adjoint(indptr, rows, L, d, k, L_bar, d_bar):
    """L̄ = k d rᵀ on the pattern and d̄ = k L r, r = Lᵀ d: the cotangents of ½ k ‖r‖²."""
    d_bar[:] = 0.0
    for j in range(d.shape[0]):
        r = full_like(L, 0.0)
        for p in range(indptr[j], indptr[j + 1]):
            r = r + load(L, p) * load(d, rows[p])
        r = k * r
        for p in range(indptr[j], indptr[j + 1]):
            store(L_bar, p, load(d, rows[p]) * r)
            store(d_bar, rows[p], load(d_bar, rows[p]) + load(L, p) * r)


@njit(**INNER)
def _scales_adjoint(indptr, rows, L, scale, k, L_bar, s_bar):
    """L̄_ij += k L_ij s_i² and s̄_i = k (s_i Σ_j L_ij² − 1 / s_i)."""
    for i in range(scale.shape[0]):
        store(s_bar, i, full_like(L, -1.0) * k / load(scale, i))
    for j in range(indptr.shape[0] - 1):
        for p in range(indptr[j], indptr[j + 1]):
            s_i, pull = load(scale, rows[p]), k * load(L, p)
            store(L_bar, p, load(L_bar, p) + (pull * s_i) * s_i)
            store(s_bar, rows[p], load(s_bar, rows[p]) + (pull * load(L, p)) * s_i)


@njit(**INNER)
def _add_reciprocals(indptr, L, k, L_bar):
    """L̄_jj += k / L_jj."""
    for j in range(indptr.shape[0] - 1):
        p = indptr[j]
        store(L_bar, p, load(L_bar, p) + k / load(L, p))
