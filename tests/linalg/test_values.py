"""Each verb of `linalg` against the equation that defines it, with the theorem's bound as tolerance.

For a solve, a factorisation and the selected inverse that is the residual of the equation, in WIDE; for a product, a
sum and a variance the difference from `reference`.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference.linalg
from sparseggm import Chain, Diagonal, DTypeError, Grid, NotPositiveDefiniteError, Pattern, linalg, parametrize
from tests import numerics
from tests.ledger import check
from tests.numerics import WIDE, smallest, unit_roundoff
from tests.strategies import (
    MODERATE_FACTORS,
    Problem,
    dense,
    factor_problems,
    factor_values,
    mask,
    precision_problems,
)

pytestmark = pytest.mark.property


# ---------------------------------------------------------------------- products and solves


@given(problem=factor_problems())
def test_matmul_errs_by_at_most_one_rounding_a_term(problem: Problem) -> None:
    x = problem.vector()
    y = linalg.matmul(problem.pattern, problem.values, x)
    L, x = problem.dense(), x.astype(WIDE)
    bound = numerics.product_bound(L, x, problem.pattern.longest_row, problem.dtype)
    check("matmul", problem.family, problem.dtype, y - reference.linalg.matmul(L, x), bound)


@given(problem=factor_problems())
def test_matmul_t_errs_by_at_most_one_rounding_a_term(problem: Problem) -> None:
    x = problem.vector()
    y = linalg.matmul_t(problem.pattern, problem.values, x)
    L, x = problem.dense(), x.astype(WIDE)
    bound = numerics.product_bound(L.swapaxes(-1, -2), x, problem.pattern.longest_column, problem.dtype)
    check("matmul_t", problem.family, problem.dtype, y - reference.linalg.matmul_t(L, x), bound)


@given(problem=precision_problems())
def test_symmetric_matmul_errs_by_at_most_one_rounding_a_term(problem: Problem) -> None:
    x = problem.vector()
    y = linalg.symmetric_matmul(problem.pattern, problem.values, x)
    P, x = problem.dense(symmetric=True), x.astype(WIDE)
    terms = int((mask(problem.pattern) | mask(problem.pattern).T).sum(axis=-1).max())
    bound = numerics.product_bound(P, x, terms, problem.dtype)
    check("symmetric_matmul", problem.family, problem.dtype, y - reference.linalg.symmetric_matmul(P, x), bound)


@given(problem=factor_problems())
def test_solve_is_backward_stable(problem: Problem) -> None:
    rhs = problem.vector()
    x = linalg.solve(problem.pattern, problem.values, rhs).astype(WIDE)
    L = problem.dense()
    bound = numerics.solve_bound(L, x, problem.pattern.longest_row, problem.dtype)
    check("solve", problem.family, problem.dtype, reference.linalg.matmul(L, x) - rhs, bound)


@given(problem=factor_problems())
def test_solve_t_is_backward_stable(problem: Problem) -> None:
    rhs = problem.vector()
    x = linalg.solve_t(problem.pattern, problem.values, rhs).astype(WIDE)
    L = problem.dense()
    bound = numerics.solve_bound(L.swapaxes(-1, -2), x, problem.pattern.longest_column, problem.dtype)
    check("solve_t", problem.family, problem.dtype, reference.linalg.matmul_t(L, x) - rhs, bound)


@given(problem=factor_problems(), summed=st.booleans())
def test_outer_sums_the_axes_its_batch_shape_lacks(problem: Problem, summed: bool) -> None:
    x, y = problem.vector(), problem.rng.standard_normal((*problem.batch, problem.pattern.n)).astype(problem.dtype)
    target = problem.batch if summed else None
    values = dense(problem.pattern, linalg.outer(problem.pattern, x, y, target))
    x, y = np.broadcast_arrays(x.astype(WIDE), y.astype(WIDE))
    terms = reference.linalg.outer(x, y, mask(problem.pattern))
    if summed:
        exact, size = sum_to(terms, problem.batch), sum_to(abs(terms), problem.batch)
    else:
        exact, size = terms, abs(terms)
    count = terms.size // max(exact.size, 1)
    level = numerics.rounding(count, np.float64) + unit_roundoff(problem.dtype)
    check("outer", problem.family, problem.dtype, values - exact, level * size + (count + 1) * smallest(problem.dtype))


def sum_to(terms: numerics.Array, batch: tuple[int, ...]) -> numerics.Array:
    """Sum (..., n, n) over the axes that `batch` lacks or has as 1."""
    terms = terms.sum(axis=tuple(range(terms.ndim - 2 - len(batch))))
    shared = tuple(axis for axis, side in enumerate(batch) if side == 1 and terms.shape[axis] != 1)
    return terms.sum(axis=shared, keepdims=True)


@given(seed=st.integers(0, 2**32 - 1))
def test_outer_forms_long_sums_in_float64(seed: int) -> None:
    """3000 terms in float32: a float32 accumulator would be some ten roundings off."""
    pattern, rng = Pattern.from_edges(2, [(1, 0)]), np.random.default_rng(seed)
    x, y = rng.uniform(0, 1, (2, 3000, 2)).astype(np.float32)
    values = linalg.outer(pattern, x, y, batch_shape=())
    exact = pattern.values_of(np.tril(np.einsum("si,sj->ij", x.astype(WIDE), y.astype(WIDE))))
    bound = (numerics.rounding(3000, np.float64) + unit_roundoff(np.float32)) * exact
    check("outer", "random", np.float32, values - exact, bound)


# ---------------------------------------------------------------------- factorisation


@given(problem=precision_problems())
def test_cholesky_is_backward_stable(problem: Problem) -> None:
    filled = problem.pattern.filled()
    L = dense(filled, linalg.cholesky(problem.pattern, problem.values))
    P = problem.dense(symmetric=True)
    bound = numerics.cholesky_bound(P, L, filled.longest_row, problem.dtype)
    check("cholesky", problem.family, problem.dtype, np.tril(reference.linalg.gram(L) - P), bound)


@given(problem=factor_problems())
def test_gram_errs_by_at_most_one_rounding_a_term(problem: Problem) -> None:
    P = dense(problem.pattern.gram(), linalg.gram(problem.pattern, problem.values))
    L, k = problem.dense(), problem.pattern.longest_row + 1
    bound = numerics.gram_bound(L, L / 2, k, problem.dtype) + numerics.halving_bound(L, problem.dtype)
    check("gram", problem.family, problem.dtype, P - np.tril(reference.linalg.gram(L)), bound)


@given(problem=factor_problems())
def test_logdet_is_accurate_to_its_last_place(problem: Problem) -> None:
    value = linalg.logdet(problem.pattern, problem.values)
    L = problem.dense()
    bound = numerics.logdet_bound(L, problem.dtype)
    check("logdet", problem.family, problem.dtype, value - reference.linalg.logdet(L), bound)


@given(problem=precision_problems(), copies=st.sampled_from([1, 3, 40]))
def test_precision_logdet_is_the_sum_over_the_pivots_of_cholesky(problem: Problem, copies: int) -> None:
    """Whose own error is another test's; the pivots are the same bits."""
    values = np.tile(problem.values, (copies, *[1] * problem.values.ndim))
    found = linalg.precision_logdet(problem.pattern, values)
    pivots = linalg.cholesky(problem.pattern, values)[..., problem.pattern.filled().diagonal].astype(WIDE)
    exact, n = 2 * np.log(pivots).sum(-1), problem.pattern.n
    bound = 2 * numerics.gamma(n + 3, np.float64) + 4 * unit_roundoff(np.float64) * abs(exact)
    if copies < 40:  # few rows go by the two verbs
        bound = bound + numerics.gamma(n + 1, np.float64) * 2 * abs(np.log(pivots)).sum(-1)
    bound = bound + unit_roundoff(problem.dtype) * (abs(exact) + bound)
    assert found.dtype == problem.dtype
    check("precision_logdet", problem.family, problem.dtype, found - exact, bound)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_precision_logdet_is_that_of_the_dense_matrix(dtype: str) -> None:
    topology = Grid(5, 5)
    P = parametrize.dominant(topology, np.random.default_rng(0).standard_normal((33, 65)).astype(dtype))
    dense_P = topology.precision_pattern.to_dense(P, symmetric=True).astype(np.float64)
    expected = reference.linalg.precision_logdet(dense_P)
    found = linalg.precision_logdet(topology.precision_pattern, P)
    np.testing.assert_allclose(found, expected, rtol=64 * unit_roundoff(dtype), atol=64 * unit_roundoff(dtype))


