"""Densities, entropies and divergences of Gaussians N(loc, P⁻¹), from a dense precision P (..., n, n), in nats."""

from __future__ import annotations

import numpy as np

from reference.linalg import Array, cholesky, diagonal, inverse, logdet, matmul


def covariance(precision: Array) -> Array:
    """Σ = P⁻¹."""
    return inverse(cholesky(precision))


def variance(precision: Array) -> Array:
    """diag Σ."""
    return diagonal(covariance(precision))


def trace_covariance(precision: Array) -> Array:
    """tr Σ."""
    return np.asarray(variance(precision).sum(axis=-1))


def quadratic(precision: Array, d: Array) -> Array:
    """dᵀ P d."""
    return np.asarray((d * matmul(precision, d)).sum(axis=-1))


def log_prob(loc: Array, precision: Array, x: Array) -> Array:
    """log N(x; loc, P⁻¹) = ½ log det P − ½ n log 2π − ½ (x − loc)ᵀ P (x − loc)."""
    log_normaliser = logdet(cholesky(precision)) - log_two_pi_to(precision)
    return np.asarray((log_normaliser - quadratic(precision, x - loc)) / 2)


def entropy(precision: Array) -> Array:
    """½ (n + n log 2π − log det P)."""
    return np.asarray((precision.shape[-1] + log_two_pi_to(precision) - logdet(cholesky(precision))) / 2)


def kl_divergence(loc_q: Array, precision_q: Array, loc_p: Array, precision_p: Array) -> Array:
    """KL(q‖p) = ½ [tr(P_p Σ_q) + (loc_p − loc_q)ᵀ P_p (loc_p − loc_q) − n + log det P_q − log det P_p]."""
    trace = np.trace(precision_p @ covariance(precision_q), axis1=-2, axis2=-1)
    logdets = logdet(cholesky(precision_q)) - logdet(cholesky(precision_p))
    return np.asarray((trace + quadratic(precision_p, loc_p - loc_q) - precision_q.shape[-1] + logdets) / 2)


def kl_terms(loc_q: Array, precision_q: Array, loc_p: Array, precision_p: Array) -> Array:
    """E_q KL(q(z_j | z_R) ‖ p(z_j | z_R)) for every node j, R the nodes after it; their sum is KL(q‖p).

    With weights β and variance σ² of a conditional: log σ_p/σ_q + ½ [σ_q² + m² + (β_q − β_p)ᵀ Σ_RR (β_q − β_p)] / σ_p²
    − ½, m = d_j − β_pᵀ d_R the difference of the conditional means at d = loc_q − loc_p.
    """
    sigma_q, sigma_p, d = covariance(precision_q), covariance(precision_p), loc_q - loc_p
    terms = []
    for j in range(d.shape[-1]):
        (weights_q, variance_q), (weights_p, variance_p) = conditional(sigma_q, j), conditional(sigma_p, j)
        change, later = weights_q - weights_p, slice(j + 1, None)
        mean = d[..., j] - (weights_p * d[..., later]).sum(axis=-1)
        square = variance_q + mean**2 + quadratic(sigma_q[..., later, later], change)
        terms.append((np.log(variance_p / variance_q) + square / variance_p - 1) / 2)
    return np.stack(terms, axis=-1)


def conditional(sigma: Array, j: int) -> tuple[Array, Array]:
    """Weights of the nodes after j in the mean of node j given them, and its variance."""
    later = slice(j + 1, None)
    weights = matmul(inverse(cholesky(sigma[..., later, later])), sigma[..., later, j])
    return weights, sigma[..., j, j] - (weights * sigma[..., later, j]).sum(axis=-1)


def log_two_pi_to(precision: Array) -> Array:
    """n log 2π, to the precision of the dtype: 2π = 8 arctan 1."""
    return np.asarray(precision.shape[-1] * np.log(8 * np.arctan(precision.dtype.type(1))))
