"""The yardstick: bounds must hold for plain loops in the dtype, must fail for wrong results, and so must the ledger."""

from __future__ import annotations

import numpy as np
import pytest

import reference.linalg
from tests import numerics
from tests.ledger import Ledger, check, table, worst_ratio
from tests.numerics import WIDE, Array

DTYPES = [np.float32, np.float64]
each_dtype = pytest.mark.parametrize("dtype", DTYPES)
N = 8


def factor(seed: int, dtype: type) -> Array:
    rng = np.random.default_rng(seed)
    L = np.tril(rng.uniform(-1, 1, (N, N)), -1)
    L[range(N), range(N)] = rng.uniform(0.5, 2.0, N)
    return L.astype(dtype)


# ---------------------------------------------------------------------- constants


def test_constants_are_those_of_ieee_754() -> None:
    assert numerics.unit_roundoff(np.float32) == 2.0**-24
    assert numerics.unit_roundoff(np.float64) == 2.0**-53
    assert numerics.smallest(np.float32) == 2.0**-149
    assert numerics.smallest(np.float64) == 2.0**-1074
    assert numerics.negligible(np.float32) == 2.0**-63
    assert numerics.negligible(np.float64) == 2.0**-511


def test_gamma_is_k_u_to_first_order_and_refuses_k_u_of_one() -> None:
    u = numerics.unit_roundoff(np.float32)
    assert numerics.gamma(1, np.float32) == u / (1 - u)
    assert 10 * u < numerics.gamma(10, np.float32) < 10 * u * (1 + 11 * u)
    with pytest.raises(AssertionError):
        numerics.gamma(2**24, np.float32)


# ---------------------------------------------------------------------- bounds hold, and are not idle


def slack_and_bite(error: Array, bound: Array, spoiled: Array) -> None:
    """The error of honest arithmetic passes; that of a result with one entry changed by 100 roundings does not."""
    assert (abs(error) <= bound).all()
    assert not (abs(spoiled) <= bound).all()


def spoil(x: Array) -> Array:
    """The same with its largest entry off by 100 N units."""
    x = x.copy()
    index = np.unravel_index(abs(x).argmax(), x.shape)
    x[index] *= 1 + 100 * N * np.finfo(x.dtype).eps
    return x


@each_dtype
@pytest.mark.parametrize("seed", range(10))
def test_product_and_solve_bounds(seed: int, dtype: type) -> None:
    L, b = factor(seed, dtype), np.random.default_rng(seed).standard_normal(N).astype(dtype)
    y, exact = L @ b, L.astype(WIDE) @ b.astype(WIDE)
    bound = numerics.product_bound(L.astype(WIDE), b.astype(WIDE), N, dtype)
    slack_and_bite(y - exact, bound, spoil(y) - exact)
    x = reference.linalg.solve(L, b)
    assert x.dtype == dtype
    bound = numerics.solve_bound(L.astype(WIDE), x.astype(WIDE), N, dtype)
    slack_and_bite(L.astype(WIDE) @ x - b, bound, L.astype(WIDE) @ spoil(x) - b)


@each_dtype
@pytest.mark.parametrize("seed", range(10))
def test_factorisation_bounds(seed: int, dtype: type) -> None:
    L = factor(seed, dtype)
    P = L @ L.T
    exact = L.astype(WIDE) @ L.T.astype(WIDE)
    bound = numerics.gram_bound(L.astype(WIDE), L.astype(WIDE) / 2, N, dtype)
    slack_and_bite(P - exact, bound, spoil(P) - exact)
    computed = reference.linalg.cholesky(P)
    bound = numerics.cholesky_bound(P.astype(WIDE), computed.astype(WIDE), N, dtype)
    honest, wrong = (factor.astype(WIDE) @ factor.T.astype(WIDE) - P for factor in (computed, spoil(computed)))
    slack_and_bite(honest, bound, wrong)


def takahashi(L: Array) -> Array:
    """Σ by the recursion, in the dtype of L, entry by entry."""
    n = len(L)
    sigma = np.zeros_like(L)
    for j in reversed(range(n)):
        for i in [*reversed(range(j + 1, n)), j]:
            total = sum((sigma[i, k] * L[k, j] for k in range(j + 1, n)), start=L.dtype.type(0))
            sigma[i, j] = ((1 / L[j, j] if i == j else 0) - total) / L[j, j]
            sigma[j, i] = sigma[i, j]
    return sigma