@given(problem=precision_problems())
def test_precision_solve_is_what_its_verbs_give(problem: Problem) -> None:
    """Of any pattern: their errors are other tests'."""
    pattern, filled = problem.pattern, problem.pattern.filled()
    rhs = np.random.default_rng(0).standard_normal(pattern.n).astype(problem.dtype)
    x, logdet = linalg.precision_solve(pattern, problem.values, rhs)
    L = linalg.cholesky(pattern, problem.values)
    np.testing.assert_array_equal(x, linalg.solve_t(filled, L, linalg.solve(filled, L, rhs)))
    np.testing.assert_array_equal(logdet, linalg.logdet(filled, L))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_precision_solve_is_that_of_the_dense_matrix(dtype: str) -> None:
    topology = Grid(5, 5)
    rng = np.random.default_rng(0)
    P = parametrize.dominant(topology, rng.standard_normal((3, 65)).astype(dtype))
    rhs = rng.standard_normal((2, 3, 25)).astype(dtype)
    dense_P = topology.precision_pattern.to_dense(P, symmetric=True).astype(np.float64)
    expected = reference.linalg.precision_solve(dense_P, rhs)
    for found, wanted in zip(linalg.precision_solve(topology.precision_pattern, P, rhs), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=256 * unit_roundoff(dtype) * abs(wanted).max())


