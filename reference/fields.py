"""Observations through a matrix, constraints and intrinsic priors, from dense matrices and the textbook.

Everything is written with covariances, while the library works with sparse precisions. N(m, C) has m (..., n) and C
(..., n, n); A is (k, n).
"""

from __future__ import annotations

import numpy as np

from reference.gaussian import covariance, log_prob
from reference.linalg import Array, matmul, transpose


def log_evidence(loc: Array, sigma: Array, matrix: Array, values: Array, noise: Array) -> Array:
    """log N(y; A loc, A Σ Aᵀ + R), R the covariance of the noise."""
    return log_prob(matmul(matrix, loc), covariance(predictive(sigma, matrix) + noise), values)


def posterior(loc: Array, precision: Array, matrix: Array, values: Array, weights: Array) -> tuple[Array, Array]:
    """Mean and covariance of z given y: the exponents −½ (y − A z)ᵀ W (y − A z) and −½ (z − loc)ᵀ P (z − loc) add."""
    sigma = covariance(precision + transpose(matrix) @ weights @ matrix)
    return loc + matmul(sigma, matmul(transpose(matrix) @ weights, values - matmul(matrix, loc))), sigma


def predictive(sigma: Array, matrix: Array) -> Array:
    """A Σ Aᵀ."""
    return np.asarray(matrix @ sigma @ transpose(matrix))


def constrain(loc: Array, sigma: Array, matrix: Array, values: Array) -> tuple[Array, Array]:
    """Mean and covariance of z given A z = e: loc + K (e − A loc) and Σ − K A Σ, K = Σ Aᵀ (A Σ Aᵀ)⁻¹."""
    gain = sigma @ transpose(matrix) @ covariance(predictive(sigma, matrix))
    return loc + matmul(gain, values - matmul(matrix, loc)), sigma - gain @ matrix @ sigma
