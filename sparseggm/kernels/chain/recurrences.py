"""The recurrences of a chain, L_jj = a_j and L_{j+1,j} = b_j, on blocks or 1-D arrays.

Backward, for a sample and the variances:   y_j = (ε_j − b_j y_{j+1}) / a_j,   v_j = (1 + b_j² v_{j+1}) / a_j².
Forward, for their adjoints:   ε̄_j = (z̄_j − b_{j−1} ε̄_{j−1}) / a_j,   g_j = k̄ + (b_{j−1} / a_{j−1})² g_{j−1}.
Forward, for the factor:   d_j = P_jj − b_{j−1}²,   a_j = √d_j,   b_j = P_{j+1,j} / a_j.
Forward, for P = L D Lᵀ:   d_j = P_jj − l_{j−1} P_{j,j−1},   l_j = P_{j+1,j} / d_j,   y_j = rhs_j − l_{j−1} y_{j−1}.
"""

from __future__ import annotations

import numpy as np

from sparseggm.kernels import INNER, njit
from sparseggm.kernels.lanes.tiles import block_of
from sparseggm.kernels.lanes.vector import (
    full_like,
    load,
    minimum,
    not_finite,
    not_positive,
    square_root,
    store,
    zero_below,
)

SMALL_PIVOT = -2
"""Status of a factorisation that succeeded, but where some pivot d_k ≤ ∛u P_kk lost a third of its digits, or more."""


@njit(**INNER)
def small_share(like):
    """∛u: a pivot d_k ≤ ∛u P_kk is small; rounding alone may have made it."""
    return (0.5 * np.finfo(like.dtype).eps) ** (1.0 / 3.0)


@njit(**INNER)
def solve_backward(L, y, end, y_j):
    """y of Lᵀ y = rhs in place of rhs at nodes end − 1 … 0, each coupled to the next; `y_j` is y of node `end`."""
    for j in range(end - 1, -1, -1):
        y_j = (load(y, j) - load(L, 2 * j + 1) * y_j) / load(L, 2 * j)
        store(y, j, y_j)
    return y_j


@njit(**INNER)
def solve_forward(L, y, end, carried):
    """y of L y = rhs in place of rhs at nodes 0 … end − 1, each coupled to the next; `carried` is b_{j−1} y_{j−1}."""
    for j in range(end):
        y_j = (load(y, j) - carried) / load(L, 2 * j)
        store(y, j, y_j)
        carried = load(L, 2 * j + 1) * y_j
    return carried


@njit(**INNER)
def backward(L, y, v, end, y_j, v_j):
    """y in place of ε, and v, at nodes end − 1 … 0, each coupled to the next; `y_j, v_j` are y and v of node `end`.

    Returns y and v of node 0, and the number of lanes with a pivot that is not positive and finite.
    """
    one, zero = full_like(v, 1.0), full_like(v, 0.0)
    least, taint = one, zero
    for j in range(end - 1, -1, -1):
        a, b = load(L, 2 * j), load(L, 2 * j + 1)
        least, taint = minimum(a, least), taint + zero * a
        inverse = one / a  # one division a node, which takes longer than all the rest
        y_j = (load(y, j) - b * y_j) * inverse
        ratio = b * inverse
        v_j = inverse * inverse + (ratio * ratio) * v_j
        store(y, j, y_j)
        store(v, j, v_j)
    return y_j, v_j, not_positive(least + taint)


@njit(**INNER)
def natural_backward(L, y, u, end, y_j, v_j, by_regression):
    """`backward`, and the natural gradient in place of the gradient u by the entries of L; v is not stored.

    A column's Fisher matrix is inverted by ½ L_Sj L_Sjᵀ + 0 ⊕ 1 / v_{j+1}, or, by log σ_j = −log a_j and by
    β_j = −b_j / a_j, by ½ and 1 / (a_j² v_{j+1}).
    """
    factors = block_of(L)
    one, zero, half = full_like(factors, 1.0), full_like(factors, 0.0), full_like(factors, 0.5)
    least, taint = one, zero
    for j in range(end - 1, -1, -1):
        a, b, of_a, of_b = load(L, 2 * j), load(L, 2 * j + 1), load(u, 2 * j), load(u, 2 * j + 1)
        least, taint = minimum(a, least), taint + zero * a
        inverse = one / a
        if by_regression:
            of_a, of_b = half * of_a, of_b * ((inverse * inverse) / v_j)
        else:
            along = half * (a * of_a + b * of_b)
            of_a, of_b = a * along, b * along + of_b / v_j
        store(u, 2 * j, of_a)
        store(u, 2 * j + 1, of_b)
        taint = taint + (zero * of_a + zero * of_b)
        y_j = (load(y, j) - b * y_j) * inverse
        ratio = b * inverse
        v_j = inverse * inverse + (ratio * ratio) * v_j
        store(y, j, y_j)
    return y_j, v_j, not_positive(least + taint)


