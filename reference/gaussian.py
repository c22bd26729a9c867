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


def log_two_pi_to(precision: Array) -> Array:
    """n log 2π, to the precision of the dtype: 2π = 8 arctan 1."""
    return np.asarray(precision.shape[-1] * np.log(8 * np.arctan(precision.dtype.type(1))))
