"""The training step of a variational autoencoder in one pass: a sample, KL to N(0, I), and the gradients of both.

Per batch element, all in the pattern's numbering, v = diag Σ:

    forward     y = L⁻ᵀ ε,   z = loc + y,   kl = ½ [Σ v + |loc|² − n + 2 Σ log L_jj]
    backward    ε̄ = L⁻¹ z̄,   loc̄ = z̄ + k̄ loc,   L̄ = −y ε̄ᵀ on S + k̄ (½ ∂Σv/∂L + diag(1/L_jj))

A block of lanes stays in cache from the gather of its rows to the scatter of its results; separate verbs would read
every byte three times. Nothing but z and kl is kept for the backward pass: y and Σ are computed again. Conventions are
those of `products`; every array has one row a batch element. Arguments are the addresses of arrays, see `addresses`:
in a small step, passing arrays would cost as much as the arithmetic. `like` is any number of their dtype. Chains have
their own kernels in `kernels.chain.step`.
"""

from __future__ import annotations

import numpy as np

from sparseggm.kernels import INNER, KERNEL, njit
from sparseggm.kernels.lanes.addresses import read_rows, write_at, write_rows
from sparseggm.kernels.lanes.blocks import add_means, after, bad_lanes, bad_pivots, gather, new_block, scatter
from sparseggm.kernels.lanes.sums import kl_terms, new_scratch
from sparseggm.kernels.lanes.tiles import streamed
from sparseggm.kernels.lanes.vector import full_like, lanes_of, load, store
from sparseggm.kernels.sparse.inverse import takahashi, takahashi_adjoint
from sparseggm.kernels.sparse.products import solve, solve_t

# ---------------------------------------------------------------------- forward


@njit(**KERNEL)
def sample_and_kl(like, count, indptr, rows, fill, loc_at, factor_at, noise_at, z_at, kl_at, first, last):
    """z and kl, both overwritten. Nonzero status: something is not finite, or a pivot not positive."""
    n = indptr.shape[0] - 1
    loc, noise = read_rows(loc_at, count, n, like), read_rows(noise_at, count, n, like)
    factor = read_rows(factor_at, count, rows.shape[0], like)
    z, kl, lanes, bad = write_rows(z_at, count, n, like), write_at(kl_at, count, like), lanes_of(loc), 0
    L, mean, y = new_block(rows.shape[0], loc), new_block(n, loc), new_block(n, loc)
    variances, sigma = new_block(n, loc), new_block(fill.rows.shape[0], loc)
    sums, scratch = np.empty(lanes), new_scratch(loc)
    for start in range(first, last, lanes):
        stop = min(start + lanes, last)
        gather(factor, start, stop, L)
        gather(loc, start, stop, mean)
        gather(noise, start, stop, y)
        next_L, next_y = streamed(L, *after(factor, start, lanes)), streamed(y, *after(noise, start, lanes))
        bad += bad_pivots(indptr, L, n) + solve_t(indptr, rows, next_L, next_y)
        takahashi(True, indptr, rows, fill, L, sigma)
        for j in range(n):
            store(variances, j, load(sigma, fill.indptr[j]))
        kl_terms(indptr, L, streamed(mean, *after(loc, start, lanes)), y, variances, n, scratch, sums)
        for lane in range(stop - start):
            kl[start + lane] = 0.5 * (sums[lane] - n)
        bad += bad_lanes(y, 0, n) + bad_lanes(kl, start, stop)
        scatter(y, z, start, stop)
    return bad


# ---------------------------------------------------------------------- backward


@njit(**KERNEL)
def sample_and_kl_vjp(
    like,
    count,
    indptr,
    rows,
    fill,
    loc_at,
    factor_at,
    noise_at,
    z_bar_at,
    kl_bar_at,
    loc_bar_at,
    factor_bar_at,
    noise_bar_at,
    first,
    last,
):
    """The cotangents of loc, factor and noise, all overwritten; no `noise_bar` if its address is 0. Status likewise."""
    n, nnz = indptr.shape[0] - 1, rows.shape[0]
    loc, noise = read_rows(loc_at, count, n, like), read_rows(noise_at, count, n, like)
    factor, z_bar = read_rows(factor_at, count, nnz, like), read_rows(z_bar_at, count, n, like)
    kl_bar, loc_bar = read_rows(kl_bar_at, count, 1, like), write_rows(loc_bar_at, count, n, like)
    factor_bar, noise_bar = write_rows(factor_bar_at, count, nnz, like), write_rows(noise_bar_at, count, n, like)
    lanes, bad = lanes_of(loc), 0
    L, L_bar = new_block(rows.shape[0], loc), new_block(rows.shape[0], loc)
    y, eps_bar, k_bar = new_block(n, loc), new_block(n, loc), new_block(1, loc)
    memory = new_block(2 * fill.rows.shape[0], loc)
    sigma, G = memory[: fill.rows.shape[0]], memory[fill.rows.shape[0] :]
    for start in range(first, last, lanes):
        stop = min(start + lanes, last)
        gather(factor, start, stop, L)
        gather(noise, start, stop, y)
        gather(z_bar, start, stop, eps_bar)
        gather(kl_bar, start, stop, k_bar)
        bad += add_means(z_bar, kl_bar, loc, loc_bar, start, stop)
        next_L = streamed(L, *after(factor, start, lanes))
        bad += bad_pivots(indptr, L, n)
        bad += solve_t(indptr, rows, next_L, streamed(y, *after(noise, start, lanes)))
        bad += solve(indptr, rows, L, streamed(eps_bar, *after(z_bar, start, lanes)))
        takahashi(True, indptr, rows, fill, L, sigma)
        _adjoint(indptr, rows, fill, L, y, eps_bar, load(k_bar, 0), sigma, G, L_bar)
        bad += bad_lanes(L_bar, 0, rows.shape[0])
        scatter(L_bar, factor_bar, start, stop)
        if noise_bar.shape[0]:
            scatter(eps_bar, noise_bar, start, stop)
    return bad


@njit(**INNER)
def _adjoint(indptr, rows, fill, L, y, eps_bar, k_bar, sigma, G, L_bar):
    """L_bar = −y ε̄ᵀ on S + k̄ (½ ∂tr Σ/∂L + diag(1/L_jj))."""
    half = full_like(L, 0.5) * k_bar
    G[:] = 0.0
    for j in range(y.shape[0]):
        store(G, fill.indptr[j], half)
    takahashi_adjoint(indptr, rows, fill, L, sigma, G, L_bar)
    for j in range(y.shape[0]):
        e, begin = load(eps_bar, j), indptr[j]
        store(L_bar, begin, load(L_bar, begin) + k_bar / load(L, begin))
        for p in range(begin, indptr[j + 1]):
            store(L_bar, p, load(L_bar, p) - load(y, rows[p]) * e)
