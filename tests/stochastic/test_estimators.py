"""Stochastic traces and variances: unbiased, with the stated variance, and a standard error that says so.

Random signs are few enough on small graphs to take them all, so means and variances are exact, within rounding. Where
probes are normal, a claim about means is tested on many independent estimates, with a fixed seed, at 5 standard errors
of their own mean: a right implementation fails with probability 6e-7 a number, by the normal law.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference.linalg
from sparseggm import (
    Chain,
    Diagonal,
    DTypeError,
    ExtendedGrid,
    Grid,
    NonFiniteError,
    NonPositiveError,
    Pattern,
    PatternError,
    ShapeError,
    distance_colouring,
    linalg,
    stochastic,
)
from sparseggm.stochastic import probes, xtrace
from tests import numerics
from tests.numerics import WIDE, Array, apply, gamma, solve_bound, transpose
from tests.strategies import dense, dtypes, factor_values, named_patterns, precision_values, seeds

small = named_patterns(2, "factor")  # at most 8 nodes


class AllSigns(np.random.Generator):
    """A generator whose `integers` go through all 2ⁿ vectors of n bits in turn."""

    def __init__(self, n: int) -> None:
        super().__init__(np.random.PCG64(0))
        self.vectors = itertools.cycle(itertools.product((0, 1), repeat=n))

    def integers(self, low: Any, high: Any = None, size: Any = None, *args: Any, **kwargs: Any) -> Any:
        assert (low, high) == (0, 2)
        rows = list(itertools.islice(self.vectors, int(np.prod(size[:-1]))))
        return np.array(rows).reshape(size)


def problem(named: tuple[str, Pattern], seed: int, dtype: Any = np.float64) -> tuple[Pattern, Array, Array, Array]:
    """Pattern, factor, and L and Σ in WIDE."""
    pattern = named[1]
    factor = factor_values(np.random.default_rng(seed), pattern, (), "plain", dtype)
    lower = dense(pattern, factor)
    return pattern, factor, lower, reference.linalg.inverse(lower)


def form_bound(pattern: Pattern, lower: Array, dtype: Any) -> Any:
    """|fl(‖L⁻¹z‖²) − ‖L⁻¹z‖²| for every z of signs and zeros, and the rounding of the result to dtype.

    |L⁻¹z| ≤ a = |L⁻¹| 1, and a solve with residual ρ errs by at most e = |L⁻¹| ρ [Higham 2002, §7.2]: (a + e)² − a²
    summed, and γ_n in float64. ρ is taken at a + e; e, of order u, enters it at order u², covered by the factor 2.
    """
    inverse = abs(np.asarray(reference.linalg.solve(lower, np.eye(pattern.n, dtype=WIDE)[..., None, :, :][0])).T)
    a = inverse.sum(axis=-1)
    e = 2 * apply(inverse, solve_bound(lower, a, pattern.longest_row, dtype))
    squares = ((a + e) ** 2).sum()
    return squares - (a**2).sum() + (gamma(pattern.n, np.float64) + 2 * numerics.unit_roundoff(dtype)) * squares


def off_diagonal_squares(sigma: Array) -> Any:
    """Σ over ordered pairs i ≠ j of Σ_ij²."""
    return ((sigma * (1 - np.eye(len(sigma)))) ** 2).sum()  # a difference of sums would cancel, and its root be far off


def population_deviation(estimate: stochastic.Estimate, count: int) -> Any:
    """Of single draws: the standard error over `count` draws times √(count − 1), because these are all there are."""
    return estimate.standard_error * np.sqrt(WIDE(count - 1))


def deviation_bound(value_bound: Any, deviation: Any, count: int, dtype: Any) -> Any:
    """Standard deviations are norms: they differ by no more than the values do; and rounding of the result."""
    level = gamma(2 * count + 4, np.float64) + 2 * numerics.unit_roundoff(dtype)
    return (value_bound * np.sqrt(WIDE(count)) + level * (deviation + value_bound)) * 2


# ---------------------------------------------------------------------- all signs: exact means and variances


@given(named=small, seed=seeds, dtype=dtypes)
def test_hutchinson_over_all_signs_is_the_trace_with_the_stated_variance(named, seed, dtype) -> None:
    pattern, factor, lower, sigma = problem(named, seed, dtype)
    count = 2**pattern.n
    estimate = stochastic.estimate_trace_by_hutchinson(pattern, factor, count, AllSigns(pattern.n))
    bound = form_bound(pattern, lower, dtype)
    assert abs(estimate.value - np.trace(sigma)) <= bound
    deviation = np.sqrt(2 * off_diagonal_squares(sigma))
    assert abs(population_deviation(estimate, count) - deviation) <= deviation_bound(bound, deviation, count, dtype)


@given(named=small, seed=seeds, dtype=dtypes, distance=st.integers(0, 3))
def test_probing_over_all_signs_is_the_trace_with_the_stated_variance(named, seed, dtype, distance) -> None:
    """Whatever the colouring: here also one that joins nodes which disturb each other."""
    pattern, factor, lower, sigma = problem(named, seed, dtype)
    colours = distance_colouring(pattern.gram(), distance)
    count = 2**pattern.n
    estimate = stochastic.estimate_trace_by_probing(pattern, factor, colours, count, AllSigns(pattern.n))
    bound = form_bound(pattern, lower, dtype) * (colours.max() + 1)
    assert abs(estimate.value - np.trace(sigma)) <= bound
    deviation = np.sqrt(2 * off_diagonal_squares(sigma * (colours[:, None] == colours)))
    assert abs(population_deviation(estimate, count) - deviation) <= deviation_bound(bound, deviation, count, dtype)


@given(named=small, seed=seeds, distance=st.integers(0, 3))
def test_probed_variances_over_all_signs_are_the_diagonal_with_the_stated_variance(named, seed, distance) -> None:
    pattern, factor, lower, sigma = problem(named, seed)
    colours = distance_colouring(pattern.gram(), distance)
    count = 2**pattern.n
    estimate = stochastic.estimate_variances_by_probing(pattern, factor, colours, count, AllSigns(pattern.n))
    same = sigma * (colours[:, None] == colours)
    # Σz = L⁻ᵀ(L⁻¹z): the error of the first solve goes through the second, which adds its own.
    inverse = abs(np.linalg.inv(lower.astype(np.float64))).astype(WIDE)
    a = inverse.sum(axis=-1)
    first = apply(inverse, solve_bound(lower, a, pattern.longest_row, np.float64))
    second = solve_bound(transpose(lower), apply(transpose(inverse), a), pattern.longest_column, np.float64)
    bound = 2 * apply(transpose(inverse), first + second) + gamma(count + 2, np.float64) * apply(transpose(inverse), a)
    assert (abs(estimate.value - np.diagonal(sigma)) <= bound).all()
    deviation = np.sqrt((same**2).sum(axis=-1) - np.diagonal(sigma) ** 2)
    error = abs(population_deviation(estimate, count) - deviation)
    assert (error <= deviation_bound(bound, deviation, count, np.float64)).all()


def product_problem(seed: int) -> tuple[Any, Array, Any, Array, Array]:
    """q on a grid eliminated out of order, p on an extended grid as numbered; gather; and tr's matrix M."""
    q, p = Grid(2, 3), ExtendedGrid(2, 3)
    rng = np.random.default_rng(seed)
    factor = factor_values(rng, q.factor_pattern, (), "plain", np.float64)
    other = factor_values(rng, p.factor_pattern, (), "plain", np.float64)
    gather = q.inverse_order[p.order]
    half = np.linalg.inv(q.factor_pattern.to_dense(factor)).T[gather]  # L_q⁻ᵀ, rows in p's numbering
    root = p.factor_pattern.to_dense(other).T @ half
    return q, factor, p, other, root.T @ root


