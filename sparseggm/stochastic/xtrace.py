"""The algebra of XTrace after all solves: leave-one-out estimates, and the jackknife of their mean.

Ω (n, m) are the probes, Σ Ω = Q R, B = L⁻¹Q and H = L⁻¹Ω. Leaving probes out needs no new factorisation: with s_i the
unit vector orthogonal to all columns of R but the i-th,

    Q_i Q_iᵀ = Q (I − s_i s_iᵀ) Qᵀ,            Q_ij Q_ijᵀ = Q (I − U Uᵀ) Qᵀ,   U an orthonormal basis of span{s_i, s_j},

project on the span of Σ Ω without column i, and without columns i and j. See docs/stochastic.md.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from sparseggm.graph.pattern import FloatArray


class Sketch(NamedTuple):
    """All that XTrace needs of Σ and the probes, in arrays whose size does not depend on n; i, j number the probes."""

    n: int
    trace: FloatArray
    """(...) tr(Qᵀ Σ Q)."""
    cosines: FloatArray
    """(..., m, m) s_iᵀ s_j."""
    gram: FloatArray
    """(..., m, m) s_iᵀ Qᵀ Σ Q s_j."""
    weights: FloatArray
    """(..., m, m) s_jᵀ Qᵀ ω_i, at [i, j]."""
    cross: FloatArray
    """(..., m, m) s_jᵀ Qᵀ Σ Π ω_i, at [i, j], Π = I − Q Qᵀ."""
    lengths: FloatArray
    """(..., m) ‖Π ω_i‖²."""
    squares: FloatArray
    """(..., m) ω_iᵀ Π Σ Π ω_i."""


def sketch(omega: FloatArray, halves: FloatArray, Q: FloatArray, R: FloatArray, half_basis: FloatArray) -> Sketch:
    """The sketch from Ω, L⁻¹Ω, Q and L⁻¹Q (..., n, m), and R (..., m, m).

    Cost: 14 n m² flops. Raises numpy.linalg.LinAlgError if R is singular.
    """
    S = leave_one_out_directions(R)
    coordinates = transpose(Q) @ omega
    rest = omega - Q @ coordinates
    half_rest = halves - half_basis @ coordinates
    half_S = half_basis @ S
    return Sketch(
        n=omega.shape[-2],
        trace=np.square(half_basis).sum(axis=(-2, -1)),
        cosines=transpose(S) @ S,
        gram=transpose(half_S) @ half_S,
        weights=transpose(coordinates) @ S,
        cross=transpose(half_rest) @ half_S,
        lengths=np.square(rest).sum(axis=-2),
        squares=np.square(half_rest).sum(axis=-2),
    )


def leave_one_out_directions(R: FloatArray) -> FloatArray:
    """S (..., m, m): column i is the unit vector orthogonal to all columns of R but the i-th.

    RᵀS is diagonal, so S is R⁻ᵀ with its columns normalised.
    """
    S: FloatArray = np.linalg.inv(transpose(R))
    S /= abs(S).max(axis=-2, keepdims=True)  # otherwise the squares of long columns could overflow
    return np.asarray(S / np.sqrt(np.square(S).sum(axis=-2, keepdims=True)))


def leave_one_out(parts: Sketch) -> FloatArray:
    """t_i = tr(Q_iᵀ Σ Q_i) + (n − m + 1) ω_iᵀ Π_i Σ Π_i ω_i / ‖Π_i ω_i‖², (..., m).

    Π_i ω_i = Π ω_i + Q s_i s_iᵀ Qᵀ ω_i.
    """
    m = parts.lengths.shape[-1]
    own, cross, gram = (diagonal(matrix) for matrix in (parts.weights, parts.cross, parts.gram))
    squares = parts.squares + own * (2 * cross + own * gram)
    return np.asarray(parts.trace[..., None] - gram + (parts.n - m + 1) * squares / (parts.lengths + own**2))


def leave_two_out(parts: Sketch) -> FloatArray:
    """t_ij, (..., m, m): the estimate from probe i and the basis without i and j; the diagonal has no meaning.

    With C the Gram matrix of s_i and s_j, Π_ij ω_i = Π ω_i + Q (s_i, s_j) a, where a = C⁻¹ (s_i, s_j)ᵀ Qᵀ ω_i.
    """
    m = parts.lengths.shape[-1]
    c, G = parts.cosines, parts.gram
    own, own_cross, own_gram = (diagonal(matrix)[..., None] for matrix in (parts.weights, parts.cross, G))
    other_gram = transpose(own_gram)
    different = ~np.eye(m, dtype=bool)
    determinant = np.where(different, np.maximum(1 - c**2, np.finfo(c.dtype).eps), 1.0)
    a_i = (own - c * parts.weights) / determinant
    a_j = (parts.weights - c * own) / determinant
    lengths = parts.lengths[..., None] + a_i * own + a_j * parts.weights
    squares = parts.squares[..., None] + 2 * (a_i * own_cross + a_j * parts.cross)
    squares += a_i**2 * own_gram + 2 * a_i * a_j * G + a_j**2 * other_gram
    heads = parts.trace[..., None, None] - (own_gram + other_gram - 2 * c * G) / determinant
    return np.asarray(heads + (parts.n - m + 2) * squares / np.where(different, lengths, 1.0))


def jackknife_standard_error(parts: Sketch) -> FloatArray:
    """√ Σ_j (X_j − mean)², (...), X_j the XTrace estimate from all probes but the j-th: the mean of t_ij over i ≠ j.

    Its square is, in expectation, at least the variance of X_j [Efron & Stein 1981; Epperly & Tropp 2024].
    """
    m = parts.lengths.shape[-1]
    without = np.where(np.eye(m, dtype=bool), 0.0, leave_two_out(parts)).sum(axis=-2) / (m - 1)
    return np.asarray(without.std(axis=-1) * math.sqrt(m))


def transpose(a: FloatArray) -> FloatArray:
    """Aᵀ on batches."""
    return np.swapaxes(a, -1, -2)


def diagonal(a: FloatArray) -> FloatArray:
    """(..., m) of (..., m, m)."""
    return np.asarray(np.diagonal(a, axis1=-2, axis2=-1))
