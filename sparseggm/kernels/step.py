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
from sparseggm.kernels.blocks import bad_lanes, bad_pivots, gather, new_block, scatter
from sparseggm.kernels.chain import backward_from_end, forward_from_start
from sparseggm.kernels.inverse import invert, invert_adjoint
from sparseggm.kernels.logarithm import logarithms
from sparseggm.kernels.products import solve, solve_t
from sparseggm.kernels.vector import constant, double, lanes_of, load, not_positive, put, store

CHAIN_DIGEST = "96e08ccd4ed3b355"
INVERSE_DIGEST = "2aa2202b6c6f5d5b"
PRODUCTS_DIGEST = "ace6502613d61ccb"
BLOCKS_DIGEST = "ba336af172cfdc4f"
LOGARITHM_DIGEST = "1b98628df3fd63ea"


# ---------------------------------------------------------------------- forward


@njit(**KERNEL)
def sample_and_kl(is_chain, indptr, rows, fill, loc, factor, noise, z, kl, first, last):
    """z and kl, both overwritten. Nonzero status: something is not finite, or a pivot not positive."""
    n, lanes, bad = loc.shape[1], lanes_of(loc), 0
    L, mean, eps = new_block(rows.shape[0], loc), new_block(n, loc), new_block(n, loc)
    y, variances = new_block(n, loc), new_block(n, loc)
    sigma = new_block(0 if is_chain else fill[1].shape[0], loc)
    logs, sums = np.empty(n * lanes), np.empty(lanes)
    for start in range(first, last, lanes):
        stop = min(start + lanes, last)
        gather(factor, start, stop, L)
        gather(loc, start, stop, mean)
        gather(noise, start, stop, eps)
        bad += bad_pivots(indptr, L)
        if is_chain:
            backward_from_end(L, eps, y, variances)
        else:
            bad += solve_t(indptr, rows, L, eps, y)
            invert(True, indptr, rows, fill, L, sigma)
            for j in range(n):
                store(variances, j, load(sigma, fill[0][j]))
        energies(indptr, L, mean, y, variances, logs, sums)
        for lane in range(stop - start):
            kl[start + lane] = 0.5 * (sums[lane] - n)
        bad += bad_lanes(y) + bad_lanes(kl[start:stop])
        scatter(y, z, start, stop)
    return bad


@njit(**INNER)
def energies(indptr, L, mean, y, variances, logs, sums):
    """sums[lane] = Σ v + loc² + 2 log L_jj over the rows of y, in float64; and loc + y in place of y.

    Eight pivots multiply to a normal float64 number, in float32 as the variances are finite, so that none is below
    2⁻⁶⁴, in float64 if all lie between 2⁻¹²⁷ and 2¹²⁷: an eighth of the logarithms do.
    """
    lanes, group, outside = lanes_of(y), 8, 0
    if y.itemsize == 8:
        low, high = constant(y, 2.0**-127), constant(y, 2.0**127)
        for j in range(y.shape[0]):
            pivot = load(L, indptr[j])
            outside += not_positive(pivot - low) + not_positive(high - pivot)
        group = 1 if outside else 8
    total = double(constant(y, 0.0))
    product = double(constant(y, 1.0))
    used = 0
    for j in range(y.shape[0]):
        m = load(mean, j)
        total = total + (double(load(variances, j)) + double(m) * double(m))
        store(y, j, m + load(y, j))
        product = product * double(load(L, indptr[j]))
        if (j + 1) % group == 0 or j + 1 == y.shape[0]:
            put(logs, used, product)
            product = double(constant(y, 1.0))
            used += lanes
    put(sums, 0, total)
    logarithms(logs[:used])
    for start in range(0, used, lanes):
        for lane in range(lanes):
            sums[lane] += 2.0 * logs[start + lane]


# ---------------------------------------------------------------------- backward


@njit(**KERNEL)
def sample_and_kl_vjp(
    is_chain, indptr, rows, fill, loc, factor, noise, z_bar, kl_bar, loc_bar, factor_bar, noise_bar, first, last
):
    """The cotangents of loc, factor and noise, all overwritten; an empty `noise_bar` is left alone. Status likewise."""
    n, lanes, bad = loc.shape[1], lanes_of(loc), 0
    L, L_bar = new_block(rows.shape[0], loc), new_block(rows.shape[0], loc)
    mean, eps, out = new_block(n, loc), new_block(n, loc), new_block(n, loc)
    y, eps_bar, k_bar = new_block(n, loc), new_block(n, loc), new_block(1, loc)
    size = n if is_chain else fill[1].shape[0]
    memory = new_block(size if is_chain else 2 * size, loc)
    sigma, G = memory[:size], memory[size:]
    for start in range(first, last, lanes):
        stop = min(start + lanes, last)
        gather(factor, start, stop, L)
        gather(loc, start, stop, mean)
        gather(noise, start, stop, eps)
        gather(z_bar, start, stop, out)
        gather(kl_bar, start, stop, k_bar)
        bad += bad_pivots(indptr, L)
        if is_chain:
            backward_from_end(L, eps, y, sigma)
            forward_from_start(L, y, sigma, out, load(k_bar, 0), eps_bar, L_bar)
        else:
            bad += solve_t(indptr, rows, L, eps, y)
            bad += solve(indptr, rows, L, out, eps_bar)
            invert(True, indptr, rows, fill, L, sigma)
            _adjoint(indptr, rows, fill, L, y, eps_bar, load(k_bar, 0), sigma, G, L_bar)
        for j in range(n):
            store(mean, j, load(out, j) + load(k_bar, 0) * load(mean, j))
        bad += bad_lanes(L_bar) + bad_lanes(mean) + bad_lanes(eps_bar)
        scatter(mean, loc_bar, start, stop)
        scatter(L_bar, factor_bar, start, stop)
        if noise_bar.shape[0]:
            scatter(eps_bar, noise_bar, start, stop)
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