@pytest.mark.parametrize("form", ["other_factor", "other_precision"])
@pytest.mark.parametrize("seed", range(5))
def test_trace_product_over_all_signs_is_the_trace_with_the_stated_variance(form: str, seed: int) -> None:
    q, factor, p, other, M = product_problem(seed)
    assert not np.array_equal(q.order, np.arange(6))
    pattern = p.factor_pattern if form == "other_factor" else p.precision_pattern
    values = other if form == "other_factor" else linalg.gram(p.factor_pattern, other)
    arguments = {form: values, "gather": q.inverse_order[p.order]}
    estimate = stochastic.estimate_trace_product(q.factor_pattern, factor, pattern, 64, AllSigns(6), **arguments)
    # Every step is stable and every matrix here has a condition number below 1e3: 1e3 · 64 roundings, of the norm.
    assert all(np.linalg.cond(matrix) < 1e3 for matrix in (M, q.factor_pattern.to_dense(factor)))
    bound = 1e3 * gamma(64, np.float64) * np.linalg.norm(M) * 6
    assert abs(estimate.value - np.trace(M)) <= bound
    deviation = np.sqrt(2 * off_diagonal_squares(M))
    assert abs(population_deviation(estimate, 64) - deviation) <= deviation_bound(bound, deviation, 64, np.float64)


