"""The recurrences of a chain, L_jj = a_j and L_{j+1,j} = b_j, on blocks or 1-D arrays.

Backward, for a draw and the variances:   y_j = (ε_j − b_j y_{j+1}) / a_j,   v_j = (1 + b_j² v_{j+1}) / a_j².
Forward, for their adjoints:   ε̄_j = (z̄_j − b_{j−1} ε̄_{j−1}) / a_j,   g_j = ½ k̄ + (b_{j−1} / a_{j−1})² g_{j−1}.
Forward, for the factor:   d_j = P_jj − b_{j−1}²,   a_j = √d_j,   b_j = P_{j+1,j} / a_j.
"""

from __future__ import annotations

from numba import njit

from sparseggm.kernels import INNER, KERNEL
from sparseggm.kernels.vector import constant, flushed, load, not_positive, square_root, store

VECTOR_DIGEST = "3be825edddd084f9"


@njit(**INNER)
def solve_backward(L, rhs, y, y_j):
    """y of Lᵀ y = rhs at nodes y.shape[0] − 1 … 0, each coupled to the next, from that of the node after them."""
    for j in range(y.shape[0] - 1, -1, -1):
        y_j = (load(rhs, j) - load(L, 2 * j + 1) * y_j) / load(L, 2 * j)
        store(y, j, y_j)
    return y_j


@njit(**INNER)
def solve_forward(L, rhs, y, carried):
    """y of L y = rhs at nodes 0 … y.shape[0] − 1, each coupled to the next; `carried` is b_{j−1} y_{j−1}."""
    for j in range(y.shape[0]):
        y_j = (load(rhs, j) - carried) / load(L, 2 * j)
        store(y, j, y_j)
        carried = load(L, 2 * j + 1) * y_j
    return carried


@njit(**INNER)
def backward(L, eps, y, v, y_j, v_j):
    """Nodes y.shape[0] − 1 … 0, each coupled to the next, from the values of the node after them; returns the last."""
    one = constant(L, 1.0)
    for j in range(y.shape[0] - 1, -1, -1):
        a, b = load(L, 2 * j), load(L, 2 * j + 1)
        y_j = (load(eps, j) - b * y_j) / a
        inverse = one / a
        ratio = b * inverse
        v_j = inverse * inverse + (ratio * ratio) * v_j
        store(y, j, y_j)
        store(v, j, v_j)
    return y_j, v_j


@njit(**KERNEL)
def backward_from_end(L, eps, y, v):
    """The whole chain."""
    last = y.shape[0] - 1
    a = load(L, 2 * last)
    inverse = constant(L, 1.0) / a
    y_j, v_j = load(eps, last) / a, inverse * inverse
    store(y, last, y_j)
    store(v, last, v_j)
    backward(L, eps[:last], y[:last], v[:last], y_j, v_j)


@njit(**INNER)
def forward(L, y, v, z_bar, k_bar, eps_bar, L_bar, carried, g):
    """Nodes 0 … eps_bar.shape[0] − 1, each coupled to the next, whose y and v are there too.

    L̄ = −y ε̄ᵀ + k̄ (½ ∂Σv/∂L + diag(1/a)). `carried` is b_{j−1} ε̄_{j−1}; returns it and g for the node after the last.
    """
    one, two, half = constant(L, 1.0), constant(L, 2.0), constant(L, 0.5) * k_bar
    for j in range(eps_bar.shape[0]):
        a, b = load(L, 2 * j), load(L, 2 * j + 1)
        e = (load(z_bar, j) - carried) / a
        inverse = one / a
        ratio = b * inverse
        store(eps_bar, j, e)
        store(L_bar, 2 * j, k_bar * inverse - load(y, j) * e - (two * g) * (load(v, j) * inverse))
        store(L_bar, 2 * j + 1, (two * g) * ((ratio * inverse) * load(v, j + 1)) - load(y, j + 1) * e)
        carried = b * e
        g = half + (ratio * ratio) * g
    return carried, g


@njit(**KERNEL)
def forward_from_start(L, y, v, z_bar, k_bar, eps_bar, L_bar):
    """The whole chain."""
    last = y.shape[0] - 1
    half = constant(L, 0.5) * k_bar
    carried, g = forward(L, y, v, z_bar, k_bar, eps_bar[:last], L_bar, constant(L, 0.0), half)
    _forward_end(L, y, v, z_bar, k_bar, eps_bar, L_bar, carried, g)


@njit(**INNER)
def _forward_end(L, y, v, z_bar, k_bar, eps_bar, L_bar, carried, g):
    """The last node, which is coupled to none."""
    last = y.shape[0] - 1
    inverse = constant(L, 1.0) / load(L, 2 * last)
    e = (load(z_bar, last) - carried) / load(L, 2 * last)
    store(eps_bar, last, e)
    diagonal = k_bar * inverse - load(y, last) * e
    store(L_bar, 2 * last, diagonal - (constant(L, 2.0) * g) * (load(v, last) * inverse))


@njit(**INNER)
def variances(L, v):
    """v alone."""
    one = constant(L, 1.0)
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
    one, two = constant(L, 1.0), constant(L, 2.0)
    last = v.shape[0] - 1
    g = load(v_bar, 0)
    for j in range(last):
        inverse = one / load(L, 2 * j)
        ratio = load(L, 2 * j + 1) * inverse
        store(L_bar, 2 * j, constant(L, -2.0) * g * (load(v, j) * inverse))
        store(L_bar, 2 * j + 1, (two * g) * ((ratio * inverse) * load(v, j + 1)))
        g = load(v_bar, j + 1) + (ratio * ratio) * g
    store(L_bar, 2 * last, constant(L, -2.0) * g * (load(v, last) / load(L, 2 * last)))


@njit(**INNER)
def factorise(P, L, negligible):
    """L with P = L Lᵀ, couplings below negligible √P_ii set to zero; the first column that fails, or −1."""
    last = (P.shape[0] - 1) // 2
    d, failed = factorise_nodes(P, L[: 2 * last], negligible, load(P, 0))
    if failed >= 0:
        return failed
    if not_positive(d):
        store(L, 2 * last, d)
        return last
    store(L, 2 * last, square_root(d))
    return -1


@njit(**INNER)
def factorise_nodes(P, L, negligible, d):
    """Nodes 0 … L.shape[0] / 2 − 1, each coupled to the next, from the pivot d of the first.

    Returns the pivot of the node after them and −1, or a pivot that is not positive and its node.
    """
    for j in range(L.shape[0] // 2):
        if not_positive(d):
            store(L, 2 * j, d)
            return d, j
        a, next_d = square_root(d), load(P, 2 * j + 2)
        b = flushed(load(P, 2 * j + 1) / a, negligible * square_root(next_d))
        store(L, 2 * j, a)
        store(L, 2 * j + 1, b)
        d = next_d - b * b
    return d, -1