@njit(**INNER)
def forward(L, y, v, e, k_bar, end, carried, g):
    """ε̄ in place of z̄ = e, and L̄ in place of L, at nodes 0 … end − 1, each coupled to the next.

    y and v are given. L̄ = −y ε̄ᵀ + k̄ (½ ∂Σv/∂L + diag(1/a)). `carried` is b_{j−1} ε̄_{j−1}. Returns `carried` and g
    for node `end`, and the number of lanes where L̄ is not finite.
    """
    one, zero = full_like(L, 1.0), full_like(L, 0.0)
    taint = zero
    for j in range(end):
        inverse, b = one / load(L, 2 * j), load(L, 2 * j + 1)
        e_j = (load(e, j) - carried) * inverse
        ratio = b * inverse
        pull = ratio * g
        store(e, j, e_j)
        a_bar = inverse * (k_bar - g * load(v, j)) - load(y, j) * e_j
        b_bar = (pull * inverse) * load(v, j + 1) - load(y, j + 1) * e_j
        taint = taint + (zero * a_bar + zero * b_bar)
        store(L, 2 * j, a_bar)
        store(L, 2 * j + 1, b_bar)
        carried = b * e_j
        g = k_bar + ratio * pull
    return carried, g, not_finite(taint)


@njit(**INNER)
def variances(L, v):
    """v alone, the marginal variances."""
    one = full_like(L, 1.0)
    last = v.shape[0] - 1
    inverse = one / load(L, 2 * last)
    v_j = inverse * inverse
    store(v, last, v_j)
    for j in range(last - 1, -1, -1):
        inverse = one / load(L, 2 * j)
        ratio = load(L, 2 * j + 1) * inverse
        v_j = inverse * inverse + (ratio * ratio) * v_j
        store(v, j, v_j)


@njit(**INNER)
def variances_adjoint(L, v, v_bar, L_bar):
    """L̄ for the cotangents of v: g_j = v̄_j + (b_{j−1} / a_{j−1})² g_{j−1}."""
    one, two = full_like(L, 1.0), full_like(L, 2.0)
    last = v.shape[0] - 1
    g = load(v_bar, 0)
    for j in range(last):
        inverse = one / load(L, 2 * j)
        ratio = load(L, 2 * j + 1) * inverse
        store(L_bar, 2 * j, full_like(L, -2.0) * g * (load(v, j) * inverse))
        store(L_bar, 2 * j + 1, (two * g) * ((ratio * inverse) * load(v, j + 1)))
        g = load(v_bar, j + 1) + (ratio * ratio) * g
    store(L_bar, 2 * last, full_like(L, -2.0) * g * (load(v, last) / load(L, 2 * last)))


@njit(**INNER)
def factorise(P, L, negligible):
    """L with P = L Lᵀ, couplings below negligible √P_ii set to zero.

    Returns the first column that fails, `SMALL_PIVOT`, or −1.
    """
    last = (P.shape[0] - 1) // 2
    d, failed, least = factorise_nodes(P, L[: 2 * last], negligible, load(P, 0), full_like(L, 1.0))
    if failed >= 0:
        return failed
    if not_positive(d):
        store(L, 2 * last, d)
        return last
    store(L, 2 * last, square_root(d))
    return SMALL_PIVOT if not_positive(least) else -1


@njit(**INNER)
def factorise_nodes(P, L, negligible, d, least):
    """L at nodes 0 … L.shape[0] / 2 − 1, each coupled to the next, from the pivot d of the first.

    Returns the pivot of the node after them and −1, or a pivot that is not positive and its node; and the least of
    `least` and all d_{j+1} − ∛u P_{j+1,j+1}, which is positive if no pivot is small.
    """
    small = full_like(L, small_share(L))
    for j in range(L.shape[0] // 2):
        if not_positive(d):
            store(L, 2 * j, d)
            return d, j, least
        a, next_d = square_root(d), load(P, 2 * j + 2)
        b = zero_below(load(P, 2 * j + 1) / a, negligible * square_root(next_d))
        store(L, 2 * j, a)
        store(L, 2 * j + 1, b)
        d = next_d - b * b
        least = minimum(d - small * next_d, least)
    return d, -1, least


@njit(**INNER)
def eliminate(P, w, end, pull, carried):
    """D and L of P = L D Lᵀ in place of P, w = D⁻¹ L⁻¹ b in place of b, at nodes 0 … end − 1, each coupled to the next.

    A node receives `pull` = l_{j−1} P_{j,j−1} and `carried` = l_{j−1} y_{j−1}. Returns both for node `end`, and the
    number of lanes with a pivot that is not above ∛u P_jj by a normal number, or with no finite sum of the pivots.
    """
    factors = block_of(P)
    small, one = full_like(factors, small_share(factors)), full_like(factors, 1.0)
    least, total = one, full_like(factors, 0.0)
    for j in range(end):
        P_jj, coupling, y_j = load(P, 2 * j), load(P, 2 * j + 1), load(w, j) - carried
        d = P_jj - pull
        least, total = minimum(d - small * P_jj, least), total + d  # an infinite pivot shows nowhere else
        inverse = one / d
        ratio = coupling * inverse
        store(P, 2 * j, d)
        store(P, 2 * j + 1, ratio)
        store(w, j, y_j * inverse)
        pull, carried = ratio * coupling, ratio * y_j
    tiny = full_like(factors, np.finfo(factors.dtype).tiny)
    return pull, carried, not_positive(least - tiny) + not_finite(total)


@njit(**INNER)
def substitute(L, w, end, x_j):
    """x of Lᵀ x = w in place of w at nodes end − 1 … 0; `x_j` is x of node `end`, and L is as `eliminate` leaves it."""
    for j in range(end - 1, -1, -1):
        x_j = load(w, j) - load(L, 2 * j + 1) * x_j
        store(w, j, x_j)
    return x_j
