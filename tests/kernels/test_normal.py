"""The normal distribution in lanes against 50 digits, far out in the tails and in the narrowest intervals."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest

from sparseggm.kernels import KERNEL, njit
from sparseggm.kernels.lanes import normal
from sparseggm.kernels.lanes.vector import load, store
from tests.numerics import Array

U = 2.0**-53


@njit(**KERNEL)
def truncate(alpha, beta, width, u, mass, e, rate_a, rate_b):
    for i in range(alpha.shape[0]):
        found = normal.truncated(load(alpha, i), load(beta, i), load(width, i), load(u, i))
        store(mass, i, found[0])
        store(e, i, found[1])
        store(rate_a, i, found[2])
        store(rate_b, i, found[3])


def truncated(alpha: Array, beta: Array, u: Array) -> list[Array]:
    with np.errstate(over="ignore"):
        given = [np.ascontiguousarray(x, np.float64).reshape(-1, 8) for x in (alpha, beta, beta - alpha, u)]
    results = [np.empty_like(given[0]) for _ in range(4)]
    truncate(*given, *results)
    return [result.ravel() for result in results]


def intervals(kind: str, count: int = 400) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(0)
    u = rng.random(count)
    u[:4] = [2.0**-54, 1 - U, 1e-10, 1 - 1e-10]
    if kind == "half lines":
        return np.full(count, -np.inf), 10 * rng.standard_normal(count), u
    size = 10 ** rng.uniform(-2, 2.5, count) if kind == "far out" else 3 * rng.standard_normal(count)
    alpha = rng.choice([-1.0, 1.0], count) * size
    return alpha, alpha + 10 ** rng.uniform(-8, 1.5, count), u


@pytest.mark.parametrize("kind", ["near zero", "far out", "half lines"])
def test_masses_quantiles_and_rates_are_those_of_fifty_digits(kind: str) -> None:
    """An end α is given within u |α|, which moves log D by as much times the rate φ(α)/D, and log φ(α) by u α².

    Of intervals that are not narrow D / Φ(β), at least 1 %, is a difference of numbers up to 1.
    """
    alpha, beta, u = intervals(kind)
    with mpmath.workdps(60):
        for a, b, v, mass, e, rate_a, rate_b in zip(alpha, beta, u, *truncated(alpha, beta, u), strict=True):
            mirror = a + b > 0
            low, high = (-b, -a) if mirror else (a, b)
            below = mpmath.ncdf(low) if low > -np.inf else mpmath.mpf(0)
            exact = mpmath.ncdf(high) - below
            size = 1 + abs(mpmath.log(exact))
            ends = (abs(a) * rate_a if np.isfinite(a) else 0) + (abs(b) * rate_b if np.isfinite(b) else 0)
            share = exact / mpmath.ncdf(high)
            assert abs(mass - mpmath.log(exact)) <= 16 * U * (size + ends) + 8 * U / max(share, mpmath.mpf(0.01))
            quantile = -e if mirror else e
            place = (mpmath.ncdf(quantile) - below) / exact
            target = 1 - mpmath.mpf(v) if mirror else mpmath.mpf(v)
            assert abs(place - target) * exact / mpmath.npdf(quantile) <= 16 * U * (1 + abs(quantile))
            for end, rate in ((a, rate_a), (b, rate_b)):
                expected = mpmath.npdf(end) / exact if np.isfinite(end) else mpmath.mpf(0)
                relative = 64 * U * (1 + ends + size + (end * end if np.isfinite(end) else 0)) + 8 * U / max(
                    share, 0.01
                )
                assert abs(rate - expected) <= relative * expected + mpmath.mpf(10) ** -307


def test_no_interval_gives_nan_however_far_out_or_narrow() -> None:
    ends = np.array([-np.inf, -1e308, -1e200, -1e15, -1e8, -40.0, 0.0, 40.0, 1e8, 1e15, 1e200, 1e308, np.inf])
    alpha, beta = (grid.ravel() for grid in np.meshgrid(ends, ends))
    keep = alpha < beta
    alpha, beta = np.resize(alpha[keep], 80), np.resize(beta[keep], 80)
    mass, e, rate_a, rate_b = truncated(alpha, beta, np.full(80, 0.3))
    assert all(np.isfinite(x).all() for x in (mass, e, rate_a, rate_b))
    assert (mass <= 0).all()
    assert (np.clip(alpha, -normal.LARGEST, normal.LARGEST) <= e).all()
    assert (e <= np.clip(beta, -normal.LARGEST, normal.LARGEST)).all()