@pytest.mark.parametrize("batch", [(), (40,)])
def test_precision_logdet_of_an_indefinite_matrix_raises_as_cholesky_does(batch: tuple[int, ...]) -> None:
    pattern = Grid(3, 3).precision_pattern
    P = np.zeros((*batch, pattern.nnz))
    P[..., pattern.diagonal] = 1.0
    P[-1 if batch else ..., pattern.diagonal[4]] = -2.0
    for verb in (linalg.precision_logdet, linalg.cholesky):
        message = rf"^{verb.__name__}: not positive definite: pivot -2 at column 4 of 9"
        with pytest.raises(NotPositiveDefiniteError, match=message):
            verb(pattern, P)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_fill_is_zero_below_the_stated_threshold_and_accurate_above(dtype: str) -> None:
    """Nodes 1 and 2 are joined to 0 by ε; eliminating it fills L_21 with −ε² (1 + O(ε²)), next to P_22 = 1."""
    pattern = Pattern.from_edges(3, [(1, 0), (2, 0)])
    root = float(np.sqrt(numerics.negligible(dtype)))
    u = unit_roundoff(dtype)
    for factor in (1e-3, 0.9, 1.1, 1e3):
        epsilon = np.dtype(dtype).type(root * factor)
        fill = linalg.cholesky(pattern, np.array([1, epsilon, epsilon, 1, 1], dtype))[4]
        if factor < 1:
            assert fill == 0
        else:
            assert abs(fill + WIDE(epsilon) ** 2) <= 8 * u * WIDE(epsilon) ** 2


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_covariances_are_zero_below_the_stated_threshold_and_accurate_above(dtype: str) -> None:
    """A chain with couplings −ε and unit pivots: Σ_20 = ε²."""
    pattern, dense_pattern = Chain(3).factor_pattern, Pattern.from_edges(3, [(1, 0), (2, 0), (2, 1)])
    root = float(np.sqrt(numerics.negligible(dtype)))
    u = unit_roundoff(dtype)
    for factor in (1e-3, 0.9, 1.1, 1e3):
        epsilon = np.dtype(dtype).type(root * factor)
        values = np.array([1, -epsilon, 1, -epsilon, 1], dtype)
        covariance = linalg.selected_inverse(pattern, values, on=dense_pattern)[2]
        if factor < 1:
            assert covariance == 0
        else:
            assert abs(covariance - WIDE(epsilon) ** 2) <= 8 * u * WIDE(epsilon) ** 2


