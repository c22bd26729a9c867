"""Samples, divergences and log-densities in one pass against the verbs they are made of.

The kernels form Lᵀ d, L⁻ᵀ ε and L⁻¹ z̄ as `linalg` does, and on every pattern but a chain's the variances too, so that
only what is made of these may differ. The variances of a chain, and their adjoints, are sums of products of one sign
that pass at most 12 (n + 1) roundings [Higham 2002, §3.1].
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference.gaussian
from sparseggm import Chain, ExtendedGrid, NonFiniteError, NonPositiveError, adjoints, linalg
from sparseggm.linalg import density
from tests import numerics
from tests.ledger import check
from tests.numerics import WIDE, Array
from tests.strategies import dense, dtypes, factor_values, named_patterns, seeds

batches = st.sampled_from([(), (1,), (3,), (2, 9), (33,)])


class Case:
    """Arguments on a pattern, with a random order for odd seeds; and what verbs make of them."""

    def __init__(self, pattern, batch, seed, dtype) -> None:
        rng = np.random.default_rng(seed)
        self.pattern, self.dtype, n = pattern, np.dtype(dtype), pattern.n
        self.factor = factor_values(rng, pattern, batch, "plain", dtype)
        self.loc, self.mean, self.noise = (rng.standard_normal((*batch, n)).astype(dtype) for _ in range(3))
        self.scale = np.exp(0.5 * rng.standard_normal((*batch, n))).astype(dtype)
        self.bar = rng.standard_normal(batch).astype(dtype)
        self.order = rng.permutation(n) if seed % 2 else None

    @property
    def gaussian(self):
        return self.pattern, self.order, self.loc, self.factor

    def take(self, x: Array) -> Array:
        return x if self.order is None else x[..., self.order]

    def back(self, x: Array) -> Array:
        return x if self.order is None else x[..., np.argsort(self.order)]

    @property
    def logs(self) -> Array:
        """2 log L_jj."""
        return 2 * np.log(self.factor[..., self.pattern.diagonal].astype(WIDE))

    @property
    def pull(self) -> Array:
        """k̄ / s², by the roundings of the kernel, in the order of elimination."""
        inverse = self.dtype.type(1) / self.take(self.scale)
        return (self.bar[..., None] * inverse) * inverse


named_case = {"named": named_patterns(), "batch": batches, "seed": seeds, "dtype": dtypes}


def bound_of_sum(case: Case, size: Array, total: Array, relative: Array | float = 0.0) -> Array:
    """Of half a sum in float64 that is rounded once, whose terms add up to `size` and have errors of `relative`."""
    wide = numerics.gamma(4 * case.pattern.n + 12, np.float64) * size
    return wide + relative + numerics.unit_roundoff(case.dtype) * abs(total)


@pytest.mark.property
@given(**named_case)
def test_a_sample_and_its_adjoint_are_their_verbs(named, batch, seed, dtype) -> None:
    case = Case(named[1], batch, seed, dtype)
    z = density.sample(*case.gaussian, case.noise)
    expected = case.loc + case.back(linalg.solve_t(case.pattern, case.factor, case.take(case.noise)))
    np.testing.assert_array_equal(z, expected)
    bar = density.sample_vjp(*case.gaussian, z, case.mean)
    noise_bar = linalg.solve(case.pattern, case.factor, case.take(case.mean))
    np.testing.assert_array_equal(bar, linalg.outer(case.pattern, case.take(case.loc - z), noise_bar))


@pytest.mark.property
@given(**named_case)
def test_kl_to_normal_is_the_sum_of_its_terms(named, batch, seed, dtype) -> None:
    family, pattern = named
    case = Case(pattern, batch, seed, dtype)
    kl = density.kl_to_normal(*case.gaussian, case.mean, case.scale)
    v, roundings = linalg.marginal_variances(pattern, case.factor).astype(WIDE), 3
    if pattern.is_chain:
        v, roundings = (
            linalg.marginal_variances(pattern, case.factor.astype(np.float64)).astype(WIDE),
            24 * (pattern.n + 1),
        )
    d, s = (case.take(x) for x in (case.loc.astype(WIDE) - case.mean, case.scale.astype(WIDE)))
    moments, logs = (v + d**2) / s**2, case.logs + 2 * np.log(s)
    twice = (moments + logs - 1).sum(-1)
    size = (moments + abs(case.logs) + abs(2 * np.log(s)) + 1).sum(-1)
    bound = bound_of_sum(case, size, twice, numerics.gamma(roundings, dtype) * moments.sum(-1))
    check("density: KL to normal", family, dtype, 2 * kl.astype(WIDE) - twice, bound)


@pytest.mark.property
@given(**named_case)
def test_the_adjoint_of_kl_to_normal_is_the_sum_of_its_terms(named, batch, seed, dtype) -> None:
    family, pattern = named
    case = Case(pattern, batch, seed, dtype)
    loc_bar, factor_bar, scale_bar = density.kl_to_normal_vjp(*case.gaussian, case.mean, case.scale, case.bar)
    roundings, half = 4, (case.dtype.type(0.5) * case.pull).astype(dtype)
    factor, k, pivots = case.factor, case.bar[..., None].astype(WIDE), case.factor[..., pattern.diagonal].astype(WIDE)
    if pattern.is_chain:
        roundings, factor, half = 24 * (pattern.n + 1), factor.astype(np.float64), half.astype(np.float64)
    trace = adjoints.marginal_variances_vjp(pattern, factor, half).astype(WIDE)
    size = abs(adjoints.marginal_variances_vjp(pattern, factor, abs(half))) if pattern.is_chain else abs(trace)
    expected = trace.copy()
    expected[..., pattern.diagonal] += k / pivots
    size[..., pattern.diagonal] += abs(k / pivots).astype(size.dtype)
    bound = numerics.gamma(roundings, dtype) * size + numerics.underflow(dtype)
    check("density: KL to normal, factor", family, dtype, factor_bar - expected, bound)

    d, s = case.loc.astype(WIDE) - case.mean, case.scale.astype(WIDE)
    bound = numerics.gamma(6, dtype) * abs(k * d / s**2) + numerics.underflow(dtype)
    check("density: KL to normal, loc", family, dtype, loc_bar - k * d / s**2, bound)
    v = case.back(linalg.marginal_variances(pattern, factor).astype(WIDE))
    expected, size = k / s - k * (v + d**2) / s**3, abs(k) / s + abs(k) * (v + d**2) / s**3
    bound = numerics.gamma(roundings + 10, dtype) * size + numerics.underflow(dtype)
    check("density: KL to normal, scale", family, dtype, scale_bar - expected, bound)


@pytest.mark.property
@given(**named_case)
def test_a_log_density_and_kl_from_normal_are_the_sums_of_their_terms(named, batch, seed, dtype) -> None:
    family, pattern = named
    case = Case(pattern, batch, seed, dtype)
    white = linalg.matmul_t(pattern, case.factor, case.take(case.loc - case.mean)).astype(WIDE)
    square, n = (white**2).sum(-1), pattern.n
    log_prob = density.log_prob(*case.gaussian, case.mean)
    twice = case.logs.sum(-1) - square - n * np.log(2 * np.pi)
    bound = bound_of_sum(case, abs(case.logs).sum(-1) + square + 2 * n, twice)
    check("density: log-density", family, dtype, 2 * log_prob.astype(WIDE) - twice, bound)

    kl = density.kl_from_normal(*case.gaussian, case.mean, case.scale)
    s = case.take(case.scale.astype(WIDE))
    trace = ((case.factor.astype(WIDE) * s[..., pattern.rows]) ** 2).sum(-1)
    twice = square + trace - 2 * np.log(s).sum(-1) - n - case.logs.sum(-1)
    size = square + trace + (abs(2 * np.log(s)) + abs(case.logs) + 1).sum(-1)
    bound = bound_of_sum(case, size, twice, numerics.gamma(pattern.nnz + 4, np.float64) * trace)
    check("density: KL from normal", family, dtype, 2 * kl.astype(WIDE) - twice, bound)


@pytest.mark.property
@given(**named_case)
def test_the_adjoints_of_both_are_the_sums_of_their_terms(named, batch, seed, dtype) -> None:
    """loc̄ = k L r, L̄ = k (d rᵀ + s² L − diag(1/L_jj)), s̄ = k (s Σ L² − 1/s), d = loc − m; without s k = −l̄."""
    family, pattern = named
    case = Case(pattern, batch, seed, dtype)
    d, k = case.take((case.loc - case.mean).astype(WIDE)), case.bar[..., None].astype(WIDE)
    L, s = case.factor.astype(WIDE), case.take(case.scale.astype(WIDE))
    r = linalg.matmul_t(pattern, case.factor, case.take(case.loc - case.mean)).astype(WIDE)
    own, kr, pivots = dense(pattern, L), k * r, L[..., pattern.diagonal]
    pulled, size = numerics.apply(own, kr), numerics.apply(abs(own), abs(kr))
    outer = d[..., pattern.rows] * kr[..., pattern.cols]
    scaled = k * L * s[..., pattern.rows] ** 2
    rounding = numerics.gamma(pattern.n + 6, dtype)
    for name, sign, others in (("log-density", -1, 0.0), ("KL from normal", 1, scaled)):
        given_scale = (case.scale,) if sign > 0 else ()
        verb = density.kl_from_normal_vjp if sign > 0 else density.log_prob_vjp
        loc_bar, factor_bar, *of_scale = verb(*case.gaussian, case.mean, *given_scale, case.bar)
        check(f"density: {name}, loc", family, dtype, case.take(loc_bar) - sign * pulled, rounding * size + tiny(dtype))
        expected, bound = sign * outer + others, abs(outer) + abs(others)
        expected[..., pattern.diagonal] -= sign * k / pivots
        bound[..., pattern.diagonal] += abs(k) / pivots
        check(f"density: {name}, factor", family, dtype, factor_bar - expected, rounding * bound + tiny(dtype))
        if of_scale:
            squares = (own**2).sum(-1)
            expected, bound = k * (s * squares - 1 / s), abs(k) * (s * squares + 1 / s)
            error = case.take(of_scale[0]) - expected
            check(f"density: {name}, scale", family, dtype, error, rounding * bound + tiny(dtype))


def tiny(dtype) -> float:
    """Of a product that is subnormal, a few times."""
    return 16 * numerics.underflow(dtype)


@pytest.mark.property
@given(**named_case)
def test_an_entropy_is_its_logarithms(named, batch, seed, dtype) -> None:
    family, pattern = named
    case = Case(pattern, batch, seed, dtype)
    twice = pattern.n * (1 + np.log(WIDE(2) * WIDE(np.pi))) - case.logs.sum(-1)
    bound = bound_of_sum(case, abs(case.logs).sum(-1) + 3 * pattern.n, twice)
    entropy = density.entropy(pattern, case.factor)
    check("density: entropy", family, dtype, 2 * entropy.astype(WIDE) - twice, bound)
    expected = np.zeros_like(case.factor)
    expected[..., pattern.diagonal] = -case.bar[..., None] / case.factor[..., pattern.diagonal]
    np.testing.assert_array_equal(density.entropy_vjp(pattern, case.factor, case.bar), expected)


@pytest.mark.parametrize("topology", [Chain(5), ExtendedGrid(2, 3)], ids=str)
def test_they_are_the_densities_and_divergences_of_the_reference(topology) -> None:
    case = Case(topology.factor_pattern, (3,), 1, "float64")
    lower = dense(case.pattern, case.factor)
    back = np.argsort(case.order)
    P = (lower @ numerics.transpose(lower))[..., back[:, None], back]
    D = np.eye(topology.n) / case.scale[..., None] ** 2
    close = {"rtol": 1e-12, "atol": 1e-12}
    beside = case.mean, case.scale
    for found, expected in (
        (density.log_prob(*case.gaussian, case.mean), reference.gaussian.log_prob(case.loc, P, case.mean)),
        (density.kl_to_normal(*case.gaussian, *beside), reference.gaussian.kl_divergence(case.loc, P, case.mean, D)),
        (density.kl_from_normal(*case.gaussian, *beside), reference.gaussian.kl_divergence(case.mean, D, case.loc, P)),
        (density.entropy(case.pattern, case.factor), reference.gaussian.entropy(P)),
    ):
        np.testing.assert_allclose(found, expected, **close)


@pytest.mark.parametrize("name", ["kl_to_normal", "kl_from_normal"])
@pytest.mark.parametrize("value", [0.0, -1.0])
def test_a_scale_must_be_positive(name, value) -> None:
    case = Case(Chain(4).factor_pattern, (20,), 0, "float64")
    case.scale[17, 2] = value
    with pytest.raises(NonPositiveError, match=rf"^{name}: scale must be positive, got {value:.3g}"):
        getattr(density, name)(*case.gaussian, case.mean, case.scale)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, -1.0])
@pytest.mark.parametrize("batch", [(), (1,), (21,)])
def test_validity_is_that_of_every_number(value, batch) -> None:
    case = Case(ExtendedGrid(2, 3).factor_pattern, batch, 0, "float32")
    assert density.is_valid(case.pattern, case.loc, case.factor)
    for place in range(case.pattern.nnz):
        bad = case.factor.copy()
        bad[..., place] = value
        is_harmless = np.isfinite(value) and place not in case.pattern.diagonal
        assert density.is_valid(case.pattern, case.loc, bad) == is_harmless
    for node in range(case.pattern.n):
        bad = case.loc.copy()
        bad[..., node] = value
        assert density.is_valid(case.pattern, bad, case.factor) == np.isfinite(value)


def test_an_argument_that_is_not_finite_is_named() -> None:
    case = Case(Chain(4).factor_pattern, (20,), 0, "float64")
    case.noise[17, 1] = np.nan
    with pytest.raises(
        NonFiniteError, match=r"^sample: noise must be finite, got nan at column 1, batch element \(17,\)"
    ):
        density.sample(*case.gaussian, case.noise)
