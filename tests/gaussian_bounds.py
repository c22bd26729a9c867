"""Exact values of a Gaussian's parts, in WIDE, and what rounding allows its methods.

Two numberings meet here: `factor_of` is in elimination order, all else in the caller's. Scalars are float64 sums of
parts that each have a theorem in `numerics`. For Gaussians that come out of a factorisation the tolerance is relative
in the sense of quadratic forms: if P̂ = P + E with |E| entrywise known, then

    δ = ‖ |L⁻¹| |E| |L⁻ᵀ| ‖_F,  P = L Lᵀ,   gives   (1 − δ) P ≼ P̂ ≼ (1 + δ) P,

which marginals inherit, because Schur complements are monotone [Horn & Johnson 2013, Thm 7.7.4 and §7.7.P39].
"""

from __future__ import annotations

from typing import Any

import numpy as np

import reference.gaussian
import reference.linalg
from sparseggm import GaussianGraphicalModel, Topology
from tests import numerics
from tests.numerics import WIDE, Array, apply, transpose
from tests.strategies import dense, mask

FLOAT64 = np.float64

# ---------------------------------------------------------------------- exact values


def factor_of(g: GaussianGraphicalModel) -> Array:
    """L in WIDE and elimination order."""
    return dense(g.factor_pattern, g.factor)


def in_callers_numbering(topology: Topology, matrix: Array) -> Array:
    place = topology.inverse_order
    return matrix[..., place[:, None], place]


def precision_of(g: GaussianGraphicalModel) -> Array:
    """P = L Lᵀ in WIDE, renumbered for the caller."""
    return in_callers_numbering(g.topology, reference.linalg.gram(factor_of(g)))


def covariance_of(g: GaussianGraphicalModel) -> Array:
    """Σ in WIDE, renumbered for the caller."""
    return in_callers_numbering(g.topology, reference.linalg.inverse(factor_of(g)))


def loc_of(g: GaussianGraphicalModel) -> Array:
    return g.loc.astype(WIDE)


def family(g: GaussianGraphicalModel) -> str:
    return type(g.topology).__name__


# ---------------------------------------------------------------------- scalars


def quadratic_bound(g: GaussianGraphicalModel, d: Array) -> Array:
    """Of ‖Lᵀ d‖² for d a rounded difference: e = γ_{c+1} |L|ᵀ|d| a component, 2|y|e + e², and the float64 sum."""
    L, d = factor_of(g).swapaxes(-1, -2), d[..., g.topology.order]
    e = numerics.product_bound(L, d, g.factor_pattern.longest_column + 1, g.dtype)
    y = abs(reference.linalg.matmul(L, d))
    return (2 * y * e + e**2).sum(axis=-1) + numerics.rounding(g.n + 1, FLOAT64) * ((y + e) ** 2).sum(axis=-1)


def inverse_error(g: GaussianGraphicalModel) -> tuple[Array, Array]:
    """Σ in the caller's numbering, and the bound of its computed entries, on whatever pattern."""
    L = factor_of(g)
    sigma, c = reference.linalg.inverse(L), g.factor_pattern.longest_column
    error = sum(numerics.inverse_forward_bound(L, sigma, c, dtype) for dtype in (g.dtype, WIDE))
    return in_callers_numbering(g.topology, sigma), in_callers_numbering(g.topology, error)


def trace_bound(weights: Array, weights_error: Array, sigma: Array, sigma_error: Array) -> Array:
    """Of Σ_ij w_ij Σ_ij, summed in float64."""
    size = (abs(weights) + weights_error) * (abs(sigma) + sigma_error)
    local = weights_error * (abs(sigma) + sigma_error) + abs(weights) * sigma_error
    return (local + numerics.rounding(sigma.shape[-1] ** 2 + 1, FLOAT64) * size).sum(axis=(-1, -2))


def logdet_bound(g: GaussianGraphicalModel) -> Array:
    return numerics.logdet_bound(factor_of(g), FLOAT64)


def half_sum_bound(g: GaussianGraphicalModel, bounds: Array, *parts: Array) -> Array:
    """Of half a float64 sum of a few parts, each with its own bound already in `bounds`, rounded to the dtype."""
    size = sum(abs(part) for part in parts)
    inner = bounds + numerics.rounding(len(parts) + 3, FLOAT64) * (size + bounds)
    return inner / 2 + numerics.stored((size + inner) / 2, g.dtype)


def log_prob_bound(g: GaussianGraphicalModel, x: Array) -> Array:
    """Of `g.log_prob(x)`."""
    d, P = x.astype(WIDE) - g.loc, precision_of(g)
    parts = (
        reference.linalg.logdet(factor_of(g)),
        reference.gaussian.quadratic(P, d),
        reference.gaussian.log_two_pi_to(P),
    )
    return half_sum_bound(g, logdet_bound(g) + quadratic_bound(g, d), *parts)


