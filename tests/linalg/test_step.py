"""The training step in one pass against the verbs it is made of, and what it refuses.

On every pattern but a chain's the step runs the kernels of the verbs, so that only the last additions may differ. A
chain has recurrences of its own. Each of their results is a sum of products of the inputs, and passes at most
12 (n + 1) roundings; so the error is at most γ of that, times the same sums on absolute values [Higham 2002, §3.1].
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparseggm import (
    Chain,
    ExtendedGrid,
    NonFiniteError,
    NonPositiveError,
    ShapeError,
    adjoints,
    linalg,
)
from sparseggm.linalg import step
from tests import numerics
from tests.ledger import check
from tests.numerics import WIDE, Array
from tests.strategies import dtypes, factor_values, named_patterns, seeds

each_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])
batches = st.sampled_from([(), (1,), (3,), (2, 9), (33,)])


class Case:
    """Arguments of a step, and its results by the verbs."""

    def __init__(self, pattern, batch, seed, dtype) -> None:
        rng = np.random.default_rng(seed)
        self.pattern, self.dtype = pattern, np.dtype(dtype)
        self.factor = factor_values(rng, pattern, batch, "plain", dtype)
        self.loc, self.noise, self.z_bar = (rng.standard_normal((*batch, pattern.n)).astype(dtype) for _ in range(3))
        self.kl_bar = rng.standard_normal(batch).astype(dtype)

    @property
    def arguments(self):
        return self.pattern, self.loc, self.factor, self.noise

    def absolute(self) -> Case:
        """The case whose every term is the absolute value of a term of this one: b → −|b|, all else → |·|."""
        case = Case(self.pattern, self.loc.shape[:-1], 0, np.float64)
        case.factor = -abs(self.factor.astype(np.float64))
        case.factor[..., self.pattern.diagonal] *= -1
        for name in ("loc", "noise", "z_bar", "kl_bar"):
            setattr(case, name, abs(getattr(self, name).astype(np.float64)))
        return case

    def draw(self) -> Array:
        return linalg.solve_t(self.pattern, self.factor, self.noise)

    def noise_bar(self) -> Array:
        return linalg.solve(self.pattern, self.factor, self.z_bar)

    def factor_bar(self) -> tuple[Array, Array, Array]:
        """The three terms of L̄: −y ε̄ᵀ, ½ k̄ ∂tr Σ/∂L, and k̄ / L_jj."""
        half = np.broadcast_to(0.5 * self.kl_bar[..., None], self.loc.shape).astype(self.dtype)
        reciprocal = np.zeros(self.factor.shape, self.dtype)
        reciprocal[..., self.pattern.diagonal] = self.kl_bar[..., None] / self.factor[..., self.pattern.diagonal]
        trace = adjoints.marginal_variances_vjp(self.pattern, self.factor, half)
        return -linalg.outer(self.pattern, self.draw(), self.noise_bar()), trace, reciprocal


def kl_parts(case: Case) -> tuple[Array, Array]:
    """2 KL from the variances that the verbs give, in long double; and the sum of its absolute terms."""
    variances = linalg.marginal_variances(case.pattern, case.factor).astype(WIDE)
    logs = 2 * np.log(case.factor[..., case.pattern.diagonal].astype(WIDE))
    terms = variances + case.loc.astype(WIDE) ** 2 + logs
    return terms.sum(-1) - case.pattern.n, (variances + case.loc.astype(WIDE) ** 2 + abs(logs) + 1).sum(-1)


@pytest.mark.property
@given(named=named_patterns(), batch=batches, seed=seeds, dtype=dtypes)
def test_on_a_pattern_the_step_is_its_verbs(named, batch, seed, dtype) -> None:
    family, pattern = named
    if pattern.is_chain:
        family, pattern = "ExtendedGrid", ExtendedGrid(2, 2).factor_pattern
    case = Case(pattern, batch, seed, dtype)
    z, kl = step.sample_and_kl(*case.arguments)
    np.testing.assert_array_equal(z, case.loc + case.draw())
    twice, size = kl_parts(case)
    bound = numerics.gamma(3 * pattern.n + 8, np.float64) * size + numerics.unit_roundoff(dtype) * abs(twice)
    check("step: KL", family, dtype, 2 * kl.astype(WIDE) - twice, bound)

    loc_bar, factor_bar, noise_bar = step.sample_and_kl_vjp(*case.arguments, case.z_bar, case.kl_bar)
    np.testing.assert_array_equal(noise_bar, case.noise_bar())
    np.testing.assert_array_equal(loc_bar, case.z_bar + case.kl_bar[..., None] * case.loc)
    terms = [term.astype(WIDE) for term in case.factor_bar()]
    bound = numerics.gamma(4, dtype) * sum(abs(term) for term in terms) + numerics.underflow(dtype)
    check("step: gradient", family, dtype, factor_bar - sum(terms), bound)


@pytest.mark.property
@given(n=st.integers(1, 12), batch=batches, seed=seeds, dtype=dtypes)
def test_on_a_chain_the_step_errs_by_its_roundings(n, batch, seed, dtype) -> None:
    case = Case(Chain(n).factor_pattern, batch, seed, dtype)
    exact, size = Case(case.pattern, batch, 0, np.float64), case.absolute()
    for name in ("factor", "loc", "noise", "z_bar", "kl_bar"):
        setattr(exact, name, getattr(case, name).astype(np.float64))
    k = numerics.gamma(12 * (n + 1), dtype) + numerics.gamma(12 * (n + 1), np.float64)
    z, kl = step.sample_and_kl(*case.arguments)
    check("step: draw", "Chain", dtype, z - (exact.loc + exact.draw()).astype(WIDE), k * (size.loc + size.draw()))
    check("step: KL", "Chain", dtype, 2 * kl.astype(WIDE) - kl_parts(exact)[0], k * kl_parts(exact)[1])

    loc_bar, factor_bar, noise_bar = step.sample_and_kl_vjp(*case.arguments, case.z_bar, case.kl_bar)
    check("step: gradient", "Chain", dtype, noise_bar - exact.noise_bar().astype(WIDE), k * size.noise_bar())
    expected = exact.z_bar + exact.kl_bar[..., None] * exact.loc
    check("step: gradient", "Chain", dtype, loc_bar - expected, k * (size.z_bar + size.kl_bar[..., None] * size.loc))
    magnitude = sum(abs(term) for term in size.factor_bar())
    check("step: gradient", "Chain", dtype, factor_bar - sum(exact.factor_bar()).astype(WIDE), k * magnitude)


@each_dtype
@pytest.mark.parametrize("topology", [Chain(5), ExtendedGrid(2, 3)], ids=str)
def test_a_row_does_not_depend_on_the_batch_around_it(topology, dtype) -> None:
    case = Case(topology.factor_pattern, (37,), 0, dtype)
    together = step.sample_and_kl_vjp(*case.arguments, case.z_bar, case.kl_bar)
    alone = step.sample_and_kl_vjp(
        case.pattern, case.loc[3:4], case.factor[3:4], case.noise[3:4], case.z_bar[3:4], case.kl_bar[3:4]
    )
    for found, expected in zip(alone, together, strict=True):
        np.testing.assert_array_equal(found[0], expected[3])


def test_a_cotangent_of_the_noise_that_is_not_wanted_is_not_made() -> None:
    case = Case(Chain(3).factor_pattern, (2,), 0, "float64")
    wanted = step.sample_and_kl_vjp(*case.arguments, case.z_bar, case.kl_bar)
    unwanted = step.sample_and_kl_vjp(*case.arguments, case.z_bar, case.kl_bar, noise_too=False)
    assert unwanted[2] is None
    np.testing.assert_array_equal(unwanted[1], wanted[1])


def test_float32_pivots_at_the_ends_of_the_range_have_exact_logarithms() -> None:
    """Eight pivots of 2^127 at a time: their product is still below 2^1024."""
    pattern = Chain(9).factor_pattern
    factor = np.zeros((4, pattern.nnz), np.float32)
    factor[:, pattern.diagonal] = np.float32(2.0) ** np.float32(127)
    zeros = np.zeros((4, 9), np.float32)
    kl = step.sample_and_kl(pattern, zeros, factor, zeros)[1]
    expected = 0.5 * (9 * 254 * np.log(2.0) - 9)
    np.testing.assert_allclose(kl, expected, rtol=numerics.unit_roundoff("float32"))


@pytest.mark.parametrize("topology", [Chain(4), ExtendedGrid(2, 2)], ids=str)
@pytest.mark.parametrize("name", ["loc", "factor", "noise", "z_bar", "kl_bar"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_number_that_is_not_finite_is_named(topology, name, bad) -> None:
    case = Case(topology.factor_pattern, (20,), 0, "float64")
    getattr(case, name)[(17, *[0] * (getattr(case, name).ndim - 1))] = bad
    with pytest.raises(NonFiniteError, match=rf"{name} must be finite, got {bad} .*batch element \(17,\)"):
        step.sample_and_kl_vjp(*case.arguments, case.z_bar, case.kl_bar)


@pytest.mark.parametrize("topology", [Chain(4), ExtendedGrid(2, 2)], ids=str)
def test_a_pivot_must_be_positive(topology) -> None:
    case = Case(topology.factor_pattern, (20,), 0, "float64")
    case.factor[7, case.pattern.diagonal[2]] = -1.0
    for call in (
        lambda: step.sample_and_kl(*case.arguments),
        lambda: step.sample_and_kl_vjp(*case.arguments, case.z_bar, case.kl_bar),
    ):
        with pytest.raises(NonPositiveError, match=r"got -1 at column 2 of 4, batch element \(7,\)"):
            call()


def test_batch_shapes_must_be_equal() -> None:
    case = Case(Chain(4).factor_pattern, (3,), 0, "float64")
    with pytest.raises(ShapeError, match=r"sample_and_kl: batch shapes must be equal, got .*\(2,\) of noise"):
        step.sample_and_kl(case.pattern, case.loc, case.factor, case.noise[:2])
