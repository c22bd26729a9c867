"""The largest eigenvalue of dense symmetric matrices, and its eigenvector, on blocks of lanes.

Householder's method makes a matrix tridiagonal, T [Golub & Van Loan 2013, §8.3.1]. From above, Laguerre's method
descends to the largest root of det(x I − T), monotonically and with order three [Li & Zeng 1994], by the pivots of
x I − T and their derivatives. Just above that root x I − T is positive definite: its factorisation needs no exchange of
rows, and two inverse iterations with it have the eigenvector. All of it is the same arithmetic in every lane.
"""

import numpy as np

from sparseggm.kernels import INNER, KERNEL, njit
from sparseggm.kernels.lanes.blocks import gather, new_block, scatter
from sparseggm.kernels.lanes.vector import full_like, lanes_of, load, minimum, square_root, store, with_sign

QUALITY = 4
"""Numbers that follow the vector: λ; the least pivot just above λ, which must be positive; the number of eigenvalues
near λ, in fractions that fall with their distance; and the square of the residual of T."""

STEPS = 14
"""Of Laguerre's method: five to seven are enough."""

NEAR = 1e-5
"""An eigenvalue as far below λ as this, in parts of the largest row sum, counts as one half."""

LEAST = 1e-100
"""In the place of a pivot of zero; its reciprocal cubed is still a number."""

UNIT = np.finfo(np.float64).eps / 2


@njit(**KERNEL)
def leading(matrices, results, first, last):
    """results[r] = (v, λ, quality) of the matrices (batch, n²) of the rows first … last, whose row sums are ≤ 1."""
    n, lanes = results.shape[1] - QUALITY, lanes_of(matrices)
    A, result, scratch = new_block(n * n, matrices), new_block(n + QUALITY, matrices), new_block(5 * n, matrices)
    for start in range(first, last, lanes):
        stop = min(start + lanes, last)
        gather(matrices, start, stop, A)
        _leading(n, A, scratch, result)
        scatter(result, results, start, stop)
    return 0


@njit(**INNER)
def _leading(n, A, scratch, result):
    e, beta, pivot, p = scratch[:n], scratch[n : 2 * n], scratch[2 * n : 3 * n], scratch[3 * n : 4 * n]
    d = scratch[4 * n :]
    _tridiagonal(n, A, d, e, beta, p)
    x = _largest_root(n, d, e)
    store(result, n + 2, _number_near(n, d, e, x))
    store(result, n + 1, _inverse_iterations(n, d, e, x, pivot, p, result))
    rho = _rayleigh_quotient(n, d, e, result)
    store(result, n, rho)
    store(result, n + 3, _residual(n, d, e, rho, result))
    for k in range(n - 3, -1, -1):
        along = full_like(A, 0.0)
        for i in range(k + 1, n):
            along = along + load(A, i * n + k) * load(result, i)
        along = along * load(beta, k)
        for i in range(k + 1, n):
            store(result, i, load(result, i) - along * load(A, i * n + k))


@njit(**INNER)
def _tridiagonal(n, A, d, e, beta, p):
    """T with the diagonal d and e below it, such that A = Q T Qᵀ, Q the product of I − β_k h_k h_kᵀ.

    Of A the lower triangle is read; h_k stays in its column k, below the diagonal.
    """
    zero, least = full_like(A, 0.0), full_like(A, LEAST)
    for k in range(n - 2):
        square = zero
        for i in range(k + 1, n):
            square = square + load(A, i * n + k) * load(A, i * n + k)
        head = load(A, (k + 1) * n + k)
        alpha = with_sign(square_root(square), head)
        store(e, k, 0.0 - alpha)
        store(A, (k + 1) * n + k, head + alpha)
        scale = 1.0 / _maximum(alpha * (head + alpha), least)
        store(beta, k, scale)
        overlap = zero
        for i in range(k + 1, n):
            image = zero
            for j in range(k + 1, i + 1):
                image = image + load(A, i * n + j) * load(A, j * n + k)
            for j in range(i + 1, n):
                image = image + load(A, j * n + i) * load(A, j * n + k)
            store(p, i, scale * image)
            overlap = overlap + scale * image * load(A, i * n + k)
        half = 0.5 * scale * overlap
        for i in range(k + 1, n):
            store(p, i, load(p, i) - half * load(A, i * n + k))
        for i in range(k + 1, n):
            own, image = load(A, i * n + k), load(p, i)
            for j in range(k + 1, i + 1):
                change = own * load(p, j) + image * load(A, j * n + k)
                store(A, i * n + j, load(A, i * n + j) - change)
    store(e, n - 2, load(A, (n - 1) * n + n - 2))
    for i in range(n):
        store(d, i, load(A, i * n + i))