def kl_bound(q: GaussianGraphicalModel, p: GaussianGraphicalModel) -> Array:
    """Of tr(P_p Σ_q) with P_p as `g.precision` gives it, of the quadratic form and of the two log determinants."""
    P, P_error = precision_of(p), precision_error(p)
    sigma, sigma_error = inverse_error(q)
    d = loc_of(p) - loc_of(q)
    bounds = trace_bound(P, P_error, sigma, sigma_error) + quadratic_bound(p, d) + logdet_bound(q) + logdet_bound(p)
    parts = (
        np.trace(P @ sigma, axis1=-2, axis2=-1),
        reference.gaussian.quadratic(P, d),
        np.asarray(WIDE(q.n)),
        *(reference.linalg.logdet(factor_of(g)) for g in (q, p)),
    )
    return half_sum_bound(q, bounds, *parts)


# ---------------------------------------------------------------------- precisions


def precision_error(g: GaussianGraphicalModel) -> Array:
    """Of `g.precision` against L Lᵀ, every entry: a Gram product on the graph.

    Off the graph `precision` has no entry, and L Lᵀ there is what the rounding of the factorisation left.
    """
    L = factor_of(g)
    product = numerics.gram_bound(L, L / 2, g.factor_pattern.longest_row + 1, g.dtype)
    product += numerics.halving_bound(L, g.dtype)
    product = in_callers_numbering(g.topology, product)
    stored = mask(g.graph.precision_pattern)
    on_graph = in_callers_numbering(g.topology, stored | stored.T)
    return np.where(on_graph, product, factorisation_error(precision_of(g), g.dtype))


def factorisation_error(precision: Array, dtype: Any) -> Array:
    """|L̂ L̂ᵀ − P| before L̂ is known, in any order of elimination.

    |L̂||L̂|ᵀ ≤ √(P_ii P_jj) / (1 − γ_{n+1}) in [Higham 2002, Thm 10.3 and (10.7)], and 2 n √tiny of the same for entries
    set to zero.
    """
    n = precision.shape[-1]
    level, root = numerics.rounding(n + 1, dtype), np.sqrt(np.diagonal(precision, axis1=-2, axis2=-1))
    scale = root[..., :, None] * root[..., None, :]
    floor = numerics.underflow(dtype) * (n + root.max(axis=-1, initial=1)[..., None, None])
    return (level / (1 - level) + 2 * n * numerics.negligible(dtype)) * scale + floor


def spread(precision: Array, error: Array) -> Array:
    """δ: what |E| entrywise means for quadratic forms in P."""
    L = reference.linalg.cholesky(precision)
    whitener = abs(reference.linalg.solve(L[..., None, :, :], np.eye(L.shape[-1], dtype=L.dtype)))  # rows of L⁻ᵀ
    inside = transpose(whitener) @ error @ whitener
    return np.sqrt((inside**2).sum(axis=(-1, -2)))


def distance(g: GaussianGraphicalModel, covariance: Array) -> Array:
    """‖Σ^½ P̂ Σ^½ − I‖₂ = ‖L̂ᵀ Σ L̂ − I‖₂ for an exact Σ in the caller's numbering."""
    order, L = g.topology.order, factor_of(g)
    whitened = transpose(L) @ covariance[..., order[:, None], order] @ L
    off = (whitened - np.eye(g.n)).astype(FLOAT64)  # small: float64 is enough from here
    return abs(np.linalg.eigvalsh((off + transpose(off)) / 2)).max(axis=-1, initial=0)


# ---------------------------------------------------------------------- means


def energy(precision: Array, d: Array) -> Array:
    """√(dᵀ P d)."""
    return np.sqrt(np.maximum(reference.gaussian.quadratic(precision, d), 0))


def solution_bound(g: GaussianGraphicalModel, covariance: Array, loc: Array, error: Array, pull: Array) -> Array:
    """‖Δ‖_P of a mean loc + P⁻¹ b, with P̂ = L̂ L̂ᵀ, `error` ≥ |P̂ − P| and `pull` ≥ |Δb|, in the caller's numbering.

    The two solves give |P̂ x̂ − b| ≤ (2 γ_k + γ_k²) |L̂||L̂|ᵀ|x̂|, k = n [Higham 2002, Thm 10.4]; so the residual of P is
    known entrywise, |r| ≤ ρ, and ‖x̂ − x‖_P = ‖r‖_{P⁻¹} ≤ √(ρᵀ |Σ| ρ). The sum with loc rounds once more.
    """
    L, result = abs(factor_of(g)), loc_of(g)
    x = abs(result - loc) + numerics.rounding(1, g.dtype) * abs(result)
    level, floor = numerics.rounding(g.n, g.dtype), numerics.underflow(g.dtype) * g.n
    grown = in_callers_numbering(g.topology, L @ transpose(L))
    reach = in_callers_numbering(g.topology, L @ np.ones_like(L))[..., 0]  # underflow of L⁻¹ b enters times |L|
    rho = apply(error + (2 * level + level**2) * grown, x) + pull + floor * (1 + 2 * reach)
    rounded = numerics.rounding(1, g.dtype) * abs(result) + numerics.underflow(g.dtype)
    P = reference.gaussian.covariance(covariance)  # the inverse
    return energy(abs(covariance), rho) + energy(abs(P), rounded)
