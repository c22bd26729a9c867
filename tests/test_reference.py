"""The oracle itself: `reference` against SciPy, exact fractions and differences, so that it is not merely believed."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import scipy.linalg
import scipy.stats

import reference.gaussian
import reference.inference
import reference.linalg
import reference.topology
from tests.numerics import WIDE, Array, gamma

N = 6
SEEDS = range(5)


def factor(seed: int, batch: tuple[int, ...] = ()) -> Array:
    rng = np.random.default_rng(seed)
    L = np.tril(rng.uniform(-0.5, 0.5, (*batch, N, N)), -1)
    L[..., range(N), range(N)] = rng.uniform(0.5, 2.0, (*batch, N))
    return L


def assert_close(value: Array, expected: Array, L: Array) -> None:
    """To float64 rounding times the condition of P, in the largest entry; N³ covers any of the algorithms."""
    tolerance = float(gamma(N**3, np.float64)) * np.linalg.cond(L) ** 2 * abs(expected).max()
    np.testing.assert_allclose(value, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("seed", SEEDS)
def test_linear_algebra_agrees_with_scipy(seed: int) -> None:
    L, b = factor(seed), np.random.default_rng(seed).standard_normal(N)
    P = L @ L.T
    assert_close(reference.linalg.cholesky(P), scipy.linalg.cholesky(P, lower=True), L)
    assert_close(reference.linalg.solve(L, b), scipy.linalg.solve_triangular(L, b, lower=True), L)
    assert_close(reference.linalg.solve_t(L, b), scipy.linalg.solve_triangular(L, b, lower=True, trans="T"), L)
    assert_close(reference.linalg.inverse(L), scipy.linalg.inv(P), L)
    assert_close(reference.linalg.logdet(L), np.linalg.slogdet(P).logabsdet, L)
    assert_close(reference.linalg.trace_inverse(L), np.trace(scipy.linalg.inv(P)), L)


def test_solves_are_exact_in_fractions() -> None:
    """The same loops on an array of fractions, where nothing rounds."""
    L = np.array([[Fraction(2), Fraction(0)], [Fraction(1, 3), Fraction(5)]])
    x = reference.linalg.solve(L, np.array([Fraction(1), Fraction(1)]))
    assert x.tolist() == [Fraction(1, 2), Fraction(1, 6)]
    x = reference.linalg.solve_t(L, np.array([Fraction(1), Fraction(1)]))
    assert x.tolist() == [Fraction(7, 15), Fraction(1, 5)]


def test_batches_are_their_elements_and_the_dtype_stays() -> None:
    L = factor(0, (2, 3)).astype(WIDE)
    b = np.ones((3, N), WIDE)
    x = reference.linalg.solve(L, b)
    assert (x.shape, x.dtype) == ((2, 3, N), WIDE)
    for index in np.ndindex(2, 3):
        np.testing.assert_array_equal(x[index], reference.linalg.solve(L[index], b[0]))
        np.testing.assert_array_equal(reference.linalg.inverse(L)[index], reference.linalg.inverse(L[index]))


def test_an_indefinite_matrix_is_refused() -> None:
    with pytest.raises(np.linalg.LinAlgError, match="pivot 1 is not positive"):
        reference.linalg.cholesky(np.array([[1.0, 2.0], [2.0, 1.0]]))


# ---------------------------------------------------------------------- calculus, by central differences


def difference(function, at: Array, along: Array) -> Array:
    """(f(x + h v) − f(x − h v)) / 2h in WIDE: for h = 1e-6 wrong by about h² and u / h, so 1e-11."""
    h = WIDE(1e-6)
    return (function(at + h * along) - function(at - h * along)) / (2 * h)


NEAR = {"rtol": 1e-8, "atol": 1e-8}  # far above that error, far below any wrong term


@pytest.mark.parametrize("seed", SEEDS)
def test_calculus_agrees_with_central_differences(seed: int) -> None:
    rng = np.random.default_rng(seed)
    L = factor(seed).astype(WIDE)
    a, b, c = (np.tril(rng.standard_normal((N, N))).astype(WIDE) for _ in range(3))
    symmetric = a + np.tril(a, -1).T
    jvp = difference(lambda L: np.tril(reference.linalg.gram(L)), L, a)
    np.testing.assert_allclose(reference.linalg.gram_jvp(L, a), jvp, **NEAR)
    vjp = gradient(lambda L: (b * np.tril(reference.linalg.gram(L))).sum(), L)
    np.testing.assert_allclose(reference.linalg.gram_vjp(L, b), vjp, **NEAR)
    P = reference.linalg.gram(L)
    jvp = difference(reference.linalg.cholesky, P, symmetric)
    np.testing.assert_allclose(reference.linalg.cholesky_jvp(L, a), jvp, **NEAR)
    vjp = gradient(lambda stored: (c * reference.linalg.cholesky(mirrored(stored))).sum(), np.tril(P))
    np.testing.assert_allclose(reference.linalg.cholesky_vjp(L, c), vjp, **NEAR)
    vjp = gradient(lambda L: (c * reference.linalg.selected_inverse(L)).sum(), L)
    np.testing.assert_allclose(reference.linalg.selected_inverse_vjp(L, c), vjp, **NEAR)
    vjp = gradient(lambda L: (c[0] * reference.linalg.marginal_variances(L)).sum(), L)
    np.testing.assert_allclose(reference.linalg.marginal_variances_vjp(L, c[0]), vjp, **NEAR)


def mirrored(lower: Array) -> Array:
    return lower + np.tril(lower, -1).T


def gradient(function, at: Array) -> Array:
    """With respect to the lower triangle, entry by entry."""
    out = np.zeros_like(at)
    for index in zip(*np.tril_indices(N), strict=True):
        direction = np.zeros_like(at)
        direction[index] = 1
        out[index] = difference(function, at, direction)
    return out


# ---------------------------------------------------------------------- Gaussians


@pytest.mark.parametrize("seed", SEEDS)
def test_gaussian_formulas_agree_with_scipy_stats(seed: int) -> None:
    L, rng = factor(seed), np.random.default_rng(seed)
    P, (loc, x) = L @ L.T, rng.standard_normal((2, N))
    normal = scipy.stats.multivariate_normal(loc, np.linalg.inv(P))
    assert_close(reference.gaussian.log_prob(loc, P, x), normal.logpdf(x), L)
    assert_close(reference.gaussian.entropy(P), normal.entropy(), L)


@pytest.mark.parametrize("seed", SEEDS)
def test_kl_is_the_expected_log_ratio(seed: int) -> None:
    """By the 2n sigma points loc ± √n times the columns of a root of Σ, which integrate quadratics exactly."""
    L, M = factor(seed), factor(seed + 100)
    loc_q, loc_p = np.random.default_rng(seed).standard_normal((2, N))
    root = np.sqrt(N) * np.linalg.inv(L)  # Σ = L⁻ᵀ L⁻¹: its rows are the columns of L⁻ᵀ
    points = loc_q + np.concatenate([root, -root])
    ratio = reference.gaussian.log_prob(loc_q, L @ L.T, points) - reference.gaussian.log_prob(loc_p, M @ M.T, points)
    value = reference.gaussian.kl_divergence(loc_q, L @ L.T, loc_p, M @ M.T)
    assert_close(value, ratio.mean(), L @ M)
    assert value > 0


# ---------------------------------------------------------------------- graphs


def test_fill_of_the_four_cycle_is_one_chord() -> None:
    mask = reference.topology.pattern(4, [(1, 0), (2, 1), (3, 2), (3, 0)])
    assert np.argwhere(reference.topology.filled(mask) & ~mask).tolist() == [[3, 1]]


def test_fill_is_where_a_generic_factor_is_nonzero() -> None:
    rng = np.random.default_rng(0)
    for density in (0.1, 0.3):
        mask = np.tril(rng.random((12, 12)) < density, -1) | np.eye(12, dtype=bool)
        P = np.where(mask, rng.uniform(0.1, 1, (12, 12)), 0)
        P = P + P.T + 24 * np.eye(12)
        np.testing.assert_array_equal(reference.topology.filled(mask), reference.linalg.cholesky(P) != 0)


def test_minimum_degree_eliminates_leaves_before_hubs() -> None:
    assert reference.topology.minimum_degree(4, [(1, 0), (2, 0), (3, 0)]) == [1, 2, 0, 3]


def test_minimum_degree_of_some_nodes_counts_the_others() -> None:
    """A path 0 – 1 – 2 with 3 and 4 beside its first node: 2 goes first, then 1, and 0 last."""
    path = [(1, 0), (2, 1), (3, 0), (4, 0)]
    assert reference.topology.minimum_degree(5, path, 3) == [2, 1, 0]


def test_nested_dissection_puts_the_middle_last() -> None:
    assert reference.topology.axis_parallel_dissection((5,)) == [0, 1, 3, 4, 2]
    assert reference.topology.axis_parallel_dissection((3, 3))[-3:] == [3, 4, 5]
    assert reference.topology.lattice_dissection((5,)) == [1, 0, 4, 3, 2]
    assert reference.topology.lattice_dissection((3, 3))[-2:] == [1, 3]  # a level of row + column


def test_a_smallest_cut_by_hand() -> None:
    two_paths = [(2, 0), (3, 1), (4, 2), (4, 3)]
    assert reference.topology.smallest_cut(5, two_paths, {0, 1}, {4}) == 1
    assert reference.topology.smallest_cut(5, two_paths, {0, 1}, {2, 3}) == 2
    assert reference.topology.smallest_cut(5, two_paths, {0, 1}, {0, 4}) == 2  # 0 is next to both
    assert reference.topology.smallest_cut(5, two_paths[:2], {0, 1}, {4}) == 0


# ---------------------------------------------------------------------- inference


@pytest.mark.parametrize("seed", SEEDS)
def test_conditionals_are_ratios_of_densities_whatever_the_form(seed: int) -> None:
    """log p(x_A | x_B) = log p(x) − log p(x_B); and the precision form, P_AA and loc_A − P_AA⁻¹ P_AB (x_B − loc_B)."""
    L, rng = factor(seed), np.random.default_rng(seed)
    P, (loc, x) = L @ L.T, rng.standard_normal((2, N))
    kept, nodes = [0, 2, 5], [4, 1, 3]
    assert reference.inference.others(N, nodes) == kept
    mean, sigma = reference.inference.condition(loc, P, nodes, x[nodes])
    marginal = reference.inference.marginal(P, nodes)
    density = reference.gaussian.log_prob(mean, np.linalg.inv(sigma), x[kept])
    joint = reference.gaussian.log_prob(loc, P, x)
    assert_close(density + reference.gaussian.log_prob(loc[nodes], marginal, x[nodes]), joint, L)
    assert_close(np.linalg.inv(sigma), P[np.ix_(kept, kept)], L)
    assert_close(P[np.ix_(kept, kept)] @ (mean - loc[kept]), -P[np.ix_(kept, nodes)] @ (x - loc)[nodes], L @ L)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_posterior_is_that_of_the_kalman_gain(seed: int) -> None:
    L, rng = factor(seed), np.random.default_rng(seed)
    loc, nodes, values = rng.standard_normal(N), [4, 1], rng.standard_normal(2)
    variance = rng.uniform(0.5, 2, 2)
    sigma = np.linalg.inv(L @ L.T)
    gain = sigma[:, nodes] @ np.linalg.inv(sigma[np.ix_(nodes, nodes)] + np.diag(variance))
    mean, posterior = reference.inference.observe(loc, L @ L.T, nodes, values, variance)
    assert_close(mean, loc + gain @ (values - loc[nodes]), L)
    assert_close(posterior, sigma - gain @ sigma[nodes], L)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_product_of_densities_is_proportional_to_the_density_of_the_product(seed: int) -> None:
    L, rng = factor(seed), np.random.default_rng(seed)
    P, W, (loc, h, *x) = L @ L.T, rng.standard_normal((N, 2)), rng.standard_normal((8, N))
    mean, sigma = reference.inference.product(loc, P, h, W @ W.T)
    factors = [reference.gaussian.log_prob(loc, P, z) + h @ z - (W.T @ z) @ (W.T @ z) / 2 for z in x]
    product = [reference.gaussian.log_prob(mean, np.linalg.inv(sigma), z) for z in x]
    assert_close(np.diff(factors), np.diff(product), L)


@pytest.mark.parametrize("seed", SEEDS)
def test_maximum_likelihood_by_columns_and_by_cliques_agree_and_solve_the_score_equations(seed: int) -> None:
    """Σ = C on the graph, P = 0 off it [Dempster 1972]: two cliques of four with two nodes in common."""
    samples = np.random.default_rng(seed).standard_normal((40, N))
    C = reference.inference.moments(samples)[1]
    edges = [(i, j) for j in range(N) for i in range(j + 1, N) if not (j < 2 and i > 3)]
    mask = reference.topology.pattern(N, edges)
    assert reference.topology.is_perfect(N, edges, list(range(N)))
    L = reference.inference.fit_factor(mask, C)
    P = reference.inference.fit_precision(edges, list(range(N)), C)
    assert_close(L @ L.T, P, np.linalg.cholesky(C))
    assert_close(np.where(mask, np.linalg.inv(P), 0), np.where(mask, C, 0), np.linalg.cholesky(C))
    assert (P[mask | mask.T] != 0).all()
    assert (P[~(mask | mask.T)] == 0).all()
    at_fit = reference.inference.log_likelihood(L, C)
    assert at_fit > reference.inference.log_likelihood(L * 1.01, C)


# ---------------------------------------------------------------------- chordality


def test_rings_are_induced_only_without_chords() -> None:
    ring = [(1, 0), (2, 1), (3, 2), (3, 0)]
    assert reference.topology.has_induced_cycle(4, ring)
    assert not reference.topology.has_induced_cycle(4, [*ring, (2, 0)])
    assert not reference.topology.has_induced_cycle(3, [(1, 0), (2, 1), (2, 0)])  # a triangle is no ring of four
    two_triangles = [(1, 0), (2, 1), (2, 0), (4, 3), (5, 4), (5, 3)]
    assert not reference.topology.has_induced_cycle(6, two_triangles)  # two neighbours each, but not one ring
    assert reference.topology.has_induced_cycle(6, [(i, (i + 1) % 6) for i in range(6)])


def test_an_order_is_perfect_where_later_neighbours_are_joined() -> None:
    path = [(1, 0), (2, 1)]
    assert reference.topology.is_perfect(3, path, [0, 1, 2])
    assert not reference.topology.is_perfect(3, path, [1, 0, 2])


def test_maximum_cardinality_and_a_torus_by_hand() -> None:
    assert reference.topology.maximum_cardinality(4, [(1, 0), (2, 0), (3, 0)]) == [1, 2, 0, 3]
    assert reference.topology.torus((4,)) == reference.topology.cycle(4) == [(1, 0), (3, 0), (2, 1), (3, 2)]


@pytest.mark.parametrize("seed", SEEDS)
def test_terms_of_kl_are_not_negative_and_sum_to_it(seed: int) -> None:
    L, M, rng = factor(seed), factor(seed + 100), np.random.default_rng(seed)
    given = rng.standard_normal(N), L @ L.T, rng.standard_normal(N), M @ M.T
    terms = reference.gaussian.kl_terms(*given)
    assert (terms > 0).all()
    assert_close(terms.sum(), reference.gaussian.kl_divergence(*given), L @ M)


def test_a_term_of_kl_is_the_mean_divergence_of_conditionals() -> None:
    """Of two nodes, by quadrature over the second."""
    L, M = factor(0)[4:, 4:], factor(1)[4:, 4:]
    loc, other = np.array([0.3, -0.2]), np.array([-0.5, 0.4])
    sigma, sigma_p = np.linalg.inv(L @ L.T), np.linalg.inv(M @ M.T)
    points, weights = np.polynomial.hermite_e.hermegauss(5)
    second = loc[1] + np.sqrt(sigma[1, 1]) * points

    def given_second(loc: Array, sigma: Array) -> tuple[Array, Array]:
        slope = sigma[0, 1] / sigma[1, 1]
        return loc[0] + slope * (second - loc[1]), sigma[0, 0] - slope * sigma[0, 1]

    (mean, v), (mean_p, v_p) = given_second(loc, sigma), given_second(other, sigma_p)
    each = 0.5 * (np.log(v_p / v) + (v + (mean - mean_p) ** 2) / v_p - 1)
    expected = (each * weights).sum() / weights.sum()
    terms = reference.gaussian.kl_terms(loc, L @ L.T, other, M @ M.T)
    np.testing.assert_allclose(terms[0], expected, rtol=1e-12)


def test_a_factor_moves_in_its_regression_coordinates() -> None:
    M, moves = factor(0), np.tril(np.random.default_rng(0).standard_normal((N, N)))
    L = reference.linalg.moved(M, moves)
    np.testing.assert_allclose(-np.log(np.diag(L)), np.diag(moves) - np.log(np.diag(M)), rtol=1e-12)
    weights, own = (-np.tril(factor, -1) / np.diag(factor) for factor in (M, L))
    np.testing.assert_allclose(own, weights + np.tril(moves, -1), rtol=1e-12, atol=1e-12)