@njit(**INNER)
def _largest_root(n, d, e):
    """λ of T, whose eigenvalues are at most 1.

    With s_i the pivots of x I − T, s_i' and s_i'' their derivatives by x, the determinant p = Π s_i has
        G = p' / p = Σ s_i' / s_i,    H = −G' = Σ (s_i' / s_i)² − s_i'' / s_i,
    and the step is n / (G ± √((n − 1) (n H − G²))), of which the lesser is taken.
    """
    zero, one, least = full_like(d, 0.0), full_like(d, 1.0), full_like(d, LEAST)
    x = full_like(d, 1.0 + 1e-9)
    for _ in range(STEPS):
        r = 1.0 / _away_from_zero(x - load(d, 0), least)
        first, second = one, zero
        G, H = r, r * r
        for i in range(1, n):
            link = load(e, i - 1) * load(e, i - 1) * r
            bend = link * r
            second = bend * (second - 2.0 * first * first * r)
            first = 1.0 + bend * first
            r = 1.0 / _away_from_zero(x - load(d, i) - link, least)
            slope = first * r
            G, H = G + slope, H + slope * slope - second * r
        root = square_root(_maximum((n - 1.0) * (float(n) * H - G * G), zero))
        x = x - float(n) / with_sign(with_sign(G, one) + root, G)
    return x


@njit(**INNER)
def _number_near(n, d, e, x):
    """Σ_i δ / (δ + x − λ_i), δ = NEAR: the eigenvalues near the largest, x."""
    first, least = full_like(d, 1.0), full_like(d, LEAST)
    r = 1.0 / _away_from_zero(x + NEAR - load(d, 0), least)
    G = r
    for i in range(1, n):
        link = load(e, i - 1) * load(e, i - 1) * r
        first = 1.0 + link * r * first
        r = 1.0 / _away_from_zero(x + NEAR - load(d, i) - link, least)
        G = G + first * r
    return NEAR * G


@njit(**INNER)
def _inverse_iterations(n, d, e, x, inverse, w, v):
    """The unit eigenvector of T for its largest eigenvalue x, in v; returns the least pivot just above x."""
    pivot, link, smallest = full_like(d, 1.0), full_like(d, 0.0), full_like(d, LEAST)
    for i in range(n):
        s = x + 8.0 * n * UNIT - load(d, i) - link
        pivot = minimum(s, pivot)
        r = 1.0 / _away_from_zero(s, smallest)
        store(inverse, i, r)
        if i < n - 1:
            link = load(e, i) * load(e, i) * r
        store(v, i, full_like(d, 0.5 + i * i * 7 % 11 / 11.0))  # no eigenvector is orthogonal to it but by design
    for _ in range(2):
        store(w, 0, load(v, 0))
        for i in range(1, n):
            store(w, i, load(v, i) + load(e, i - 1) * load(inverse, i - 1) * load(w, i - 1))
        store(v, n - 1, load(w, n - 1) * load(inverse, n - 1))
        square = load(v, n - 1) * load(v, n - 1)
        for i in range(n - 2, -1, -1):
            store(v, i, load(inverse, i) * (load(w, i) + load(e, i) * load(v, i + 1)))
            square = square + load(v, i) * load(v, i)
        scale = 1.0 / square_root(square)
        for i in range(n):
            store(v, i, load(v, i) * scale)
    return pivot


@njit(**INNER)
def _image(n, d, e, v, i):
    """(T v)_i."""
    image = load(d, i) * load(v, i)
    if i > 0:
        image = image + load(e, i - 1) * load(v, i - 1)
    if i < n - 1:
        image = image + load(e, i) * load(v, i + 1)
    return image


@njit(**INNER)
def _rayleigh_quotient(n, d, e, v):
    rho = full_like(d, 0.0)
    for i in range(n):
        rho = rho + load(v, i) * _image(n, d, e, v, i)
    return rho


@njit(**INNER)
def _residual(n, d, e, rho, v):
    """‖T v − ρ v‖²."""
    square = full_like(d, 0.0)
    for i in range(n):
        difference = _image(n, d, e, v, i) - rho * load(v, i)
        square = square + difference * difference
    return square


@njit(**INNER)
def _maximum(value, other):
    return 0.0 - minimum(0.0 - value, 0.0 - other)


@njit(**INNER)
def _away_from_zero(value, least):
    """The value, but `least` of its sign where it is nearer to zero."""
    return with_sign(_maximum(with_sign(value, least), least), value)
