"""One long chain in lanes against the same chain node after node, whatever its couplings do.

The parts go together from guesses; where a guess is off by more than 2u the part is done again. So the residuals of the
recurrences are bounded as in `solve` and `solve_t`, γ of the roundings of a node plus 2u where parts meet, and each
variance differs from that of the plain recurrence by what its condition allows.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparseggm import Chain, NonFiniteError, linalg, step
from sparseggm.kernels import chain
from tests import numerics
from tests.ledger import check
from tests.numerics import WIDE, Array

each_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])
NOTHING = {name: np.empty(0, name) for name in ("float32", "float64")}
COUPLINGS = ("weak", "mixed", "slow", "growing", "islands", "none")


def factor_of(n: int, couplings: str, seed: int, dtype: str) -> Array:
    """A chain's L whose ratios |b / a| are far below 1, around it, just below it, above it, or in stretches of each."""
    rng = np.random.default_rng(seed)
    a = np.exp(0.3 * rng.standard_normal(n))
    ratio = {
        "weak": 0.3 * rng.standard_normal(n),
        "mixed": rng.standard_normal(n),
        "slow": np.full(n, -0.9999),
        "growing": np.full(n, 1.001),
        "islands": np.where(np.arange(n) // 37 % 2, 1.05, 0.1) * rng.choice([-1.0, 1.0], n),
        "none": np.zeros(n),
    }[couplings]
    L = np.empty(2 * n - 1)
    L[::2] = a
    L[1::2] = (ratio * a)[:-1]
    return L.astype(dtype)


def residual_bound(L: Array, y: Array, rhs: Array, transposed: bool) -> tuple[Array, Array]:
    """|L y − rhs| or |Lᵀ y − rhs|, in long double, and γ₃ + 2u of its absolute terms."""
    wide, a, b = y.astype(WIDE), L[::2].astype(WIDE), L[1::2].astype(WIDE)
    near = b * (wide[1:] if transposed else wide[:-1])
    residual, size = a * wide - rhs, abs(a * wide)
    inner = slice(0, -1) if transposed else slice(1, None)
    residual[inner] += near
    size[inner] += abs(near)
    u = numerics.unit_roundoff(L.dtype)
    return residual, (numerics.gamma(3, L.dtype) + 2 * u) * size + numerics.underflow(L.dtype)


any_chain = given(
    n=st.integers(40, 400),
    couplings=st.sampled_from(COUPLINGS),
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from(["float32", "float64"]),
)


@pytest.mark.property
@any_chain
def test_solves_satisfy_their_equations_to_rounding(n, couplings, seed, dtype) -> None:
    L, rng = factor_of(n, couplings, seed, dtype), np.random.default_rng(seed)
    rhs, y = rng.standard_normal(n).astype(dtype), np.empty(n, dtype)
    none = NOTHING[dtype]
    chain.long_backward(L, rhs, y, none)
    check("long chain: solve_t", "Chain", dtype, *residual_bound(L, y, rhs, transposed=True))
    chain.long_forward(L, none, none, rhs, L.dtype.type(0), y, none)
    check("long chain: solve", "Chain", dtype, *residual_bound(L, y, rhs, transposed=False))


@pytest.mark.property
@any_chain
def test_variances_and_gradients_are_those_of_the_plain_recurrences(n, couplings, seed, dtype) -> None:
    """All terms of v and g are positive: 2u at each of the 16 seams, on top of equal roundings."""
    L, rng = factor_of(n, couplings, seed, dtype), np.random.default_rng(seed)
    eps, z_bar = (rng.standard_normal(n).astype(dtype) for _ in range(2))
    y, v, e, L_bar = (np.empty(size, dtype) for size in (n, n, n, 2 * n - 1))
    chain.long_backward(L, eps, y, v)
    plain = np.empty(n, dtype)
    chain.variances(L, plain)
    u = numerics.unit_roundoff(dtype)
    check("long chain: variances", "Chain", dtype, v.astype(WIDE) - plain, 16 * 2 * u * plain.astype(WIDE))

    k_bar = L.dtype.type(0.7)
    chain.long_forward(L, y, v, z_bar, k_bar, e, L_bar)
    again = np.empty_like(L_bar)
    chain.forward_from_start(L, y, v, z_bar, k_bar, np.empty_like(e), again)
    # the same y and v; e differs by what its recurrence makes of 2u at a seam, which |·| of all terms bounds
    size, bound = np.empty(n), np.empty(2 * n - 1)
    down = -abs(L.astype(np.float64))
    down[::2] *= -1
    wide = [abs(x.astype(np.float64)) for x in (y, v, z_bar)]
    chain.forward_from_start(down, -wide[0], wide[1], wide[2], 0.7, size, bound)
    terms = np.zeros(2 * n - 1)
    terms[::2] = 0.7 / L[::2] + wide[0] * size + abs(bound[::2]) * 2
    terms[1::2] = wide[0][1:] * size[:-1] + abs(bound[1::2]) * 2
    check(
        "long chain: gradient",
        "Chain",
        dtype,
        L_bar.astype(WIDE) - again,
        16 * 4 * u * terms + numerics.underflow(dtype),
    )


@each_dtype
@pytest.mark.parametrize("couplings", COUPLINGS)
def test_the_verbs_take_the_long_way_and_agree_with_a_batch_of_the_same(couplings, dtype) -> None:
    """A batch of equal chains goes in lanes of whole chains: other code, the same numbers up to seams."""
    n = chain.LONG + 11
    couplings = "weak" if couplings == "growing" else couplings  # 1.001¹⁶³⁹⁵ is beyond float32
    pattern, L = Chain(n).factor_pattern, factor_of(n, couplings, 3, dtype)
    rhs = np.random.default_rng(0).standard_normal(n).astype(dtype)
    if couplings in ("mixed", "islands"):
        L[1::2] *= 0.5
    for verb in (linalg.solve, linalg.solve_t):
        alone = verb(pattern, L, rhs)
        residual = residual_bound(L, alone, rhs, transposed=verb is linalg.solve_t)
        check(f"long chain: {verb.__name__}", "Chain", dtype, *residual)
    together = linalg.marginal_variances(pattern, np.tile(L, (4, 1)))[0]
    np.testing.assert_allclose(linalg.marginal_variances(pattern, L), together, rtol=64 * numerics.unit_roundoff(dtype))


def test_the_solution_may_take_the_place_of_the_right_hand_side() -> None:
    n = chain.LONG
    pattern, L = Chain(n).factor_pattern, factor_of(n, "slow", 0, "float64")  # parts are done again
    rhs = np.random.default_rng(0).standard_normal(n)
    expected = linalg.solve_t(pattern, L, rhs)
    np.testing.assert_array_equal(linalg.solve_t(pattern, L, rhs, out=rhs), expected)


@pytest.mark.parametrize("place", [0, 7, 2 * chain.LONG - 2])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_number_that_is_not_finite_is_found_wherever_it_stands(place, bad) -> None:
    n = chain.LONG
    pattern, L, x = Chain(n).factor_pattern, factor_of(n, "weak", 0, "float64"), np.ones(n)
    L[place] = bad
    for call in (
        lambda: linalg.solve(pattern, L, x),
        lambda: linalg.solve_t(pattern, L, x),
        lambda: linalg.marginal_variances(pattern, L),
        lambda: step.sample_and_kl(pattern, x, L, x),
        lambda: step.sample_and_kl_vjp(pattern, x, L, x, x, np.ones(())),
    ):
        with pytest.raises(NonFiniteError, match=rf"factor must be finite, got {bad}"):
            call()


@each_dtype
def test_a_long_step_agrees_with_its_verbs(dtype) -> None:
    n = chain.LONG + 5
    pattern, L = Chain(n).factor_pattern, factor_of(n, "weak", 1, dtype)
    rng = np.random.default_rng(2)
    loc, eps, z_bar = (rng.standard_normal(n).astype(dtype) for _ in range(3))
    z, kl = step.sample_and_kl(pattern, loc, L, eps)
    np.testing.assert_array_equal(z, loc + linalg.solve_t(pattern, L, eps))
    terms = linalg.marginal_variances(pattern, L).astype(WIDE) + loc.astype(WIDE) ** 2
    logs = 2 * np.log(L[::2].astype(WIDE))
    bound = (numerics.gamma(4 * n, np.float64) + 64 * numerics.unit_roundoff(dtype)) * (terms + abs(logs) + 1).sum()
    check("long chain: KL", "Chain", dtype, 2 * kl - (terms + logs - 1).sum(), bound)

    bars = step.sample_and_kl_vjp(pattern, loc, L, eps, z_bar, np.ones((), dtype))
    in_batch = step.sample_and_kl_vjp(pattern, *(np.tile(x, (4, 1)) for x in (loc, L, eps, z_bar)), np.ones(4, dtype))
    for alone, together in zip(bars, in_batch, strict=True):
        scale = abs(together[0]).max()
        np.testing.assert_allclose(alone, together[0], rtol=0, atol=64 * numerics.unit_roundoff(dtype) * scale)
