"""Cases that must hold: nearly singular chains, a million nodes, numbers at the ends of the range, the wrong object.

Where there is an exact formula it is the oracle; else the residual of the defining equation. Tolerances are those of
tests/numerics.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st

import reference.linalg
from sparseggm import (
    Chain,
    Diagonal,
    GaussianGraphicalModel,
    Grid,
    NonFiniteError,
    NotPositiveDefiniteError,
    Pattern,
    linalg,
)
from tests import numerics
from tests.ledger import check
from tests.numerics import WIDE, Array
from tests.strategies import FOUR_CYCLE, dense, dense_pattern, dtypes, mask, precision_values, seeds
from tests.verbs import VERBS, arguments

each_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])
each_verb = pytest.mark.parametrize("verb", VERBS.values(), ids=list(VERBS))


# ---------------------------------------------------------------------- nearly singular chains, given L


def stiff_chain(n: int, rho: float, dtype: Any) -> Array:
    """Packed L of the stationary chain with neighbour correlation ρ and variances near 1: cond(P) ~ 4 / (1 − ρ)²."""
    innovation = np.sqrt(1 - rho**2)
    values = np.empty(2 * n - 1)
    values[::2], values[1::2] = 1 / innovation, -rho / innovation
    return values.astype(dtype)


@pytest.mark.property
@given(
    rho=st.sampled_from([0.9, 0.99, 0.999, 0.9999]),
    n=st.integers(2, 200),
    reach=st.integers(0, 12),
    dtype=dtypes,
    seed=seeds,
)
def test_a_stiff_chain_given_its_factor_loses_no_digits(rho: float, n: int, reach: int, dtype: str, seed: int) -> None:
    """Correlations to 0.9999 and scales over 2^±12, so condition numbers beyond 1e12, in float32 too."""
    pattern, rng = Chain(n).factor_pattern, np.random.default_rng(seed)
    scale = 2.0 ** rng.integers(-reach, reach + 1, n)
    values = (stiff_chain(n, rho, dtype) * scale[pattern.rows]).astype(dtype)
    L = dense(pattern, values)
    exact = chain_variances(values)
    bound = numerics.chain_variance_bound(L, exact, np.dtype(dtype))
    check("stiff chain: variances", "Chain", dtype, linalg.marginal_variances(pattern, values) - exact, bound)
    level = bound.sum() + numerics.rounding(n, np.float64) * exact.sum()
    level += numerics.stored(exact.sum() + level, np.dtype(dtype))
    check("stiff chain: trace", "Chain", dtype, linalg.trace_inverse(pattern, values) - exact.sum(), level)
    det = numerics.logdet_bound(L, np.dtype(dtype))
    check("stiff chain: log det", "Chain", dtype, linalg.logdet(pattern, values) - reference.linalg.logdet(L), det)
    rhs = rng.standard_normal(n).astype(dtype)
    for verb, A in ((linalg.solve, L), (linalg.solve_t, L.T)):
        x = verb(pattern, values, rhs).astype(WIDE)
        check(
            f"stiff chain: {verb.__name__}", "Chain", dtype, A @ x - rhs, numerics.solve_bound(A, x, 2, np.dtype(dtype))
        )
    g = GaussianGraphicalModel(rhs, factor=values, topology=Chain(n))
    kl = (exact.sum() + (rhs.astype(WIDE) ** 2).sum() - n + reference.linalg.logdet(L)) / 2
    size = exact.sum() + (rhs.astype(WIDE) ** 2).sum() + n + abs(2 * np.log(np.diagonal(L))).sum()
    error = bound.sum() + numerics.rounding(n + 4, np.float64) * size
    error += numerics.stored(abs(kl) + error, np.dtype(dtype))
    check("stiff chain: KL", "Chain", dtype, g.kl_divergence() - kl, error)


def chain_variances(values: Array) -> Array:
    """Σ_jj = (1 + L_{j+1,j}² Σ_{j+1,j+1}) / L_jj² in WIDE; positive terms, so exact to n u_WIDE."""
    pivots, below = values[::2].astype(WIDE), values[1::2].astype(WIDE)
    variances = 1 / pivots**2
    for j in reversed(range(len(below))):
        variances[j] *= 1 + below[j] ** 2 * variances[j + 1]
    return variances


# ---------------------------------------------------------------------- a million nodes


@each_dtype
@pytest.mark.parametrize("rho", [0.5, 0.9999])
def test_a_chain_of_a_million_nodes_agrees_with_its_formulas(dtype: str, rho: float) -> None:
    """Constant coefficients: L_jj = a, L_{j+1,j} = −q a. Then Σ_jj = (1 − q^{2k}) / ((1 − q²) a²), k = n − j."""
    n, numbers = 1_000_000, np.dtype(dtype).type
    pattern = Chain(n).factor_pattern
    factor = np.empty(pattern.nnz, dtype)
    factor[::2], factor[1::2] = numbers(1.25), numbers(-1.25 * rho)
    a, q = WIDE(factor[0]), -WIDE(factor[1]) / WIDE(factor[0])
    exact = (1 - q ** (2 * np.arange(n, 0, -1).astype(WIDE))) / ((1 - q**2) * a**2)
    share = float(q) ** 2
    bound = 10 * min(n, 1 / (1 - share)) * numerics.unit_roundoff(dtype) * exact
    variances = linalg.marginal_variances(pattern, factor)
    assert (abs(variances - exact) <= bound).all()
    total = bound.sum() + numerics.rounding(n, np.float64) * exact.sum()
    total += numerics.stored(exact.sum() + total, np.dtype(dtype))
    assert abs(linalg.trace_inverse(pattern, factor) - exact.sum()) <= total
    log_det = 2 * n * np.log(a)
    bound = numerics.rounding(n + 1, np.float64) * abs(log_det) + numerics.stored(log_det, np.dtype(dtype))
    assert abs(linalg.logdet(pattern, factor) - log_det) <= bound
    rhs = np.random.default_rng(0).standard_normal(n).astype(dtype)
    pivots, below = factor[::2].astype(WIDE), factor[1::2].astype(WIDE)
    level, floor = numerics.rounding(2, dtype), numerics.underflow(dtype) * (2 + a)
    x = linalg.solve(pattern, factor, rhs).astype(WIDE)
    own, other = pivots * x, np.append(0, below * x[:-1])
    assert (abs(own + other - rhs) <= level * (abs(own) + abs(other)) + floor).all()
    x = linalg.solve_t(pattern, factor, rhs).astype(WIDE)
    own, other = pivots * x, np.append(below * x[1:], 0)
    assert (abs(own + other - rhs) <= level * (abs(own) + abs(other)) + floor).all()


@each_dtype
def test_a_precision_of_a_million_nodes_factorises_and_its_gram_is_the_precision(dtype: str) -> None:
    n = 1_000_000
    pattern = Chain(n).precision_pattern
    P = np.where(pattern.rows == pattern.cols, 2.5, -1.0).astype(dtype)
    L = linalg.cholesky(pattern, P).astype(WIDE)
    pivots, below = L[::2], L[1::2]
    level, floor = numerics.rounding(3, dtype), 4 * numerics.negligible(dtype) * WIDE(2.5)
    squares = np.append(0, below**2)
    assert (abs(pivots**2 + squares - WIDE(2.5)) <= level * (pivots**2 + squares) + floor).all()
    assert (abs(pivots[:-1] * below + 1) <= level * abs(pivots[:-1] * below) + floor).all()


# ---------------------------------------------------------------------- the ends of the range


TOPOLOGIES = [Chain(5), Grid(3, 3), Diagonal(3), Chain(1)]
SCALES = [("float32", k) for k in (-100, -50, 50, 100)] + [("float64", k) for k in (-1000, -100, 100, 1000)]


@pytest.mark.parametrize(("dtype", "exponent"), SCALES)
@pytest.mark.parametrize("topology", TOPOLOGIES, ids=str)
def test_scaling_p_by_any_even_power_of_two_scales_every_result_to_the_last_bit(topology, dtype, exponent) -> None:
    """2^±100 is 1e±30: far beyond where a squared entry of P would leave float32."""
    pattern, one = topology.precision_pattern, np.dtype(dtype).type
    filled = pattern.filled()
    c, root = one(2.0) ** one(exponent), one(2.0) ** one(exponent // 2)
    P = precision_values(np.random.default_rng(0), pattern, (3,), "dominant", dtype)
    rhs = np.random.default_rng(1).standard_normal(topology.n).astype(dtype)
    L = linalg.cholesky(pattern, P)
    scaled = linalg.cholesky(pattern, P * c)
    np.testing.assert_array_equal(scaled, L * root)
    for verb in (linalg.selected_inverse, linalg.marginal_variances, linalg.trace_inverse):
        np.testing.assert_array_equal(verb(filled, scaled), verb(filled, L) / c)
    for verb in (linalg.solve, linalg.solve_t):
        np.testing.assert_array_equal(verb(filled, scaled, rhs), verb(filled, L, rhs) / root)
    for verb in (linalg.matmul, linalg.matmul_t):
        np.testing.assert_array_equal(verb(filled, scaled, rhs), verb(filled, L, rhs) * root)
    np.testing.assert_array_equal(
        linalg.symmetric_matmul(pattern, P * c, rhs), linalg.symmetric_matmul(pattern, P, rhs) * c
    )
    np.testing.assert_array_equal(linalg.gram(filled, scaled), linalg.gram(filled, L) * c)
    bound = sum(numerics.logdet_bound(dense(filled, values), np.dtype(dtype)) for values in (L, scaled))
    shift = topology.n * exponent * np.log(WIDE(2))
    assert (abs(linalg.logdet(filled, scaled) - linalg.logdet(filled, L).astype(WIDE) - shift) <= bound).all()


@each_dtype
def test_a_gaussian_at_the_ends_of_the_range_keeps_its_correlations(dtype: str) -> None:
    topology, one = Grid(3, 3), np.dtype(dtype).type
    pairs, loc = [(0, 8), (3, 4)], np.zeros(9, dtype)
    P = precision_values(np.random.default_rng(0), topology.precision_pattern, (), "dominant", dtype)
    expected = GaussianGraphicalModel.from_precision(loc, precision=P, topology=topology)
    for exponent in (-100, 100) if dtype == "float32" else (-1000, 1000):
        c = one(2.0) ** one(exponent)
        g = GaussianGraphicalModel.from_precision(loc, precision=P * c, topology=topology)
        np.testing.assert_array_equal(g.correlation_on(pairs), expected.correlation_on(pairs))
        np.testing.assert_array_equal(g.variance, expected.variance / c)
        np.testing.assert_array_equal(g.precision, expected.precision * c)
        # tr(P Σ) is formed of P within γ_{r+1} |L| |L|ᵀ and of Σ within the same multiple of its own sums.
        L = reference.linalg.cholesky(topology.precision_pattern.to_dense(P.astype(np.float64), symmetric=True))
        size = (abs(L) @ abs(L).T * abs(np.linalg.inv(L @ L.T))).sum()
        bound = numerics.gamma(2 * len(L) + 6, dtype) * size + numerics.gamma(100, np.float64) * abs(g.entropy())
        assert abs(g.kl_divergence(g)) <= bound


@each_dtype
def test_results_beyond_the_range_are_errors_and_never_infinite(dtype: str) -> None:
    chain, most = Chain(3), np.finfo(dtype).max
    unit = np.array([1, 0, 1, 0, 1], dtype)
    origin = GaussianGraphicalModel(np.zeros(3, dtype), factor=unit, topology=chain)
    far, farthest = np.full(3, most**0.75, dtype), np.full(3, most, dtype)
    beyond = f": the arguments are finite but the result overflows {dtype}"
    with pytest.raises(NonFiniteError, match=f"^log_prob{beyond}"):
        origin.log_prob(far)
    with pytest.raises(NonFiniteError, match=f"^log_prob{beyond}"):
        origin.moved_to(farthest).log_prob(-farthest)
    with pytest.raises(NonFiniteError, match=f"^kl_divergence{beyond}"):
        origin.moved_to(far).kl_divergence()
    for there in (far, farthest):
        with pytest.raises(NonFiniteError, match=f"^kl_divergence{beyond}"):
            origin.moved_to(there).kl_divergence(origin.moved_to(-there))
    wide = GaussianGraphicalModel(
        np.zeros(3, dtype), factor=unit * np.dtype(dtype).type(1.05 * most**-0.5), topology=chain
    )
    with pytest.raises(NonFiniteError, match=f"^trace_covariance{beyond}"):
        wide.trace_covariance()
    with pytest.raises(NonFiniteError, match=f"^gram{beyond}"):
        linalg.gram(chain.factor_pattern, np.full(5, most**0.6, dtype))
    with pytest.raises(
        NotPositiveDefiniteError, match=r"^cholesky: not positive definite: pivot -inf at column 1 of 3"
    ):
        linalg.cholesky(chain.precision_pattern, np.array([1, most, 1, 0, 1], dtype))
    with pytest.raises(NotPositiveDefiniteError, match=r"pivot -inf at node 1 .*slack is -inf"):
        GaussianGraphicalModel.from_precision(
            np.zeros(3, dtype), precision=np.array([1, most, -most, most, 1], dtype), topology=chain
        )


# ---------------------------------------------------------------------- fill that decays


@pytest.mark.parametrize("coupling", [-1.0, -1e-3, -1e-6])
@each_dtype
def test_a_grid_whose_fill_decays_is_within_bounds_and_never_subnormal(dtype: str, coupling: float) -> None:
    grid = Grid(64, 64)
    pattern, tiny = grid.precision_pattern, np.finfo(dtype).tiny
    filled = pattern.filled()
    P = np.where(pattern.rows == pattern.cols, 4.5, coupling).astype(dtype)
    L = linalg.cholesky(pattern, P)
    sigma = linalg.selected_inverse(filled, L)
    for values in (L, sigma):
        assert not ((values != 0) & (abs(values) < tiny)).any()
    lower, whole = filled.to_scipy(L.astype(float)), filled.to_scipy(sigma.astype(float), symmetric=True)
    exact = pattern.to_scipy(P.astype(float))
    level = numerics.gamma(filled.longest_row + 1, dtype) + numerics.gamma(filled.longest_row + 4, np.float64)
    drop = 2 * filled.longest_row * numerics.negligible(dtype) * WIDE(4.5)
    backward = filled.values_of(scipy.sparse.tril(abs(lower) @ abs(lower).T) + 0 * lower)
    residual = filled.values_of(scipy.sparse.tril(lower @ lower.T - exact) + 0 * lower)
    assert (abs(residual) <= level * backward + drop + filled.longest_row * numerics.smallest(dtype)).all()
    # Σ L − diag 1/L, lower triangle, on the fill
    on = filled.to_scipy(np.ones(filled.nnz))
    own = scipy.sparse.diags_array(1 / L[filled.diagonal].astype(float))
    level = numerics.gamma(filled.longest_column + 2, dtype) + numerics.gamma(filled.longest_column + 5, np.float64)
    residual = ((whole @ lower - own) * on).tocoo()
    size = ((abs(whole) @ abs(lower) + own) * on).tocsr()
    root = np.sqrt(sigma[filled.diagonal].astype(WIDE))
    i, j = residual.coords
    bound = level * np.asarray(size[i, j]).ravel() + numerics.dropped(dtype) * root[i]
    bound += numerics.smallest(dtype) * (filled.longest_column + 4)
    assert (abs(residual.data) <= bound).all()


# ---------------------------------------------------------------------- small, empty, disconnected, complete


GRAPHS = {
    "one node": Pattern.from_edges(1, []),
    "no edges": Pattern.from_edges(5, []),
    "disconnected": Pattern.from_edges(6, [(2, 0), (5, 3)]),
    "complete": dense_pattern(7),
}


@pytest.mark.parametrize("graph", GRAPHS)
@each_dtype
def test_the_smallest_and_the_fullest_graphs_solve_their_equations(graph: str, dtype: str) -> None:
    pattern, kind = GRAPHS[graph], np.dtype(dtype)
    assert pattern.is_closed
    P = precision_values(np.random.default_rng(0), pattern, (2, 9), "dominant", kind)
    values = linalg.cholesky(pattern, P)
    L, r = dense(pattern, values), pattern.longest_row
    error = np.tril(reference.linalg.gram(L) - dense(pattern, P, symmetric=True))
    check("cholesky", graph, dtype, error, numerics.cholesky_bound(dense(pattern, P, symmetric=True), L, r, kind))
    sigma = dense(pattern, linalg.selected_inverse(pattern, values), symmetric=True)
    residual = numerics.inverse_residual(L, sigma) * mask(pattern)
    check("selected_inverse", graph, dtype, residual, numerics.inverse_bound(L, sigma, pattern.longest_column, kind))


@each_verb
@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("batch", [(0,), (3, 0), (0, 2)])
def test_an_empty_batch_gives_an_empty_result(verb, graph: str, batch: tuple[int, ...]) -> None:
    result = verb(GRAPHS[graph], arguments(verb, GRAPHS[graph], 0, batch))
    assert result.size == 0
    assert result.shape[: len(batch)] == batch


@pytest.mark.parametrize(
    "verb",
    [v for v in VERBS.values() if v.arrays == list(v.operands) and v.dtype is None and v.result != "half"],
    ids=str,
)
def test_disconnected_parts_do_not_see_each_other(verb) -> None:
    """The packed values of a union of two graphs are those of one after those of the other, to the last bit.

    Half of a union's entries are not the halves of both.
    """
    first, second = FOUR_CYCLE.filled(), dense_pattern(3)
    edges = [np.stack([part.rows, part.cols], axis=-1) + shift for part, shift in ((first, 0), (second, 4))]
    both = Pattern.from_edges(7, np.concatenate(edges))
    given_arguments = [arguments(verb, part, 0, (2,)) for part in (first, second)]
    joined = {name: np.concatenate([part[name] for part in given_arguments], axis=-1) for name in verb.operands}
    results = [verb(part, values) for part, values in zip((first, second), given_arguments, strict=True)]
    expected = np.concatenate(results, axis=-1)
    if verb.result == "scalar":  # one more rounding, of the sum
        whole, size = verb(both, joined), abs(results[0]) + abs(results[1])
        assert (abs(whole - sum(results)) <= numerics.gamma(2 * both.n, np.float64) * size).all()
    else:
        np.testing.assert_array_equal(verb(both, joined), expected)
