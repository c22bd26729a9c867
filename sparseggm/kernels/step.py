"""The training step of a variational autoencoder in one pass: a draw, KL to N(0, I), and the gradients of both.

Per batch element, all in the pattern's numbering, v = diag Σ:

    forward     y = L⁻ᵀ ε,   z = loc + y,   kl = ½ [Σ v + |loc|² − n + 2 Σ log L_jj]
    backward    ε̄ = L⁻¹ z̄,   loc̄ = z̄ + k̄ loc,   L̄ = −y ε̄ᵀ on S + k̄ (½ ∂Σv/∂L + diag(1/L_jj))

A block of lanes stays in cache from the gather of its rows to the scatter of its results; separate verbs would read
every byte three times. Nothing but z and kl is kept for the backward pass: y and Σ are computed again. Conventions are
those of `products`; every array has one row a batch element. A chain, on which index work would be all of the work, has
its own recurrences.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from sparseggm.kernels import INNER, KERNEL
from sparseggm.kernels.blocks import after, bad_lanes, bad_pivots, gather, is_in_lines, new_block, scatter
from sparseggm.kernels.chunks import add_mean, backward_blocks, backward_chunk, forward_blocks, forward_chunk
from sparseggm.kernels.energy import energies, new_scratch
from sparseggm.kernels.inverse import invert, invert_adjoint
from sparseggm.kernels.products import solve, solve_t
from sparseggm.kernels.vector import constant, lanes_of, load, store

CHUNKS_DIGEST = "0070b9ef263c3a22"
INVERSE_DIGEST = "a8a20fe151558743"
PRODUCTS_DIGEST = "6b0242c13726affc"


# ---------------------------------------------------------------------- forward


@njit(**KERNEL)
def sample_and_kl(is_chain, indptr, rows, fill, loc, factor, noise, z, kl, first, last):
    """z and kl, both overwritten. Nonzero status: something is not finite, or a pivot not positive."""
    if is_chain:
        return _sample_chains(indptr, loc, factor, noise, z, kl, first, last)
    n, lanes, bad = loc.shape[1], lanes_of(loc), 0
    L, mean, y = new_block(rows.shape[0], loc), new_block(n, loc), new_block(n, loc)
    variances, sigma = new_block(n, loc), new_block(fill[1].shape[0], loc)
    sums, scratch = np.empty(lanes), new_scratch(loc)
    for start in range(first, last, lanes):
        stop = min(start + lanes, last)
        gather(factor, start, stop, L)
        gather(loc, start, stop, mean)
        gather(noise, start, stop, y)
        coming = after(factor, start, lanes), after(noise, start, lanes)
        bad += bad_pivots(indptr, L, n) + solve_t(indptr, rows, L, y, coming)
        invert(True, indptr, rows, fill, L, sigma)
        for j in range(n):
            store(variances, j, load(sigma, fill[0][j]))
        energies(indptr, L, mean, y, variances, n, scratch, sums, after(loc, start, lanes))
        for lane in range(stop - start):
            kl[start + lane] = 0.5 * (sums[lane] - n)
        bad += bad_lanes(y, 0, n) + bad_lanes(kl, start, stop)
        scatter(y, z, start, stop)
    return bad


@njit(**INNER)
def _sample_chains(indptr, loc, factor, noise, z, kl, first, last):
    (count, n), lanes, bad = loc.shape, lanes_of(loc), 0
    eps, mean, L, draws = (
        noise.reshape(count * n),
        loc.reshape(count * n),
        factor.reshape(factor.size),
        z.reshape(z.size),
    )
    task, blocks = (True, indptr, eps, mean, draws, draws[:0], is_in_lines(z)), backward_blocks(loc, n)
    zero, sums = constant(blocks[0], 0.0), np.empty(lanes)
    for start in range(first, last, lanes):
        _, _, worse = backward_chunk(task, L, _place(start, last, n, lanes), blocks, zero, zero, sums)
        stop = min(start + lanes, last)
        for lane in range(stop - start):
            kl[start + lane] = 0.5 * (sums[lane] - n)
        bad += worse + bad_lanes(kl, start, stop)
    return bad


@njit(**INNER)
def _place(start, last, n, lanes):
    """`where` of `chunks`: whole chains, the rows from `start` on."""
    nnz = 2 * n - 1
    return start * n, n, start * nnz, nnz, min(last - start, lanes), n, nnz, lanes * n


# ---------------------------------------------------------------------- backward


@njit(**KERNEL)
def sample_and_kl_vjp(
    is_chain, indptr, rows, fill, loc, factor, noise, z_bar, kl_bar, loc_bar, factor_bar, noise_bar, first, last
):
    """The cotangents of loc, factor and noise, all overwritten; an empty `noise_bar` is left alone. Status likewise."""
    if is_chain:
        return _chains_vjp(indptr, loc, factor, noise, z_bar, kl_bar, loc_bar, factor_bar, noise_bar, first, last)
    n, lanes, bad = loc.shape[1], lanes_of(loc), 0
    L, L_bar = new_block(rows.shape[0], loc), new_block(rows.shape[0], loc)
    y, eps_bar, k_bar = new_block(n, loc), new_block(n, loc), new_block(1, loc)
    memory = new_block(2 * fill[1].shape[0], loc)
    sigma, G = memory[: fill[1].shape[0]], memory[fill[1].shape[0] :]
    for start in range(first, last, lanes):
        stop = min(start + lanes, last)
        gather(factor, start, stop, L)
        gather(noise, start, stop, y)
        gather(z_bar, start, stop, eps_bar)
        gather(kl_bar, start, stop, k_bar)
        for r in range(start, stop):
            bad += add_mean(z_bar[r], kl_bar[r, 0], loc[r], loc_bar[r])
        following = after(factor, start, lanes)
        bad += bad_pivots(indptr, L, n)
        bad += solve_t(indptr, rows, L, y, (following, after(noise, start, lanes)))
        bad += solve(indptr, rows, L, eps_bar, (following, after(z_bar, start, lanes)))
        invert(True, indptr, rows, fill, L, sigma)
        _adjoint(indptr, rows, fill, L, y, eps_bar, load(k_bar, 0), sigma, G, L_bar)
        bad += bad_lanes(L_bar, 0, rows.shape[0])
        scatter(L_bar, factor_bar, start, stop)
        if noise_bar.shape[0]:
            scatter(eps_bar, noise_bar, start, stop)
    return bad


@njit(**INNER)
def _chains_vjp(indptr, loc, factor, noise, z_bar, kl_bar, loc_bar, factor_bar, noise_bar, first, last):
    n, lanes, bad = noise.shape[1], lanes_of(noise), 0
    blocks, k_bar = forward_blocks(noise, n), new_block(1, noise)
    _, y, v, _ = blocks
    L, L_bar, e_bar = (
        factor.reshape(factor.size),
        factor_bar.reshape(factor_bar.size),
        noise_bar.reshape(noise_bar.size),
    )
    task = (indptr, noise.reshape(noise.size), z_bar.reshape(z_bar.size), k_bar, L_bar, e_bar, is_in_lines(factor_bar))
    zero = constant(k_bar, 0.0)
    store(y, n, zero)
    store(v, n, zero)
    for start in range(first, last, lanes):
        stop = min(start + lanes, last)
        gather(kl_bar, start, stop, k_bar)
        _, _, worse = forward_chunk(task, L, _place(start, last, n, lanes), blocks, zero, load(k_bar, 0))
        bad += worse
        for r in range(start, stop):
            bad += add_mean(z_bar[r], kl_bar[r, 0], loc[r], loc_bar[r])
    return bad


@njit(**INNER)
def _adjoint(indptr, rows, fill, L, y, eps_bar, k_bar, sigma, G, L_bar):
    """L_bar = −y ε̄ᵀ on S + k̄ (½ ∂tr Σ/∂L + diag(1/L_jj))."""
    half = constant(L, 0.5) * k_bar
    G[:] = 0.0
    for j in range(y.shape[0]):
        store(G, fill[0][j], half)
    invert_adjoint(indptr, rows, fill, L, sigma, G, L_bar)
    for j in range(y.shape[0]):
        e, begin = load(eps_bar, j), indptr[j]
        store(L_bar, begin, load(L_bar, begin) + k_bar / load(L, begin))
        for p in range(begin, indptr[j + 1]):
            store(L_bar, p, load(L_bar, p) - load(y, rows[p]) * e)
