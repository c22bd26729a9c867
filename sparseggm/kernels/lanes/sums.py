"""Sums over the nodes of each lane, in float64: log determinants, and the terms of KL(q ‖ N(0, I))."""

from __future__ import annotations

import math

import numpy as np

from sparseggm.kernels import INNER, njit
from sparseggm.kernels.lanes.logarithm import logarithms
from sparseggm.kernels.lanes.vector import as_float64, exponent, full_like, lanes_of, load, mantissa, store, store_run

_LN2 = math.log(2.0)


@njit(**INNER)
def new_scratch(like):
    """Memory for `kl_terms`."""
    return np.empty(2 * lanes_of(like))


@njit(**INNER)
def log_determinants(indptr, L, n, scratch, sums):
    """sums[lane] = 2 Σ log L_jj over the first n nodes.

    The product of the pivots is kept as 2ᵏ m, so that one logarithm serves all. k and m are split off after each four
    float32 pivots, whose product float64 holds easily, or after each float64 pivot, which must not be subnormal.
    """
    lanes, group = lanes_of(L), 4 if L.itemsize == 4 else 1
    one = as_float64(full_like(L, 1.0))
    product, k, m = one, as_float64(full_like(L, 0.0)), one
    for j in range(n):
        product = product * as_float64(load(L, indptr[j]))
        if (j + 1) % group == 0 or j + 1 == n:
            k, m = k + exponent(product), m * mantissa(product)
            k, m, product = k + exponent(m), mantissa(m), one
    store_run(scratch, 0, m)
    store_run(scratch, lanes, k)
    logarithms(scratch[:lanes])
    for lane in range(lanes):
        sums[lane] = 2.0 * (scratch[lane] + scratch[lanes + lane] * _LN2)


@njit(**INNER)
def kl_terms(indptr, L, mean, y, variances, n, scratch, sums):
    """sums[lane] = Σ v + loc² + 2 log L_jj over the first n nodes, and loc + y in place of y.

    Pivots are not subnormal, as the variances are finite.
    """
    lanes, total = lanes_of(y), as_float64(full_like(y, 0.0))
    for j in range(n):
        loc = load(mean, j)
        total = total + (as_float64(load(variances, j)) + as_float64(loc) * as_float64(loc))
        store(y, j, loc + load(y, j))
    log_determinants(indptr, L, n, scratch, sums)
    store_run(scratch, 0, total)
    for lane in range(lanes):
        sums[lane] += scratch[lane]