@pytest.mark.parametrize(
    ("dtype", "exponent"),
    [
        *((np.float32, exponent) for exponent in (-148, -128, -127, 126, 127)),
        *((np.float64, exponent) for exponent in (-1020, -148, -127, 126, 128, 1020)),
    ],
)
def test_log_det_of_pivots_whose_product_would_leave_the_range(dtype, exponent: int) -> None:
    """Eight are multiplied before a logarithm is taken, unless one of them is too far from 1."""
    n = 43
    factor = np.full(n, np.ldexp(dtype(1.25), exponent))
    exact = 2 * np.log(factor.astype(WIDE)).sum()
    bound = numerics.logdet_bound_of(factor.astype(WIDE), dtype)
    assert abs(linalg.logdet(Diagonal(n).factor_pattern, factor) - exact) <= bound


def test_sums_over_a_million_nodes_are_accurate_in_float32() -> None:
    """Accumulated in float32, log det would be off by a nat and more, where its last place is 0.03."""
    n = 1_000_000
    pattern = Diagonal(n).factor_pattern
    factor = np.random.default_rng(0).uniform(0.5, 1.0, n).astype(np.float32)
    exact = 2 * np.log(factor.astype(WIDE)).sum()
    assert abs(linalg.logdet(pattern, factor) - exact) <= numerics.logdet_bound_of(factor.astype(WIDE), np.float32)
    exact = (1 / factor.astype(WIDE) ** 2).sum()
    bound = (3 * unit_roundoff(np.float32) + numerics.rounding(n, np.float64)) * exact  # 2 a term and 1 at the end
    assert abs(linalg.trace_inverse(pattern, factor) - exact) <= bound


# ---------------------------------------------------------------------- selected inverse


@given(problem=factor_problems())
def test_selected_inverse_solves_its_defining_equations(problem: Problem) -> None:
    fill, L = problem.pattern.filled(), problem.dense()
    sigma = dense(fill, linalg.selected_inverse(problem.pattern, problem.values), symmetric=True)
    residual = numerics.inverse_residual(L, sigma) * mask(fill)
    bound = numerics.inverse_bound(L, sigma, problem.pattern.longest_column, problem.dtype)
    check("selected_inverse", problem.family, problem.dtype, residual, bound)


@given(problem=factor_problems(kinds=MODERATE_FACTORS))
def test_selected_inverse_on_a_larger_pattern_is_the_inverse_there(problem: Problem) -> None:
    fill = problem.pattern.envelope().filled()
    sigma = dense(fill, linalg.selected_inverse(problem.pattern, problem.values, on=fill))
    exact = reference.linalg.inverse(problem.dense())
    bound = numerics.inverse_forward_bound(problem.dense(), exact, problem.pattern.longest_column, problem.dtype)
    check("selected_inverse on=", problem.family, problem.dtype, sigma - np.tril(exact) * mask(fill), bound)


@given(problem=factor_problems())
def test_marginal_variances_are_within_their_a_posteriori_bound(problem: Problem) -> None:
    variances = linalg.marginal_variances(problem.pattern, problem.values)
    bound = variance_bound(problem)
    exact = reference.linalg.marginal_variances(problem.dense())
    check("marginal_variances", problem.family, problem.dtype, variances - exact, bound)