def test_trace_product_of_a_gaussian_with_itself_is_n_without_chance() -> None:
    topology = Grid(5, 5)
    precision = precision_values(np.random.default_rng(0), topology.precision_pattern, (3,), "dominant", np.float64)
    factor = linalg.cholesky(topology.precision_pattern, precision)
    L = topology.factor_pattern
    estimate = stochastic.estimate_trace_product(L, factor, L, 4, np.random.default_rng(0), other_factor=factor)
    # Lᵀ L⁻ᵀ ε: residual γ_c |L|ᵀ|z| of the solve and of the product, entrywise, against |ε| = 1.
    z = apply(abs(np.linalg.inv(transpose(L.to_dense(factor)))), np.ones(25))
    slip = 2 * gamma(L.longest_column, np.float64) * apply(transpose(abs(L.to_dense(factor))), z)
    bound = ((1 + slip) ** 2 - 1).sum(axis=-1) + 25 * gamma(25, np.float64)
    assert (abs(estimate.value - 25) <= bound).all()
    assert (estimate.standard_error <= bound).all()


# ---------------------------------------------------------------------- XTrace and Hutch++: identities


def dense_sketch(seed: int, n: int, m: int) -> tuple[Array, Array, xtrace.Sketch]:
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((n, n))
    sigma = root @ root.T + 0.1 * np.eye(n)
    half = np.linalg.cholesky(sigma).T  # any half with halfᵀ half = Σ serves as L⁻¹
    omega = rng.standard_normal((n, m))
    Q, R = np.linalg.qr(sigma @ omega)
    return sigma, omega, xtrace.sketch(omega, half @ omega, Q, R, half @ Q)


def left_out(sigma: Array, omega: Array, i: int, absent: tuple[int, ...]) -> tuple[float, float]:
    """The estimate from probe i and the basis without the absent ones, by definition; and how it amplifies errors.

    Relative errors u of Q grow by κ₂ of what it is the basis of; those of Π ω_i by ‖ω_i‖ / ‖Π ω_i‖, squared in a form.
    """
    n = len(sigma)
    images = sigma @ np.delete(omega, absent, axis=1)
    Q = np.linalg.qr(images).Q
    rest = omega[:, i] - Q @ (Q.T @ omega[:, i])
    kept = images.shape[1]
    value = np.trace(Q.T @ sigma @ Q) + (n - kept) * (rest @ sigma @ rest) / (rest @ rest)
    condition = np.linalg.cond(sigma @ omega) * (omega[:, i] @ omega[:, i]) / (rest @ rest)
    return float(value), float(condition * n * np.linalg.norm(sigma, 2))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("n", "m"), [(2, 2), (7, 2), (7, 5), (7, 7), (40, 12)])
def test_xtrace_algebra_equals_its_definition(n: int, m: int, seed: int) -> None:
    sigma, omega, parts = dense_sketch(seed, n, m)
    u = gamma(n * m, np.float64)
    one, two = xtrace.leave_one_out(parts), xtrace.leave_two_out(parts)
    for i in range(m):
        value, amplification = left_out(sigma, omega, i, (i,))
        assert abs(one[i] - value) <= u * amplification
        for j in set(range(m)) - {i}:
            value, amplification = left_out(sigma, omega, i, (i, j))
            determinant = 1 - parts.cosines[i, j] ** 2
            assert abs(two[i, j] - value) <= u * amplification / determinant


