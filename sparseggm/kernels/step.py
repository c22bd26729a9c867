"""The training step of a variational autoencoder in one pass: a draw, KL to N(0, I), and the gradients of both.

Per batch element, all in the pattern's numbering, v = diag Σ:

    forward     y = L⁻ᵀ ε,   z = loc + y,   kl = ½ [Σ v + |loc|² − n + 2 Σ log L_jj]
    backward    ε̄ = L⁻¹ z̄,   loc̄ = z̄ + k̄ loc,   L̄ = −y ε̄ᵀ on S + k̄ (½ ∂Σv/∂L + diag(1/L_jj))

A block of lanes stays in cache from the gather of its rows to the scatter of its results; separate verbs would read
every byte three times. Nothing but z and kl is kept for the backward pass: y and Σ are computed again. Conventions are
those of `products`; every array has one row a batch element; `spare` (batch, 2, n) is memory for a chain that is done
alone, or empty. A chain, on which index work would be all of the work, has its own recurrences.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from sparseggm.kernels.blocks import bad_lanes, bad_numbers, bad_pivots, gather, is_few, new_block, scatter
from sparseggm.kernels.chain import LONG, backward_from_end, forward_from_start, long_backward, long_forward
from sparseggm.kernels.inverse import invert, invert_adjoint
from sparseggm.kernels.logarithm import logarithms
from sparseggm.kernels.products import solve, solve_t, sum_of_logarithms
from sparseggm.kernels.vector import constant, double, lanes_of, load, put, store

CHAIN_DIGEST = "03939b85f43bf4ec"
INVERSE_DIGEST = "1ce0a8578dae2fe8"
PRODUCTS_DIGEST = "f3bdad2ada1a1a4f"
BLOCKS_DIGEST = "750948f9e24d1c8b"
LOGARITHM_DIGEST = "92b20627c1b3936a"


# ---------------------------------------------------------------------- forward


@njit(cache=True, nogil=True, error_model="numpy")
def sample_and_kl(is_chain, indptr, rows, fill, spare, loc, factor, noise, z, kl, first, last):
    """z and kl, both overwritten. Nonzero status: something is not finite, or a pivot not positive."""
    n, lanes, bad = loc.shape[1], lanes_of(loc), 0
    if is_chain and n >= LONG and is_few(first, last, lanes):
        for r in range(first, last):
            bad += _long_sample_and_kl(indptr, spare[r, 0], loc[r], factor[r], noise[r], z[r], kl[r : r + 1])
        return bad
    L, mean, eps = new_block(rows.shape[0], loc), new_block(n, loc), new_block(n, loc)
    y, variances = new_block(n, loc), new_block(n, loc)
    sigma = new_block(0 if is_chain else fill[1].shape[0], loc)
    logs = np.empty(n * lanes)
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
            invert(indptr, rows, fill, L, sigma)
            for j in range(n):
                store(variances, j, load(sigma, fill[0][j]))
        bad += _finish(indptr, L, mean, y, variances, logs, kl[start:stop])
        scatter(y, z, start, stop)
    return bad


@njit(cache=True, nogil=True, error_model="numpy")
def _finish(indptr, L, mean, y, variances, logs, kl):
    """kl from the parts, summed in float64, and z = loc + y in place of y; the number of lanes with a bad number.

    Eight float32 pivots, none below 2⁻⁶⁴ as the variances are finite, multiply to a normal float64 number: an eighth
    of the logarithms do.
    """
    n, lanes = y.shape[0], lanes_of(y)
    group = 8 if y.itemsize == 4 else 1
    total = double(constant(y, 0.0))
    product = double(constant(y, 1.0))
    used = 0
    for j in range(n):
        m = load(mean, j)
        total = total + double(load(variances, j)) + double(m) * double(m)
        store(y, j, m + load(y, j))
        product = product * double(load(L, indptr[j]))
        if (j + 1) % group == 0 or j + 1 == n:
            put(logs, used, product)
            product = double(constant(y, 1.0))
            used += lanes
    sums = np.empty(lanes)
    put(sums, 0, total)
    logarithms(logs[:used])
    for start in range(0, used, lanes):
        for lane in range(lanes):
            sums[lane] += 2.0 * logs[start + lane]
    for lane in range(kl.shape[0]):
        kl[lane] = 0.5 * (sums[lane] - n)
    return bad_lanes(y) + bad_lanes(kl)


@njit(cache=True, nogil=True, error_model="numpy")
def _long_sample_and_kl(indptr, variances, loc, L, noise, z, kl):
    """One long chain: rows of a block are then runs of the chain."""
    n, lanes = z.shape[0], lanes_of(z)
    long_backward(L, noise, z, variances)
    total, whole = double(constant(z.reshape(1, n), 0.0)), n // lanes * lanes
    runs, means = variances[:whole].reshape(-1, lanes), loc[:whole].reshape(-1, lanes)
    for i in range(whole // lanes):
        m = double(load(means, i))
        total = total + double(load(runs, i)) + m * m
    sums = np.empty(lanes)
    put(sums, 0, total)
    rest = sums.sum()
    for j in range(whole, n):
        rest += np.float64(variances[j]) + np.float64(loc[j]) * np.float64(loc[j])
    for j in range(n):
        z[j] += loc[j]
    kl[0] = 0.5 * (rest - n) + sum_of_logarithms(indptr, L, np.empty(4096))
    return bad_numbers(L) + bad_numbers(z) + bad_numbers(kl)


# ---------------------------------------------------------------------- backward


@njit(cache=True, nogil=True, error_model="numpy")
def sample_and_kl_vjp(
    is_chain, indptr, rows, fill, spare, loc, factor, noise, z_bar, kl_bar, loc_bar, factor_bar, noise_bar, first, last
):
    """The cotangents of loc, factor and noise, all overwritten; an empty `noise_bar` is left alone. Status likewise."""
    n, lanes, bad = loc.shape[1], lanes_of(loc), 0
    if is_chain and n >= LONG and is_few(first, last, lanes):
        for r in range(first, last):
            eps_bar = noise_bar[r] if noise_bar.shape[0] else spare[r, 0, :0]
            bad += _long_adjoint(
                spare[r], loc[r], factor[r], noise[r], z_bar[r], kl_bar[r, 0], loc_bar[r], factor_bar[r], eps_bar
            )
        return bad
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
            invert(indptr, rows, fill, L, sigma)
            _adjoint(indptr, rows, fill, L, y, eps_bar, load(k_bar, 0), sigma, G, L_bar)
        for j in range(n):
            store(mean, j, load(out, j) + load(k_bar, 0) * load(mean, j))
        bad += bad_lanes(L_bar) + bad_lanes(mean) + bad_lanes(eps_bar)
        scatter(mean, loc_bar, start, stop)
        scatter(L_bar, factor_bar, start, stop)
        if noise_bar.shape[0]:
            scatter(eps_bar, noise_bar, start, stop)
    return bad


@njit(cache=True, nogil=True, error_model="numpy")
def _long_adjoint(spare, loc, L, noise, z_bar, k_bar, loc_bar, L_bar, eps_bar):
    """One long chain."""
    y, variances = spare[0], spare[1]
    long_backward(L, noise, y, variances)
    long_forward(L, y, variances, z_bar, k_bar, eps_bar, L_bar)
    for j in range(loc.shape[0]):
        loc_bar[j] = z_bar[j] + k_bar * loc[j]
    negative = 0
    for j in range(loc.shape[0]):
        negative += not L[2 * j] > 0.0
    return negative + bad_numbers(L) + bad_numbers(L_bar) + bad_numbers(loc_bar) + bad_numbers(eps_bar)


@njit(cache=True, nogil=True, error_model="numpy")
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