@given(problem=factor_problems())
def test_trace_inverse_is_within_its_a_posteriori_bound(problem: Problem) -> None:
    trace = linalg.trace_inverse(problem.pattern, problem.values)
    bound, exact = variance_bound(problem), reference.linalg.marginal_variances(problem.dense())
    total = (abs(exact) + bound).sum(axis=-1)
    bound = bound.sum(axis=-1) + numerics.rounding(problem.pattern.n, np.float64) * total
    bound += numerics.stored(total, problem.dtype)
    check("trace_inverse", problem.family, problem.dtype, trace - exact.sum(axis=-1), bound)


def variance_bound(problem: Problem) -> numerics.Array:
    """Of diag Σ, by the recursion on absolute values; and the same in WIDE for the reference."""
    L, c = problem.dense(), problem.pattern.longest_column
    sigma = reference.linalg.inverse(L)
    bounds = (numerics.inverse_forward_bound(L, sigma, c, dtype) for dtype in (problem.dtype, WIDE))
    return sum(reference.linalg.diagonal(bound) for bound in bounds)


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 40),
    kind=st.sampled_from(["plain", "ill-conditioned", "wide range"]),
    dtype=st.sampled_from(["float32", "float64"]),
)
def test_variances_of_a_chain_are_relatively_accurate_whatever_its_condition(
    seed: int, n: int, kind: str, dtype: str
) -> None:
    pattern = Chain(n).factor_pattern
    values = factor_values(np.random.default_rng(seed), pattern, (7,), kind, np.dtype(dtype))
    variances = linalg.marginal_variances(pattern, values)
    exact = chain_variances(dense(pattern, values))
    bound = numerics.chain_variance_bound(dense(pattern, values), exact, np.dtype(dtype))
    check("marginal_variances, chain", "Chain", dtype, variances - exact, bound)


def chain_variances(factor: numerics.Array) -> numerics.Array:
    """The recurrence Σ_jj = (1 + L_{j+1,j}² Σ_{j+1,j+1}) / L_jj² in WIDE: positive terms, so exact to ~n u_WIDE."""
    variances = 1 / reference.linalg.diagonal(factor) ** 2
    for j in reversed(range(factor.shape[-1] - 1)):
        variances[..., j] *= 1 + factor[..., j + 1, j] ** 2 * variances[..., j + 1]
    return variances


def test_one_node_is_scalar_arithmetic() -> None:
    pattern = Pattern(1, [0, 1], [0])
    four, two = np.array([4.0]), np.array([2.0])
    assert linalg.cholesky(pattern, four) == 2.0
    assert linalg.gram(pattern, two) == 4.0
    assert linalg.solve(pattern, two, four) == linalg.solve_t(pattern, two, four) == 2.0
    assert linalg.matmul(pattern, two, four) == linalg.matmul_t(pattern, two, four) == 8.0
    assert linalg.symmetric_matmul(pattern, four, two) == 8.0
    assert linalg.outer(pattern, two, four) == 8.0
    assert linalg.selected_inverse(pattern, two) == linalg.marginal_variances(pattern, two) == 0.25
    assert linalg.trace_inverse(pattern, two) == 0.25
    assert linalg.logdet(pattern, two) == 2 * np.log(2.0)


def test_log_det_in_another_dtype_is_the_sum_before_it_is_rounded() -> None:
    pattern, factor = Diagonal(3).factor_pattern, np.array([2.0, 3.0, 5.0], np.float32)
    wide = linalg.logdet(pattern, factor, np.float64)
    assert wide.dtype == np.float64
    assert wide == linalg.logdet(pattern, factor.astype(np.float64))
    assert linalg.logdet(pattern, factor, "float32") == linalg.logdet(pattern, factor) == np.float32(wide)
    with pytest.raises(DTypeError, match=r"^logdet: dtype must be float32 or float64"):
        linalg.logdet(pattern, factor, np.int64)
