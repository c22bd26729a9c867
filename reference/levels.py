"""Probabilities of levels by definition: sequential truncated samples, and integration over a box."""

from __future__ import annotations

import numpy as np
from scipy import integrate, special

from reference.linalg import Array


def log_prob(factor: Array, loc: Array, lower: Array, upper: Array, uniform: Array) -> float:
    """Σ_j log D_j of one dense L, last node first: each node given those after it, as [Geweke 1991]."""
    n, total = len(loc), 0.0
    z = np.zeros(n)
    for j in range(n - 1, -1, -1):
        deviation = 1.0 / factor[j, j]
        mean = loc[j] - deviation * sum(factor[i, j] * (z[i] - loc[i]) for i in range(j + 1, n))
        low, high = special.ndtr((lower[j] - mean) / deviation), special.ndtr((upper[j] - mean) / deviation)
        total += np.log(high - low)
        z[j] = mean + deviation * special.ndtri(low + uniform[j] * (high - low))
    return float(total)


def probability(precision: Array, loc: Array, lower: Array, upper: Array) -> float:
    """P(lower ≤ z < upper) of N(loc, P⁻¹) by nested quadrature over at most three nodes."""
    n = len(loc)
    scale = np.sqrt(np.linalg.det(precision) / (2.0 * np.pi) ** n)

    def density(*z: float) -> float:
        offset = np.array(z) - loc
        return float(scale * np.exp(-0.5 * offset @ precision @ offset))

    found, _ = integrate.nquad(density, list(zip(lower, upper, strict=True)), opts={"epsabs": 1e-12, "epsrel": 1e-10})
    return float(found)