def test_xtrace_jackknife_is_that_of_the_estimates_without_one_probe() -> None:
    sigma, omega, parts = dense_sketch(0, 20, 6)
    without = []
    for j in range(6):
        Ω = np.delete(omega, j, axis=1)
        without.append(np.mean([left_out(sigma, Ω, i, (i,))[0] for i in range(5)]))
    expected = np.sqrt(np.square(without - np.mean(without)).sum())
    assert np.linalg.cond(sigma @ omega) < 1e4
    assert abs(xtrace.jackknife_standard_error(parts) - expected) <= 1e4 * gamma(400, np.float64) * np.trace(sigma)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("topology", [Chain(2), Chain(9), Grid(3, 3), ExtendedGrid(3, 4)], ids=str)
def test_with_a_full_basis_but_one_nothing_is_left_to_chance(topology, dtype) -> None:
    """One direction remains, whose sphere is two points: XTrace with m = n, Hutch++ with rank n − 1; batches too."""
    pattern, n = topology.factor_pattern, topology.n
    factor = factor_values(np.random.default_rng(0), pattern, (3, 2), "plain", dtype)
    exact = linalg.trace_inverse(pattern, factor.astype(np.float64))
    rng = np.random.default_rng(1)
    hutchpp = stochastic.estimate_trace_by_hutchpp(pattern, factor, n - 1, 3, rng)
    by_xtrace = stochastic.estimate_trace_by_xtrace(pattern, factor, n, rng)
    # Relative errors u of the solves grow by κ₂(L) at most; a short last direction costs another √n / ‖Πω‖, which
    # exceeds 1000 with probability below 1e-3 √n a probe; the seed is fixed.
    condition = np.linalg.cond(pattern.to_dense(factor.astype(np.float64))).max()
    bound = 1000 * condition * gamma(n * n, dtype) * exact
    for estimate in (hutchpp, by_xtrace):
        assert estimate.value.shape == (3, 2)
        assert estimate.value.dtype == dtype
        assert (abs(estimate.value - exact) <= bound).all()
    assert (hutchpp.standard_error <= bound).all()


def test_hutchpp_takes_leading_eigenvectors_out_of_the_variance() -> None:
    """Two small P_ii on a diagonal: what rank 4 leaves is flat, and a flat spectrum has no variance on a sphere."""
    pattern = Diagonal(30).factor_pattern
    factor = np.ones(30)
    factor[[3, 17]] = 1e-4
    plain = stochastic.estimate_trace_by_hutchpp(pattern, factor, 0, 10, np.random.default_rng(0))
    deflated = stochastic.estimate_trace_by_hutchpp(pattern, factor, 4, 10, np.random.default_rng(0))
    assert plain.standard_error > 1e6
    # Leakage of an eigenvector of weight 1e8 after one power: relative gap 1e-8, so 1e-16 of 1e8, a probe.
    assert deflated.standard_error < 1e-4
    assert abs(deflated.value - (2e8 + 28)) < 1e-4


# ---------------------------------------------------------------------- normal probes: means over many estimates

REPEATS = 1000


@pytest.fixture(scope="module")
def grid() -> tuple[Pattern, Array, Array]:
    """A 5 × 5 grid with long correlations: pattern and factor, and Σ."""
    topology = Grid(5, 5)
    couplings = -np.random.default_rng(0).uniform(0.5, 1.5, len(topology.edges))
    diagonal = 0.05 + np.bincount(topology.edges.ravel(), np.repeat(-couplings, 2), 25)
    factor = linalg.cholesky(topology.precision_pattern, topology.pack((diagonal, couplings)))
    return (
        topology.factor_pattern,
        factor,
        np.asarray(reference.linalg.inverse(topology.factor_pattern.to_dense(factor))),
    )


def repeated(factor: Array) -> Array:
    """A batch of equal factors: each element has probes of its own."""
    return np.broadcast_to(factor, (REPEATS, len(factor)))


