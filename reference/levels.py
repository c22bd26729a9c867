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


def gradients(factor: Array, loc: Array, lower: Array, upper: Array, uniform: Array) -> tuple[Array, Array]:
    """Of Σ_j log D_j with respect to L and loc, by way of the mean m_j and the deviation s_j of each node.

    ∂ log D/∂m = (φ(α) − φ(β))/(s D),  ∂ log D/∂ log s = (α φ(α) − β φ(β))/D,  and for z = m + s e at Φ(e) = Φ(α) + u D
    ∂z/∂m = 1 − [(1 − u) φ(α) + u φ(β)]/φ(e),  ∂z/∂ log s = s (e − [(1 − u) α φ(α) + u β φ(β)]/φ(e)).
    """
    n, (z, _) = len(loc), sequential(factor, loc, lower, upper, uniform)
    factor_bar, loc_bar, z_bar = np.zeros((n, n)), np.zeros(n), np.zeros(n)
    for j in range(n):
        s, u = 1.0 / factor[j, j], uniform[j]
        m = loc[j] - s * sum(factor[i, j] * (z[i] - loc[i]) for i in range(j + 1, n))
        ends = np.array([(lower[j] - m) / s, (upper[j] - m) / s])
        mass, e = truncated(ends[0], ends[1], u)
        density = np.exp(-0.5 * ends**2) / np.sqrt(2.0 * np.pi)
        moments = np.where(np.isinf(ends), 0.0, ends) * density
        at_e, share = np.exp(-0.5 * e**2) / np.sqrt(2.0 * np.pi), np.array([1.0 - u, u])
        m_bar = (density[0] - density[1]) / (s * np.exp(mass)) + z_bar[j] * (1.0 - share @ density / at_e)
        log_s_bar = (moments[0] - moments[1]) / np.exp(mass) + z_bar[j] * s * (e - share @ moments / at_e)
        loc_bar[j] += m_bar
        factor_bar[j, j] = -s * (log_s_bar + m_bar * (m - loc[j]))
        for i in range(j + 1, n):
            factor_bar[i, j] = -m_bar * s * (z[i] - loc[i])
            z_bar[i] -= m_bar * s * factor[i, j]
            loc_bar[i] += m_bar * s * factor[i, j]
    return factor_bar, loc_bar


def probability(precision: Array, loc: Array, lower: Array, upper: Array) -> float:
    """P(lower ≤ z < upper) of N(loc, P⁻¹) by nested quadrature over at most three nodes."""
    n = len(loc)
    scale = np.sqrt(np.linalg.det(precision) / (2.0 * np.pi) ** n)

    def density(*z: float) -> float:
        offset = np.array(z) - loc
        return float(scale * np.exp(-0.5 * offset @ precision @ offset))

    found, _ = integrate.nquad(density, list(zip(lower, upper, strict=True)), opts={"epsabs": 1e-12, "epsrel": 1e-10})
    return float(found)