@each_dtype
@pytest.mark.parametrize("seed", range(10))
def test_inverse_bounds(seed: int, dtype: type) -> None:
    L = factor(seed, dtype)
    W, sigma = L.astype(WIDE), takahashi(L)
    assert sigma.dtype == dtype
    exact = reference.linalg.inverse(W)
    bound = numerics.inverse_bound(W, sigma.astype(WIDE), N, dtype)
    honest, wrong = (numerics.inverse_residual(W, s.astype(WIDE)) for s in (sigma, spoil(sigma)))
    slack_and_bite(honest, bound, wrong)
    forward = numerics.inverse_forward_bound(W, exact, N, dtype)
    assert (abs(sigma - exact) <= forward).all()
    np.testing.assert_array_equal(forward, forward.T)
    assert (forward < 1e-2 * exact.max()).all()  # it still says something


@each_dtype
def test_the_forward_bound_of_a_chain_is_of_the_size_of_its_theorem(dtype: type) -> None:
    W = factor(0, dtype).astype(WIDE) * np.tri(N, k=0) * np.triu(np.ones((N, N)), -1)
    exact = reference.linalg.inverse(W)
    forward = np.diagonal(numerics.inverse_forward_bound(W, exact, 2, dtype))
    assert (forward <= 3 * numerics.chain_variance_bound(W, np.diagonal(exact), dtype) * N).all()


def test_the_chain_theorem_needs_correlations_not_coupling_ratios() -> None:
    """With max |L_{j+1,j} / L_jj| for ρ it would be false: errors of the same sign add up along a fading chain.

    Each pivot is 16 times the one before it from the end, so that only the second term of
    Σ_jj = 1/L_jj² + (L_{j+1,j}/L_jj)² Σ_{j+1,j+1} counts; couplings are picked so that its roundings push upwards.
    """
    rng, dtype, n = np.random.default_rng(0), np.float64, 60
    computed, exact, ratios = np.float64(1), WIDE(1), [0.0]
    for step in range(1, n):
        pivot = np.float64(16.0) ** step
        couplings = pivot * rng.uniform(0.3, 0.31, 64)
        upward = [(rounded_step(pivot, b, computed) / exact_step(pivot, b, exact), b) for b in couplings]
        best = max(upward)[1]
        computed, exact = rounded_step(pivot, best, computed), exact_step(pivot, best, exact)
        ratios.append(best / pivot)
    error = abs(computed - exact) / exact / numerics.unit_roundoff(dtype)
    assert error > 10 / (1 - max(ratios) ** 2)  # the claim with coupling ratios: violated
    assert error < 10 * n  # the claim with correlations, here near 1


def rounded_step(pivot: np.float64, coupling: np.float64, variance: np.float64) -> np.float64:
    covariance = -coupling * variance / pivot
    return (1 / pivot - coupling * covariance) / pivot


def exact_step(pivot: np.float64, coupling: np.float64, variance: WIDE) -> WIDE:
    return (1 + WIDE(coupling) ** 2 * variance) / WIDE(pivot) ** 2


# ---------------------------------------------------------------------- ledger


def test_the_worst_ratio_of_nothing_is_zero_and_of_nan_infinite() -> None:
    assert worst_ratio(np.zeros((0, 3)), np.zeros((0, 3))) == 0
    assert worst_ratio(np.array([0.0, -1.0]), np.array([0.0, 2.0])) == 0.5
    assert worst_ratio(np.array([1e-300]), np.array([0.0])) == np.inf
    assert worst_ratio(np.array([np.nan]), np.array([1.0])) == np.inf
    assert worst_ratio(np.array([0.0]), np.array([np.nan])) == np.inf
    assert worst_ratio(np.array([np.inf]), np.array([1.0])) == np.inf


def test_check_fails_beyond_the_bound_and_counts_what_it_saw() -> None:
    ledger = Ledger()
    check("verb", "family", np.float32, np.zeros(0), np.zeros(0), ledger)
    check("verb", "family", np.float32, np.array([1.0, -2.0]), np.array([2.0, 2.0]), ledger)
    with pytest.raises(AssertionError, match="verb on family, float32: error is 2 times its bound"):
        check("verb", "family", np.float32, np.array(2.0), np.array(1.0), ledger)
    assert list(ledger) == [("verb", "family", "float32")]
    assert (ledger["verb", "family", "float32"].worst, ledger["verb", "family", "float32"].cases) == (2.0, 2)


def test_the_table_counts_cases_and_shows_the_worst() -> None:
    ledger = Ledger()
    ledger.add(("solve", "Chain", "float32"), 0.25)
    ledger.add(("solve", "Chain", "float32"), 0.5)
    ledger.add(("solve", "Grid", "float64"), 0.125, cases=3)
    lines = table(ledger)
    assert lines[0].split() == ["worst", "error", "/", "bound", "Chain", "Grid", "cases"]
    assert lines[1].split() == ["solve", "float32", "0.50", "–", "2"]
    assert lines[2].split() == ["solve", "float64", "–", "0.12", "3"]
    assert lines[3] == "total: 5 cases, worst error / bound 0.500 ≤ 1"