def assert_mean(draws: Array, expected: Any) -> None:
    """The mean of independent draws (REPEATS, ...) is as expected, within 5 of its standard errors."""
    standard_error = draws.std(axis=0, ddof=1) / np.sqrt(len(draws))
    assert (abs(draws.mean(axis=0) - expected) <= 5 * standard_error).all()


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("estimate_trace_by_hutchinson", (6,)),
        ("estimate_trace_by_hutchpp", (0, 5)),
        ("estimate_trace_by_hutchpp", (5, 5)),
        ("estimate_trace_by_hutchpp", (23, 2)),
        ("estimate_trace_by_xtrace", (2,)),
        ("estimate_trace_by_xtrace", (8,)),
        ("estimate_trace_by_xtrace", (24,)),
    ],
)
def test_traces_are_unbiased_and_their_standard_errors_honest(grid, name: str, counts: tuple[int, ...]) -> None:
    pattern, factor, sigma = grid
    estimate = getattr(stochastic, name)(pattern, repeated(factor), *counts, np.random.default_rng(7))
    trace = np.trace(sigma)
    assert_mean(estimate.value, trace)
    excess = np.square(estimate.standard_error, dtype=np.float64) - np.square(estimate.value - trace)
    if name == "estimate_trace_by_xtrace":  # the jackknife errs on the safe side
        assert excess.mean() >= -5 * excess.std(ddof=1) / np.sqrt(REPEATS)
    else:
        assert_mean(excess, 0.0)


def test_spherical_probes_have_the_stated_variance(grid) -> None:
    pattern, factor, sigma = grid
    estimate = stochastic.estimate_trace_by_hutchpp(pattern, repeated(factor), 0, 4, np.random.default_rng(3))
    variance = 2 * 25 / 27 * ((sigma**2).sum() - np.trace(sigma) ** 2 / 25) / 4
    assert_mean(np.square(estimate.value - np.trace(sigma)), variance)


@pytest.mark.parametrize("count", [1, 5])
def test_rao_blackwell_is_unbiased_with_the_stated_variance(grid, count: int) -> None:
    pattern, factor, sigma = grid
    estimate = stochastic.estimate_variances_by_rao_blackwell(
        pattern, repeated(factor), count, np.random.default_rng(5)
    )
    variances = np.diagonal(sigma)
    conditional = 1 / np.diagonal(np.linalg.inv(sigma))
    assert_mean(estimate.value, variances)
    assert_mean(np.square(estimate.value - variances), 2 * (variances - conditional) ** 2 / count)
    assert_mean(np.square(estimate.standard_error), 2 * (variances - conditional) ** 2 / count)
    assert (estimate.value > conditional).all()  # the exact part is a lower bound


# ---------------------------------------------------------------------- contracts

GRID = Grid(4, 4)
COLOURS = distance_colouring(GRID.precision_pattern, 2)
OTHER = factor_values(np.random.default_rng(8), GRID.factor_pattern, (), "plain", np.float64)

CALLS: dict[str, Any] = {
    "hutchinson": lambda L, rng: stochastic.estimate_trace_by_hutchinson(GRID.factor_pattern, L, 7, rng),
    "probing": lambda L, rng: stochastic.estimate_trace_by_probing(GRID.factor_pattern, L, COLOURS, 3, rng),
    "hutchpp": lambda L, rng: stochastic.estimate_trace_by_hutchpp(GRID.factor_pattern, L, 3, 5, rng),
    "xtrace": lambda L, rng: stochastic.estimate_trace_by_xtrace(GRID.factor_pattern, L, 5, rng),
    "product": lambda L, rng: stochastic.estimate_trace_product(
        GRID.factor_pattern, L, GRID.factor_pattern, 5, rng, other_factor=OTHER.astype(L.dtype)
    ),
    "rao_blackwell": lambda L, rng: stochastic.estimate_variances_by_rao_blackwell(GRID.factor_pattern, L, 5, rng),
    "variances": lambda L, rng: stochastic.estimate_variances_by_probing(GRID.factor_pattern, L, COLOURS, 3, rng),
}
each_call = pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))


def grid_factor(batch: tuple[int, ...] = (), dtype: Any = np.float64) -> Array:
    return factor_values(np.random.default_rng(2), GRID.factor_pattern, batch, "plain", dtype)


