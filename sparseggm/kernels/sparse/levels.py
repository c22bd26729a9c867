"""Probabilities of levels under N(loc, (L Lᵀ)⁻¹), by sequential truncated samples, and their derivatives.

A level k stands for the interval edges[k] … edges[k + 1]. Backward substitution with truncated noise: with x = z − loc
and p_j = Σ_{i>j} L_ij x_i, the coordinate z_j given those after it is in its interval where e_j = L_jj x_j + p_j is
between

    α_j = L_jj (lower_j − loc_j) + p_j   and   β_j = L_jj (upper_j − loc_j) + p_j,

which has the probability D_j = Φ(β_j) − Φ(α_j). So e_j is sampled between them, x_j = (e_j − p_j) / L_jj, and Π D_j is
unbiased for the probability of the levels [Geweke 1991; Hajivassiliou & McFadden 1998].

Backwards from Σ log D_j, with Φ(e_j) = Φ(α_j) + u_j D_j, so that ∂e/∂α = (1 − u) φ(α)/φ(e) and ∂e/∂β = u φ(β)/φ(e):

    ē = x̄_j / L_jj,   ᾱ = ē ∂e/∂α − φ(α)/D,   β̄ = ē ∂e/∂β + φ(β)/D,   p̄ = ᾱ + β̄ − ē,
    L̄_jj = ᾱ (lower − loc) + β̄ (upper − loc) − ē x_j,   loc̄_j = −(ᾱ + β̄) L_jj,   L̄_ij = p̄ x_i,   x̄_i += p̄ L_ij.

Lanes are rows, in float64 whatever the dtype. Conventions are those of `products`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from sparseggm.kernels import INNER, KERNEL, njit
from sparseggm.kernels.lanes.blocks import bad_numbers, gather, gather_rows, new_block, scatter
from sparseggm.kernels.lanes.normal import exp, truncated, where_positive
from sparseggm.kernels.lanes.vector import load, store, store_run


class Observed(NamedTuple):
    """Levels and Gaussians: row r of `uniform` has factor[factor_row[r]], loc[loc_row[r]] and levels[levels_row[r]]."""

    factor_row: Any
    factor: Any
    loc_row: Any
    loc: Any
    levels_row: Any
    levels: Any
    edges: Any
    uniform: Any


class _Blocks(NamedTuple):
    L: Any
    loc: Any
    low: Any
    high: Any
    u: Any
    x: Any
    e: Any
    rate_a: Any
    rate_b: Any


@njit(**INNER)
def _new_blocks(observed, kept):
    """Memory for a block; for what the adjoint needs, of `kept` nodes."""
    n, wide = observed.loc.shape[1], np.empty(0)
    L, loc, low, high = (
        new_block(observed.factor.shape[1], wide),
        new_block(n, wide),
        new_block(n, wide),
        new_block(n, wide),
    )
    u, x, e = new_block(n, wide), new_block(n, wide), new_block(kept, wide)
    return _Blocks(L, loc, low, high, u, x, e, new_block(kept, wide), new_block(kept, wide))


@njit(**INNER)
def _gather(observed, start, stop, blocks):
    gather_rows(observed.factor, observed.factor_row[start:stop], blocks.L)
    gather_rows(observed.loc, observed.loc_row[start:stop], blocks.loc)
    gather(observed.uniform, start, stop, blocks.u)
    lanes = blocks.L.shape[1]
    for lane in range(lanes):
        row = observed.levels[observed.levels_row[min(start + lane, stop - 1)]]
        for i in range(row.shape[0]):
            blocks.low[i, lane] = observed.edges[row[i]]
            blocks.high[i, lane] = observed.edges[row[i] + 1]


@njit(**KERNEL)
def levels_log_prob(indptr, rows, observed, log_prob, z, first, last):
    """log_prob[r] = Σ_j log D_j, and the truncated sample in z where it has rows. Nonzero status: not finite."""
    blocks = _new_blocks(observed, 0)
    lanes = blocks.L.shape[1]
    sums, bad = np.empty(lanes), 0
    for start in range(first, last, lanes):
        stop = min(start + lanes, last)
        _gather(observed, start, stop, blocks)
        store_run(sums, 0, _sample(indptr, rows, blocks))
        bad += _scatter_sums(sums, log_prob, start, stop)
        if z.shape[0]:
            for j in range(blocks.x.shape[0]):
                store(blocks.x, j, load(blocks.x, j) + load(blocks.loc, j))
            scatter(blocks.x, z, start, stop)
    n = z.shape[1]
    return bad + bad_numbers(z.reshape(z.size)[first * n : last * n])


@njit(**KERNEL)
def levels_log_prob_and_gradients(indptr, rows, observed, log_prob, by_loc, by_factor, first, last):
    """Σ_j log D_j of each row, and its gradients with respect to loc and L. Nonzero status: log_prob is not finite."""
    n, wide = observed.loc.shape[1], np.empty(0)
    blocks, L_bar = _new_blocks(observed, n), new_block(rows.shape[0], wide)
    x_bar, mean_bar = new_block(n, wide), new_block(n, wide)
    sums, bad = np.empty(L_bar.shape[1]), 0
    for start in range(first, last, sums.shape[0]):
        stop = min(start + sums.shape[0], last)
        _gather(observed, start, stop, blocks)
        store_run(sums, 0, _sample(indptr, rows, blocks))
        bad += _scatter_sums(sums, log_prob, start, stop)
        _adjoint(indptr, rows, blocks, x_bar, L_bar, mean_bar)
        scatter(L_bar, by_factor, start, stop)
        scatter(mean_bar, by_loc, start, stop)
    return bad


@njit(**INNER)
def _scatter_sums(sums, log_prob, start, stop):
    """How many of those sums are not finite that are of rows, and not of lanes left over."""
    bad = 0
    for r in range(start, stop):
        log_prob[r] = sums[r - start]
        bad += not abs(log_prob[r]) < np.inf
    return bad


@njit(**INNER)
def _sample(indptr, rows, blocks):
    """x of each node; e and the rates where there is memory for them. Returns Σ_j log D_j."""
    L, x = blocks.L, blocks.x
    total = load(blocks.u, 0) * 0.0
    for j in range(x.shape[0] - 1, -1, -1):
        pivot, pull = load(L, indptr[j]), total * 0.0
        for p in range(indptr[j] + 1, indptr[j + 1]):
            pull = pull + load(L, p) * load(x, rows[p])
        low, high, loc = load(blocks.low, j), load(blocks.high, j), load(blocks.loc, j)
        alpha, beta = pivot * (low - loc) + pull, pivot * (high - loc) + pull
        u = load(blocks.u, j)
        mass, e_j, rate_a, rate_b = truncated(alpha, beta, pivot * (high - low), u)
        # NaN where one is not finite or the pivot not positive, which `truncated` forgives
        total = total + mass + where_positive(pivot, pivot * loc + pull + u, pivot * np.nan) * 0.0
        store(x, j, (e_j - pull) / pivot)
        if blocks.e.shape[0]:
            store(blocks.e, j, e_j)
            store(blocks.rate_a, j, rate_a)
            store(blocks.rate_b, j, rate_b)
    return total


@njit(**INNER)
def _adjoint(indptr, rows, blocks, x_bar, L_bar, mean_bar):
    """First node to last: x̄ of a node is complete when those before it are done."""
    L, x = blocks.L, blocks.x
    x_bar[:] = 0.0
    for j in range(x.shape[0]):
        begin = indptr[j]
        pivot, x_j, e_j, u, loc = load(L, begin), load(x, j), load(blocks.e, j), load(blocks.u, j), load(blocks.loc, j)
        pull = e_j - pivot * x_j
        below, above = load(blocks.low, j) - loc, load(blocks.high, j) - loc
        e_bar = load(x_bar, j) / pivot
        alpha_bar = e_bar * (u * 0.0 + 1.0 - u) * _ratio(pivot * below + pull, e_j) - load(blocks.rate_a, j)
        beta_bar = e_bar * u * _ratio(pivot * above + pull, e_j) + load(blocks.rate_b, j)
        both = alpha_bar + beta_bar
        store(L_bar, begin, _product(alpha_bar, below) + _product(beta_bar, above) - e_bar * x_j)
        store(mean_bar, j, both * pivot * -1.0)
        pull_bar = both - e_bar
        for p in range(begin + 1, indptr[j + 1]):
            i = rows[p]
            store(L_bar, p, pull_bar * load(x, i))
            store(x_bar, i, load(x_bar, i) + pull_bar * load(L, p))


@njit(**INNER)
def _ratio(bound, e):
    """φ(bound) / φ(e), 0 for a bound at infinity."""
    exponent = (e - bound) * (e + bound) * 0.5
    return exp(where_positive(exponent + 708.0, exponent, e * 0.0 - 709.0))


@njit(**INNER)
def _product(bar, distance):
    """bar · distance, 0 where bar is 0, however far away the bound is."""
    return where_positive(bar * bar, bar * distance, bar * 0.0)
