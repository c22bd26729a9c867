"""The training step of a variational autoencoder in one pass: a draw, KL to N(0, I), and the gradients of both.

Per batch element, all in the pattern's numbering, v = diag Σ:

    forward     y = L⁻ᵀ ε,   z = loc + y,   kl = ½ [Σ v + |loc|² − n + 2 Σ log L_jj]
    backward    ε̄ = L⁻¹ z̄,   loc̄ = z̄ + k̄ loc,   L̄ = −y ε̄ᵀ on S + k̄ (½ ∂Σv/∂L + diag(1/L_jj))

A block of lanes stays in cache from the gather of its rows to the scatter of its results; separate verbs would read
every byte three times. Nothing but z and kl is kept for the backward pass: y and Σ are computed again. Conventions are
those of `products`; every array has one row a batch element. A chain, on which index work would be all of the work,
has its own recurrences.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from sparseggm.kernels.blocks import bad_lanes, bad_pivots, gather, new_block, scatter
from sparseggm.kernels.inverse import invert, invert_adjoint
from sparseggm.kernels.logarithm import logarithms
from sparseggm.kernels.products import solve, solve_t
from sparseggm.kernels.vector import constant, double, lanes_of, load, put, store

INVERSE_DIGEST = "05b63a03873c3113"
PRODUCTS_DIGEST = "b02b4d3102fd168f"
BLOCKS_DIGEST = "d5c11bbfa6062db8"
LOGARITHM_DIGEST = "92b20627c1b3936a"


# ---------------------------------------------------------------------- forward


@njit(cache=True, nogil=True, error_model="numpy")
def sample_and_kl(is_chain, indptr, rows, fill, loc, factor, noise, z, kl, first, last):
    """z and kl, both overwritten; kl is float64. Nonzero status: something is not finite, or a pivot not positive."""
    n, lanes = loc.shape[1], lanes_of(loc)
    L, mean, eps = new_block(rows.shape[0], loc), new_block(n, loc), new_block(n, loc)
    y, variances = new_block(n, loc), new_block(n, loc)
    sigma = new_block(0 if is_chain else fill[1].shape[0], loc)
    logs = np.empty(n * lanes)
    bad = 0
    for start in range(first, last, lanes):
        stop = min(start + lanes, last)
        gather(factor, start, stop, L)
        gather(loc, start, stop, mean)
        gather(noise, start, stop, eps)
        bad += bad_pivots(indptr, L)
        if is_chain:
            _chain_backward(L, eps, y, variances)
        else:
            bad += solve_t(indptr, rows, L, eps, y)
            invert(indptr, rows, fill, L, sigma)
            for j in range(n):
                store(variances, j, load(sigma, fill[0][j]))
        bad += _finish(indptr, L, mean, y, variances, logs, kl[start:stop])
        scatter(y, z, start, stop)
    return bad


@njit(cache=True, nogil=True, error_model="numpy")
def _chain_backward(L, eps, y, variances):
    """y_j = (ε_j − b_j y_{j+1}) / a_j and v_j = (1 + b_j² v_{j+1}) / a_j², where L_jj = a_j and L_{j+1,j} = b_j."""
    n = y.shape[0]
    a = load(L, 2 * n - 2)
    y_j = load(eps, n - 1) / a
    inverse = constant(L, 1.0) / a
    v_j = inverse * inverse
    store(y, n - 1, y_j)
    store(variances, n - 1, v_j)
    for j in range(n - 2, -1, -1):
        a, b = load(L, 2 * j), load(L, 2 * j + 1)
        y_j = (load(eps, j) - b * y_j) / a
        inverse = constant(L, 1.0) / a
        ratio = b * inverse
        v_j = inverse * inverse + (ratio * ratio) * v_j
        store(y, j, y_j)
        store(variances, j, v_j)


@njit(cache=True, nogil=True, error_model="numpy")
def _finish(indptr, L, mean, y, variances, logs, kl):
    """kl from the parts, summed in float64, and z = loc + y in place of y; the number of lanes with a bad number.

    A product of four float32 pivots is a normal float64 number: a quarter of the logarithms do.
    """
    n, lanes = y.shape[0], lanes_of(y)
    group = 4 if y.itemsize == 4 else 1
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
    return bad_lanes(y)


# ---------------------------------------------------------------------- backward


@njit(cache=True, nogil=True, error_model="numpy")
def sample_and_kl_vjp(
    is_chain, indptr, rows, fill, loc, factor, noise, z_bar, kl_bar, loc_bar, factor_bar, noise_bar, first, last
):
    """The cotangents of loc, factor and noise, all overwritten; an empty `noise_bar` is left alone. Status likewise."""
    n, lanes = loc.shape[1], lanes_of(loc)
    L, L_bar = new_block(rows.shape[0], loc), new_block(rows.shape[0], loc)
    mean, eps, out = new_block(n, loc), new_block(n, loc), new_block(n, loc)
    y, eps_bar, k_bar = new_block(n, loc), new_block(n, loc), new_block(1, loc)
    sigma = new_block(n if is_chain else fill[1].shape[0], loc)
    G = new_block(0 if is_chain else fill[1].shape[0], loc)
    bad = 0
    for start in range(first, last, lanes):
        stop = min(start + lanes, last)
        gather(factor, start, stop, L)
        gather(loc, start, stop, mean)
        gather(noise, start, stop, eps)
        gather(z_bar, start, stop, out)
        gather(kl_bar, start, stop, k_bar)
        bad += bad_pivots(indptr, L)
        if is_chain:
            _chain_backward(L, eps, y, sigma)
            _chain_forward(L, y, sigma, out, load(k_bar, 0), eps_bar, L_bar)
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
def _chain_forward(L, y, variances, z_bar, k_bar, eps_bar, L_bar):
    """ε̄_j = (z̄_j − b_{j−1} ε̄_{j−1}) / a_j, with it the adjoint g_j = ½ k̄ + (b_{j−1} / a_{j−1})² g_{j−1} of v_j."""
    n = y.shape[0]
    one, two = constant(L, 1.0), constant(L, 2.0)
    half = constant(L, 0.5) * k_bar
    carried, g = constant(L, 0.0), half
    for j in range(n):
        a = load(L, 2 * j)
        e = (load(z_bar, j) - carried) / a
        store(eps_bar, j, e)
        inverse = one / a
        a_bar = k_bar * inverse - load(y, j) * e - (two * g) * (load(variances, j) * inverse)
        store(L_bar, 2 * j, a_bar)
        if j + 1 < n:
            b = load(L, 2 * j + 1)
            ratio = b * inverse
            b_bar = (two * g) * ((ratio * inverse) * load(variances, j + 1)) - load(y, j + 1) * e
            store(L_bar, 2 * j + 1, b_bar)
            carried = b * e
            g = half + (ratio * ratio) * g


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