@each_call
def test_a_seed_determines_the_estimate_and_another_changes_it(call) -> None:
    first, same, other = (call(grid_factor(), np.random.default_rng(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, same)
    assert (first.value != other.value).any()
    assert (call(grid_factor(), None).value != call(grid_factor(), None).value).any()


@each_call
def test_chunks_do_not_change_the_draws(call, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums may be formed in another order: 16 terms, of one sign in all methods but probed variances."""
    whole = call(grid_factor((2,)), np.random.default_rng(0))
    monkeypatch.setattr(probes, "CHUNK_VALUES", 1)
    single = call(grid_factor((2,)), np.random.default_rng(0))
    for one, other in zip(whole, single, strict=True):
        assert (abs(one - other) <= gamma(16 * 16, np.float64) * abs(whole.value).max()).all()


@each_call
@pytest.mark.parametrize("batch", [(), (1,), (3, 2), (0,), (19,)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_shapes_dtypes_and_untouched_inputs(call, batch, dtype) -> None:
    factor = grid_factor(batch, dtype)
    factor.flags.writeable = False
    estimate = call(factor, np.random.default_rng(0))
    variances = estimate.value.ndim > len(batch)
    for part in estimate:
        assert isinstance(part, np.ndarray)
        assert part.shape == ((*batch, 16) if variances else batch)
        assert part.dtype == dtype


@pytest.mark.parametrize("name", ["hutchinson", "probing", "product", "variances"])
def test_float32_agrees_with_float64_on_the_same_signs(name: str) -> None:
    """Signs are the same draws in both; normal draws are not."""
    call = CALLS[name]
    factor = grid_factor(dtype=np.float32)
    single = call(factor, np.random.default_rng(0))
    double = call(factor.astype(np.float64), np.random.default_rng(0))
    condition = np.linalg.cond(GRID.factor_pattern.to_dense(factor.astype(np.float64)))
    bound = condition * gamma(2 * 16 * 16, np.float32) * abs(double.value).max()  # a backward error of γ_n a solve
    assert 0 < abs(single.value - double.value).max() <= bound


@each_call
def test_a_batch_is_each_of_its_elements(call) -> None:
    """Ten equal factors beside ten far larger ones: estimates follow their own factor, and do not repeat each other."""
    factor = np.concatenate([grid_factor((10,)) * 0 + grid_factor(), grid_factor((10,)) * 0 + 1024 * grid_factor()])
    value = call(factor, np.random.default_rng(0)).value.reshape(20, -1)
    assert value[:10].min() > value[10:].max() * 1000
    assert len(np.unique(value[:10, 0])) == 10


def test_an_edgeless_graph_leaves_signs_no_variance() -> None:
    """z_i² = 1: exact whatever the signs, in every element of a batch."""
    pattern = Diagonal(6).factor_pattern
    factor = np.random.default_rng(0).uniform(0.5, 2.0, (3, 6))
    exact = linalg.trace_inverse(pattern, factor)
    bound = gamma(10, np.float64) * exact
    rng = np.random.default_rng(0)
    colours = np.zeros(6, np.int64)
    for estimate in (
        stochastic.estimate_trace_by_hutchinson(pattern, factor, 3, rng),
        stochastic.estimate_trace_by_probing(pattern, factor, colours, 2, rng),
    ):
        assert (abs(estimate.value - exact) <= bound).all()
        assert (estimate.standard_error <= bound).all()
    variances = stochastic.estimate_variances_by_rao_blackwell(pattern, factor, 3, rng)
    assert (abs(variances.value - 1 / factor**2) <= gamma(10, np.float64) / factor**2).all()


def test_names_of_colours_do_not_matter() -> None:
    L, factor = GRID.factor_pattern, grid_factor()
    named = np.array([70, 10, 30, 20, 80, 60, 50, 90, 100, 110])[COLOURS]
    first, second = (
        stochastic.estimate_trace_by_probing(L, factor, colours, 3, np.random.default_rng(0))
        for colours in (COLOURS, named)
    )
    assert abs(first.value - second.value) <= gamma(16 * 16, np.float64) * first.value


# ---------------------------------------------------------------------- errors

FACTOR = grid_factor()
BAD_CALLS: list[tuple[str, tuple[Any, ...], dict[str, Any], type[Exception], str]] = [
    (
        "estimate_trace_by_hutchinson",
        (FACTOR, 1),
        {},
        ValueError,
        "num_probes must be at least 2, for a standard error",
    ),
    ("estimate_trace_by_hutchinson", (FACTOR, 2.5), {}, TypeError, "num_probes must be an integer, got 2.5"),
    ("estimate_trace_by_hutchinson", (FACTOR[1:], 2), {}, ShapeError, "factor must end in"),
    ("estimate_trace_by_hutchinson", (FACTOR.astype(int), 2), {}, DTypeError, "factor must be float32 or float64"),
    ("estimate_trace_by_hutchinson", (FACTOR * np.nan, 2), {}, NonFiniteError, "factor must be finite"),
    ("estimate_trace_by_hutchinson", (-FACTOR, 2), {}, NonPositiveError, "the diagonal of factor must be positive"),
    (
        "estimate_trace_by_hutchinson",
        (FACTOR, 2, "0"),
        {},
        TypeError,
        "rng must be a numpy.random.Generator, a nonnegative integer, a SeedSequence or None, got '0'",
    ),
    ("estimate_trace_by_probing", (FACTOR, COLOURS[1:]), {}, ShapeError, r"colours must be \(16,\) integers"),
    ("estimate_trace_by_probing", (FACTOR, COLOURS * 1.0), {}, ShapeError, r"got float64 of shape \(16,\)"),
    ("estimate_trace_by_probing", (FACTOR, COLOURS, 1), {}, ValueError, "replicates must be at least 2"),
    ("estimate_variances_by_probing", (FACTOR, COLOURS, 1), {}, ValueError, "replicates must be at least 2"),
    ("estimate_trace_by_hutchpp", (FACTOR, 16, 2), {}, ValueError, "rank must be at most n − 1 = 15, got 16"),
    ("estimate_trace_by_hutchpp", (FACTOR, -1, 2), {}, ValueError, "rank must be at least 0, got -1"),
    ("estimate_trace_by_hutchpp", (FACTOR, 2, 1), {}, ValueError, "num_probes must be at least 2"),
    ("estimate_trace_by_xtrace", (FACTOR, 17), {}, ValueError, "num_probes must be at most n = 16, got 17"),
    ("estimate_trace_by_xtrace", (FACTOR, 1), {}, ValueError, "num_probes must be at least 2"),
    ("estimate_variances_by_rao_blackwell", (FACTOR, 0), {}, ValueError, "num_samples must be at least 1, got 0"),
    ("estimate_trace_product", (FACTOR, GRID.factor_pattern, 2), {}, ValueError, "exactly one of"),
    (
        "estimate_trace_product",
        (FACTOR, GRID.factor_pattern, 2),
        {"other_factor": FACTOR[1:]},
        ShapeError,
        "other_factor must end in",
    ),
    (
        "estimate_trace_product",
        (FACTOR, Chain(3).factor_pattern, 2),
        {"other_factor": np.ones(5)},
        PatternError,
        "the same n, got 16 and 3",
    ),
]


@pytest.mark.parametrize(("name", "arguments", "keywords", "error", "message"), BAD_CALLS)
def test_mistakes_are_named(name, arguments, keywords, error, message) -> None:
    with pytest.raises(error, match=message) as caught:
        getattr(stochastic, name)(GRID.factor_pattern, *arguments, **keywords)
    assert str(caught.value).startswith(f"{name}: ")


def test_an_estimate_beyond_float32_raises() -> None:
    pattern = Diagonal(4).factor_pattern
    with pytest.raises(NonFiniteError, match="the estimate overflows float32"):
        stochastic.estimate_trace_by_hutchinson(pattern, np.full(4, 1e-19, np.float32), 2, np.random.default_rng(0))


def test_xtrace_says_when_the_images_of_its_probes_are_dependent() -> None:
    singular = np.triu(np.ones((3, 3)))
    singular[2, 2] = 0
    with pytest.raises(np.linalg.LinAlgError):
        xtrace.leave_one_out_directions(singular)
