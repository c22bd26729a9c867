"""Probabilities of levels by definition: sequential truncated samples, and integration over a box."""

from __future__ import annotations

import numpy as np
from scipy import integrate, special

from reference.linalg import Array


def truncated(alpha: float, beta: float, uniform: float) -> tuple[float, float]:
    """log(Φ(β) − Φ(α)) and the quantile of a standard normal between α and β, by logarithms of its lower tail."""
    if alpha + beta > 0:
        mass, quantile = truncated(-beta, -alpha, 1.0 - uniform)
        return mass, -quantile
    low, high = special.log_ndtr(alpha), special.log_ndtr(beta)
    mass = high + np.log(-np.expm1(low - high))
    return float(mass), float(special.ndtri_exp(np.logaddexp(low, np.log(uniform) + mass)))


def sequential(factor: Array, loc: Array, lower: Array, upper: Array, uniform: Array) -> tuple[Array, float]:
    """z and Σ_j log D_j of one dense L, last node first: each node given those after it [Geweke 1991]."""
    n, total = len(loc), 0.0
    z = np.zeros(n)
    for j in range(n - 1, -1, -1):
        deviation = 1.0 / factor[j, j]
        mean = loc[j] - deviation * sum(factor[i, j] * (z[i] - loc[i]) for i in range(j + 1, n))
        ends = (lower[j] - mean) / deviation, (upper[j] - mean) / deviation
        mass, quantile = truncated(*ends, uniform[j])
        total += mass
        z[j] = mean + deviation * quantile
    return z, total


def probability(precision: Array, loc: Array, lower: Array, upper: Array) -> float:
    """P(lower ≤ z < upper) of N(loc, P⁻¹) by nested quadrature over at most three nodes."""
    n = len(loc)
    scale = np.sqrt(np.linalg.det(precision) / (2.0 * np.pi) ** n)

    def density(*z: float) -> float:
        offset = np.array(z) - loc
        return float(scale * np.exp(-0.5 * offset @ precision @ offset))

    found, _ = integrate.nquad(density, list(zip(lower, upper, strict=True)), opts={"epsabs": 1e-12, "epsrel": 1e-10})
    return float(found)
