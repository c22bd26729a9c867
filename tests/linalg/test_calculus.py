"""The calculus verbs: against their equations and `reference`, and adjoint to one another.

Where all arithmetic is exact (small integers, diagonals of powers of two) so is agreement, without a tolerance.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import reference.linalg
from sparseggm import Pattern, adjoints, linalg
from tests import numerics
from tests.ledger import check
from tests.numerics import WIDE, Array
from tests.strategies import Problem, dense, factor_problems, factor_values, mask, named_patterns, seeds

KINDS = ("plain", "wide range", "with zeros", "decaying")


# ---------------------------------------------------------------------- equations and reference


@pytest.mark.property
@given(problem=factor_problems(kinds=KINDS))
def test_gram_jvp_errs_by_at_most_one_rounding_a_term(problem: Problem) -> None:
    pattern, b = problem.pattern, problem.packed_like(problem.pattern.nnz)
    v = dense(pattern.gram(), adjoints.gram_jvp(pattern, problem.values, b))
    A, B = problem.dense(), dense(pattern, b)
    bound = numerics.gram_bound(A, B, 2 * pattern.longest_row + 1, problem.dtype)
    check("gram_jvp", problem.family, problem.dtype, v - reference.linalg.gram_jvp(A, B), bound)


@pytest.mark.property
@given(problem=factor_problems(kinds=KINDS))
def test_gram_vjp_errs_by_at_most_one_rounding_a_term(problem: Problem) -> None:
    pattern, v = problem.pattern, problem.packed_like(problem.pattern.gram().nnz)
    a_bar = dense(pattern, adjoints.gram_vjp(pattern, problem.values, v))
    A, V, k = problem.dense(), dense(pattern.gram(), v), pattern.longest_column + 2
    terms = (abs(V) + numerics.transpose(abs(V))) @ abs(A)
    bound = numerics.rounding(k, problem.dtype) * terms + k * numerics.underflow(problem.dtype)
    check("gram_vjp", problem.family, problem.dtype, a_bar - reference.linalg.gram_vjp(A, V, mask(pattern)), bound)


@pytest.mark.property
@given(problem=factor_problems(kinds=KINDS, closed=True))
def test_cholesky_jvp_solves_its_equation(problem: Problem) -> None:
    pattern, v = problem.pattern, problem.packed_like(problem.pattern.nnz)
    X = dense(pattern, adjoints.cholesky_jvp(pattern, problem.values, v))
    L = problem.dense()
    residual = reference.linalg.gram_jvp(L, X) - dense(pattern, v)
    bound = numerics.cholesky_jvp_bound(L, X, pattern.longest_row, problem.dtype)
    check("cholesky_jvp", problem.family, problem.dtype, residual, bound)


@pytest.mark.property
@given(problem=factor_problems(kinds=KINDS, closed=True))
def test_cholesky_vjp_solves_its_equation(problem: Problem) -> None:
    pattern, x = problem.pattern, problem.packed_like(problem.pattern.nnz)
    V = dense(pattern, adjoints.cholesky_vjp(pattern, problem.values, x))
    L = problem.dense()
    residual = reference.linalg.gram_vjp(L, V, mask(pattern)) - dense(pattern, x)
    bound = numerics.cholesky_vjp_bound(L, V, pattern.longest_column, problem.dtype)
    check("cholesky_vjp", problem.family, problem.dtype, residual, bound)


@pytest.mark.property
@given(problem=factor_problems(kinds=KINDS), larger=st.booleans())
def test_selected_inverse_vjp_is_within_its_running_error(problem: Problem, larger: bool) -> None:
    pattern = problem.pattern
    on = pattern.envelope().filled() if larger else None
    fill = on or pattern.filled()
    sigma_bar = problem.packed_like(fill.nnz)
    L_bar = dense(pattern, adjoints.selected_inverse_vjp(pattern, problem.values, sigma_bar, on=on))
    G = np.array(np.broadcast_to(dense(fill, sigma_bar), (*problem.full_batch, pattern.n, pattern.n)))
    L = np.broadcast_to(problem.dense(), G.shape)
    exact = reference.linalg.selected_inverse_vjp(L, G, mask(pattern))
    check("selected_inverse_vjp", problem.family, problem.dtype, L_bar - exact, vjp_bound(problem, L, G))


@pytest.mark.property
@given(problem=factor_problems(kinds=KINDS))
def test_marginal_variances_vjp_is_within_its_running_error(problem: Problem) -> None:
    pattern, variances_bar = problem.pattern, problem.vector()
    L_bar = dense(pattern, adjoints.marginal_variances_vjp(pattern, problem.values, variances_bar))
    G = variances_bar.astype(WIDE)[..., None] * np.eye(pattern.n)
    G = np.array(np.broadcast_to(G, (*problem.full_batch, pattern.n, pattern.n)))
    L = np.broadcast_to(problem.dense(), G.shape)
    exact = reference.linalg.selected_inverse_vjp(L, G, mask(pattern))
    check("marginal_variances_vjp", problem.family, problem.dtype, L_bar - exact, vjp_bound(problem, L, G))


def vjp_bound(problem: Problem, factor: Array, sigma_bar: Array) -> Array:
    """For the verb, and for the reference in WIDE."""
    bounds = (numerics.inverse_vjp_bound(factor, sigma_bar, dtype) for dtype in (problem.dtype, WIDE))
    return sum(bounds) * mask(problem.pattern)


# ---------------------------------------------------------------------- exact agreement


def small_integers(rng: np.random.Generator, pattern: Pattern, diagonal: tuple[float, ...]) -> Array:
    """A factor with entries −1, 0, 1 and a diagonal of powers of two: nothing is rounded in float64."""
    off_diagonal = pattern.rows != pattern.cols
    return np.where(off_diagonal, rng.integers(-1, 2, pattern.nnz), rng.choice(diagonal, pattern.nnz)).astype(float)


DIAGONAL = (0.5, 1.0, 2.0)


def integers(rng: np.random.Generator, size: int) -> Array:
    return 8.0 * rng.integers(-4, 5, size)


@given(named=named_patterns(2), seed=seeds)
def test_gram_calculus_is_exact_on_integers(named: tuple[str, Pattern], seed: int) -> None:
    pattern, rng = named[1], np.random.default_rng(seed)
    a, b = (small_integers(rng, pattern, DIAGONAL) for _ in range(2))
    v = integers(rng, pattern.gram().nnz)
    A, B, V = dense(pattern, a), dense(pattern, b), dense(pattern.gram(), v)
    assert_same(pattern.gram(), linalg.gram(pattern, a), np.tril(reference.linalg.gram(A)))
    assert_same(pattern.gram(), adjoints.gram_jvp(pattern, a, b), reference.linalg.gram_jvp(A, B))
    assert_same(pattern, adjoints.gram_vjp(pattern, a, v), reference.linalg.gram_vjp(A, V, mask(pattern)))


@given(named=named_patterns(2, closed=True), seed=seeds)
def test_cholesky_calculus_is_exact_on_integers(named: tuple[str, Pattern], seed: int) -> None:
    pattern, rng = named[1], np.random.default_rng(seed)
    factor = small_integers(rng, pattern, DIAGONAL)
    v, x = integers(rng, pattern.nnz), integers(rng, pattern.nnz)
    L, V, X, on = dense(pattern, factor), dense(pattern, v), dense(pattern, x), mask(pattern)
    assert_same(pattern, linalg.cholesky(pattern, linalg.gram(pattern, factor)), L)
    assert_same(pattern, adjoints.cholesky_jvp(pattern, factor, v), reference.linalg.cholesky_jvp(L, V, on))
    assert_same(pattern, adjoints.cholesky_vjp(pattern, factor, x), reference.linalg.cholesky_vjp(L, X, on))


@given(named=named_patterns(2), seed=seeds)
def test_inverse_calculus_is_exact_on_integers(named: tuple[str, Pattern], seed: int) -> None:
    pattern, rng = named[1], np.random.default_rng(seed)
    fill = pattern.filled()
    factor = small_integers(rng, pattern, DIAGONAL)
    sigma_bar, variances_bar = integers(rng, fill.nnz), integers(rng, pattern.n)
    L, G, on = dense(pattern, factor), dense(fill, sigma_bar), mask(pattern)
    expected = reference.linalg.selected_inverse(L, mask(fill))
    assert_same(fill, linalg.selected_inverse(pattern, factor), expected)
    expected = reference.linalg.selected_inverse_vjp(L, G, on)
    assert_same(pattern, adjoints.selected_inverse_vjp(pattern, factor, sigma_bar), expected)
    expected = reference.linalg.marginal_variances_vjp(L, variances_bar.astype(WIDE), on)
    assert_same(pattern, adjoints.marginal_variances_vjp(pattern, factor, variances_bar), expected)


def assert_same(pattern: Pattern, values: Array, expected: Array) -> None:
    np.testing.assert_array_equal(dense(pattern, values), expected)


# ---------------------------------------------------------------------- adjointness


@given(named=named_patterns(2), seed=seeds)
def test_gram_vjp_is_the_adjoint_of_gram_jvp(named: tuple[str, Pattern], seed: int) -> None:
    pattern, rng = named[1], np.random.default_rng(seed)
    a, b = small_integers(rng, pattern, DIAGONAL), integers(rng, pattern.nnz)
    v = integers(rng, pattern.gram().nnz)
    assert adjoints.gram_jvp(pattern, a, b) @ v == b @ adjoints.gram_vjp(pattern, a, v)


@given(named=named_patterns(3), seed=seeds, batch=st.sampled_from([(), (3,), (2, 20)]))
def test_cholesky_vjp_on_the_pattern_of_p_is_that_part_of_it(named, seed, batch) -> None:
    pattern, rng = named[1], np.random.default_rng(seed)
    filled = pattern.filled()
    factor = factor_values(rng, filled, batch, "plain", np.float64)
    x = rng.standard_normal((*batch, filled.nnz))
    part = adjoints.cholesky_vjp(filled, factor, x, on=pattern)
    whole = adjoints.cholesky_vjp(filled, factor, x)
    np.testing.assert_array_equal(part, whole.take(pattern.positions_in(filled), axis=-1))


@given(named=named_patterns(2, closed=True), seed=seeds)
def test_cholesky_vjp_is_the_adjoint_of_cholesky_jvp(named: tuple[str, Pattern], seed: int) -> None:
    pattern, rng = named[1], np.random.default_rng(seed)
    factor = small_integers(rng, pattern, DIAGONAL)
    v, x = integers(rng, pattern.nnz), integers(rng, pattern.nnz)
    assert adjoints.cholesky_jvp(pattern, factor, v) @ x == v @ adjoints.cholesky_vjp(pattern, factor, x)


@given(named=named_patterns(2, closed=True), seed=seeds)
def test_cholesky_jvp_undoes_gram_jvp(named: tuple[str, Pattern], seed: int) -> None:
    pattern, rng = named[1], np.random.default_rng(seed)
    factor, x = small_integers(rng, pattern, DIAGONAL), integers(rng, pattern.nnz)
    v = adjoints.gram_jvp(pattern, factor, x)
    np.testing.assert_array_equal(adjoints.cholesky_jvp(pattern, factor, v), x)
    x_bar = integers(rng, pattern.nnz)
    v_bar = adjoints.cholesky_vjp(pattern, factor, x_bar)
    np.testing.assert_array_equal(adjoints.gram_vjp(pattern, factor, v_bar), x_bar)


@given(named=named_patterns(2, closed=True), seed=seeds)
def test_the_selected_inverse_is_the_reverse_mode_of_cholesky_at_log_det(named: tuple[str, Pattern], seed: int) -> None:
    """log det P = 2 Σ log L_jj has L̄ = diag(2/L), and its gradient in stored P is Σ with off-diagonals doubled."""
    pattern, rng = named[1], np.random.default_rng(seed)
    factor = small_integers(rng, pattern, DIAGONAL)
    on_diagonal = pattern.rows == pattern.cols
    gradient = adjoints.cholesky_vjp(pattern, factor, np.where(on_diagonal, 2 / np.where(on_diagonal, factor, 1), 0))
    sigma = linalg.selected_inverse(pattern, factor)
    np.testing.assert_array_equal(gradient, np.where(on_diagonal, sigma, 2 * sigma))


@given(named=named_patterns(2, closed=True), seed=seeds)
def test_selected_inverse_vjp_is_the_formula_of_takahashi(named: tuple[str, Pattern], seed: int) -> None:
    """math.md, eq. 20: X = cholesky_jvp(L, Σ̄ with diagonal doubled), L̄ = −tril(Σ X) − diag(X_jj / L_jj²)."""
    pattern, rng = named[1], np.random.default_rng(seed)
    factor, sigma_bar = small_integers(rng, pattern, DIAGONAL), integers(rng, pattern.nnz)
    on_diagonal = pattern.rows == pattern.cols
    x = adjoints.cholesky_jvp(pattern, factor, np.where(on_diagonal, 2 * sigma_bar, sigma_bar))
    sigma = reference.linalg.inverse(dense(pattern, factor))
    product = -pattern.values_of(np.tril(sigma @ dense(pattern, x)) * mask(pattern))
    product[pattern.diagonal] -= x[pattern.diagonal] / factor[pattern.diagonal] ** 2
    np.testing.assert_array_equal(adjoints.selected_inverse_vjp(pattern, factor, sigma_bar), product)


@given(named=named_patterns(3), seed=seeds)
def test_variances_vjp_is_selected_inverse_vjp_on_the_diagonal(named: tuple[str, Pattern], seed: int) -> None:
    pattern, rng = named[1], np.random.default_rng(seed)
    assume(not pattern.is_chain)  # a chain's variances have recurrences of their own, bounded where values are tested
    factor = factor_values(rng, pattern, (3,), "plain", np.float64)
    variances_bar = rng.standard_normal((3, pattern.n))
    sigma_bar = np.zeros((3, pattern.filled().nnz))
    sigma_bar[..., pattern.filled().diagonal] = variances_bar
    np.testing.assert_array_equal(
        adjoints.marginal_variances_vjp(pattern, factor, variances_bar),
        adjoints.selected_inverse_vjp(pattern, factor, sigma_bar),
    )
