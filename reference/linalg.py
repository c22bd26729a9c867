"""The verbs of `sparseggm.linalg` and `sparseggm.adjoints` on dense matrices (..., n, n), by definition.

L is lower triangular with a positive diagonal, P = L Lᵀ, Σ = P⁻¹. Where the sparse verb returns values on a pattern,
an optional boolean mask `on` (n, n) selects the entries to keep; the others are zero.

Derivatives are with respect to stored values, the lower triangle: an off-diagonal of a symmetric matrix counts
twice. They are written with Φ (tril with its diagonal halved) [Murray 2016, arXiv:1602.07527], not by recursion.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]


# ---------------------------------------------------------------------- products and solves


def matmul(factor: Array, x: Array) -> Array:
    """L x."""
    return np.asarray((factor @ x[..., None])[..., 0])


def matmul_t(factor: Array, x: Array) -> Array:
    """Lᵀ x."""
    return matmul(transpose(factor), x)


def symmetric_matmul(precision: Array, x: Array) -> Array:
    """P x, both triangles of P given."""
    return matmul(precision, x)


def solve(factor: Array, rhs: Array) -> Array:
    """L⁻¹ b: forward substitution, x_i = (b_i − Σ_{k<i} L_ik x_k) / L_ii."""
    shape = np.broadcast_shapes(factor.shape[:-1], rhs.shape)
    x = np.array(np.broadcast_to(rhs, shape))
    for i in range(shape[-1]):
        x[..., i] -= (factor[..., i, :i] * x[..., :i]).sum(axis=-1)
        x[..., i] /= factor[..., i, i]
    return x


def solve_t(factor: Array, rhs: Array) -> Array:
    """L⁻ᵀ b: backward substitution, x_i = (b_i − Σ_{k>i} L_ki x_k) / L_ii."""
    shape = np.broadcast_shapes(factor.shape[:-1], rhs.shape)
    x = np.array(np.broadcast_to(rhs, shape))
    for i in reversed(range(shape[-1])):
        x[..., i] -= (factor[..., i + 1 :, i] * x[..., i + 1 :]).sum(axis=-1)
        x[..., i] /= factor[..., i, i]
    return x


def outer(x: Array, y: Array, on: Mask | None = None) -> Array:
    """x yᵀ."""
    return masked(x[..., :, None] * y[..., None, :], on)


# ---------------------------------------------------------------------- factorisation


def cholesky(precision: Array) -> Array:
    """L with P = L Lᵀ, column by column from P_ij = Σ_{k≤j} L_ik L_jk.

    Raises:
        numpy.linalg.LinAlgError: a pivot is not positive.
    """
    factor = np.zeros_like(precision)
    for j in range(precision.shape[-1]):
        rest = precision[..., j:, j] - matmul(factor[..., j:, :j], factor[..., j, :j])
        if not (rest[..., 0] > 0).all():
            raise np.linalg.LinAlgError(f"reference.linalg.cholesky: pivot {j} is not positive.")
        factor[..., j:, j] = rest / np.sqrt(rest[..., :1])
    return factor


def gram(factor: Array) -> Array:
    """P = L Lᵀ."""
    return np.asarray(factor @ transpose(factor))


def logdet(factor: Array) -> Array:
    """log det P = 2 Σ log L_jj."""
    return np.asarray(2 * np.log(diagonal(factor)).sum(axis=-1))


def precision_logdet(precision: Array) -> Array:
    """log det P of a dense symmetric P."""
    return np.asarray(np.linalg.slogdet(precision)[1])


def precision_solve(precision: Array, rhs: Array) -> tuple[Array, Array]:
    """P⁻¹ b and log det P of a dense symmetric P."""
    return np.linalg.solve(precision, rhs[..., None])[..., 0], precision_logdet(precision)


# ---------------------------------------------------------------------- inverse


def inverse(factor: Array) -> Array:
    """Σ = L⁻ᵀ L⁻¹, dense and symmetric."""
    rows = solve(factor[..., None, :, :], np.eye(factor.shape[-1], dtype=factor.dtype))  # row i is L⁻¹ e_i
    return np.asarray(rows @ transpose(rows))


def selected_inverse(factor: Array, on: Mask | None = None) -> Array:
    """The lower triangle of Σ."""
    return masked(np.tril(inverse(factor)), on)


def marginal_variances(factor: Array) -> Array:
    """diag Σ."""
    return diagonal(inverse(factor))


def trace_inverse(factor: Array) -> Array:
    """tr Σ."""
    return np.asarray(marginal_variances(factor).sum(axis=-1))


# ---------------------------------------------------------------------- calculus


def gram_jvp(a: Array, b: Array, on: Mask | None = None) -> Array:
    """tril(A Bᵀ + B Aᵀ)."""
    return masked(np.tril(a @ transpose(b) + b @ transpose(a)), on)


def gram_vjp(a: Array, v: Array, on: Mask | None = None) -> Array:
    """tril((V + Vᵀ) A)."""
    return masked(np.tril((v + transpose(v)) @ a), on)


def cholesky_jvp(factor: Array, v: Array, on: Mask | None = None) -> Array:
    """X = L Φ(L⁻¹ V L⁻ᵀ): dL for dP = V, of which v is the lower triangle."""
    symmetric = phi(v) + transpose(phi(v))
    half = solve(factor[..., None, :, :], symmetric)  # row i is L⁻¹ applied to column i of V
    whitened = solve(factor[..., None, :, :], transpose(half))
    return masked(np.tril(factor @ phi(whitened)), on)


def cholesky_vjp(factor: Array, x: Array, on: Mask | None = None) -> Array:
    """V, the gradient in the stored lower triangle of P for L̄ = X: V = Φ(M + Mᵀ), M = L⁻ᵀ Φ(Lᵀ X) L⁻¹.

    The gradient of a stored off-diagonal is M_ij + M_ji, that of a diagonal entry is M_jj alone.
    """
    inner = phi(transpose(factor) @ x)
    half = solve_t(factor[..., None, :, :], transpose(inner))  # row i is L⁻ᵀ applied to column i
    both = solve_t(factor[..., None, :, :], transpose(half))
    return masked(phi(both + transpose(both)), on)


def selected_inverse_vjp(factor: Array, sigma_bar: Array, on: Mask | None = None) -> Array:
    """L̄ for Σ̄ on the lower triangle.

    With G = (Σ̄ + Σ̄ᵀ)/2, dΣ = −Σ dP Σ gives P̄ = −Σ G Σ, so L̄ = tril(2 P̄ L) = −tril(Σ (Σ̄ + Σ̄ᵀ) L⁻ᵀ).
    """
    both = sigma_bar + transpose(sigma_bar)
    right = solve(factor[..., None, :, :], both)  # row i is L⁻¹ applied to column i: (Σ̄ + Σ̄ᵀ) L⁻ᵀ
    return masked(np.tril(-inverse(factor) @ right), on)


def marginal_variances_vjp(factor: Array, variances_bar: Array, on: Mask | None = None) -> Array:
    """L̄ for the adjoint of diag Σ."""
    sigma_bar = variances_bar[..., :, None] * np.eye(factor.shape[-1], dtype=factor.dtype)
    return selected_inverse_vjp(factor, sigma_bar, on)


# ---------------------------------------------------------------------- regression coordinates


def moved(factor: Array, moves: Array) -> Array:
    """L with the log σ of M plus δ and the β of M plus Δ: σ_j = 1/L_jj, β_ij = −L_ij/L_jj; δ is diagonal in `moves`."""
    below = np.tril(moves, -1)
    sigma, delta = 1 / diagonal(factor), diagonal(moves)
    weights = -np.tril(factor, -1) * sigma[..., None, :] + below
    pivots = 1 / (sigma * np.exp(delta))
    return np.asarray((np.eye(factor.shape[-1], dtype=factor.dtype) - weights) * pivots[..., None, :])


# ---------------------------------------------------------------------- Gershgorin


def discs(precision: Array) -> tuple[Array, Array]:
    """Centres P_ii and radii Σ_{j≠i} |P_ij|."""
    off_diagonal = ~np.eye(precision.shape[-1], dtype=bool)
    return diagonal(precision), np.where(off_diagonal, np.abs(precision), 0).sum(axis=-1)


def slack(precision: Array) -> Array:
    """P_ii − Σ_{j≠i} |P_ij|."""
    centres, radii = discs(precision)
    return centres - radii


def bounds(precision: Array) -> tuple[Array, Array]:
    """The ends of the union of all discs."""
    centres, radii = discs(precision)
    return (centres - radii).min(axis=-1), (centres + radii).max(axis=-1)


# ---------------------------------------------------------------------- small words


def transpose(matrix: Array) -> Array:
    """The matrix transposed, batch axes kept."""
    return np.swapaxes(matrix, -1, -2)


def diagonal(matrix: Array) -> Array:
    """(..., n) diagonal."""
    return np.diagonal(matrix, axis1=-2, axis2=-1)


def phi(matrix: Array) -> Array:
    """Φ: the lower triangle with its diagonal halved."""
    return np.asarray(np.tril(matrix) - np.tril(np.triu(matrix)) / 2)


def masked(matrix: Array, on: Mask | None) -> Array:
    """The matrix with zeros off the mask."""
    return matrix if on is None else np.where(on, matrix, matrix.dtype.type(0))
