"""Identities that need no oracle.

Each is exact in floating point, so it is asserted to the last bit, or says how its error is bounded.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sparseggm import BlockChain, Chain, ExtendedGrid, GaussianGraphicalModel, Grid, Pattern, linalg
from tests import numerics
from tests.numerics import WIDE, Array
from tests.strategies import dense, dtypes, factor_values, named_patterns, precision_values, seeds
from tests.verbs import VERBS, arguments

each_verb = pytest.mark.parametrize("verb", VERBS.values(), ids=list(VERBS))


def embedded(values: Array, pattern: Pattern, other: Pattern) -> Array:
    """The same matrix on a larger pattern."""
    out = np.zeros((*values.shape[:-1], other.nnz), values.dtype)
    out[..., pattern.positions_in(other)] = values
    return out


# ---------------------------------------------------------------------- powers of two scale exactly


@given(named=named_patterns(3, "precision"), seed=seeds, dtype=dtypes, k=st.integers(-8, 8))
def test_scaling_p_by_a_power_of_four_scales_l_by_its_root_to_the_last_bit(named, seed, dtype, k) -> None:
    pattern = named[1]
    precision = precision_values(np.random.default_rng(seed), pattern, (3,), "dominant", dtype)
    factor = linalg.cholesky(pattern, precision)
    scaled = linalg.cholesky(pattern, precision * precision.dtype.type(4.0**k))
    np.testing.assert_array_equal(scaled, factor * factor.dtype.type(2.0**k))
    sigma = linalg.selected_inverse(pattern.filled(), factor)
    np.testing.assert_array_equal(linalg.selected_inverse(pattern.filled(), scaled), sigma * sigma.dtype.type(4.0**-k))


@given(named=named_patterns(3), seed=seeds, c=st.floats(0.01, 100.0))
def test_log_det_of_a_multiple_is_log_det_and_n_log_c(named, seed, c) -> None:
    """logdet(c P) = logdet P + n log c, within the bounds of both log determinants and n u for √c L."""
    pattern = named[1]
    factor = factor_values(np.random.default_rng(seed), pattern, (), "wide range", np.float64)
    scaled = factor * math.sqrt(c)
    difference = linalg.logdet(pattern, scaled).astype(WIDE) - linalg.logdet(pattern, factor)
    bounds = sum(numerics.logdet_bound(dense(pattern, values), np.float64) for values in (factor, scaled))
    expected = pattern.n * np.log(WIDE(c))
    assert abs(difference - expected) <= bounds + 4 * pattern.n * numerics.unit_roundoff(np.float64)


# ---------------------------------------------------------------------- adjoint pairs


@given(named=named_patterns(2), seed=seeds)
def test_matmul_t_and_solve_t_are_the_adjoints_of_matmul_and_solve(named, seed) -> None:
    """⟨L a, b⟩ = ⟨a, Lᵀ b⟩ and ⟨L⁻ᵀ a, b⟩ = ⟨a, L⁻¹ b⟩, exactly where L is of integers with powers of two as pivots."""
    pattern, rng = named[1], np.random.default_rng(seed)
    diagonal = rng.choice([0.5, 1.0, 2.0], pattern.nnz)
    factor = np.where(pattern.rows == pattern.cols, diagonal, rng.integers(-1, 2, pattern.nnz))
    a, b = rng.integers(-4, 5, (2, pattern.n)).astype(float)
    assert linalg.matmul(pattern, factor, a) @ b == a @ linalg.matmul_t(pattern, factor, b)
    assert linalg.solve_t(pattern, factor, a) @ b == a @ linalg.solve(pattern, factor, b)
    np.testing.assert_array_equal(linalg.solve(pattern, factor, linalg.matmul(pattern, factor, a)), a)
    np.testing.assert_array_equal(linalg.matmul_t(pattern, factor, linalg.solve_t(pattern, factor, b)), b)
    product = linalg.matmul(pattern, factor, linalg.matmul_t(pattern, factor, a))
    np.testing.assert_array_equal(linalg.symmetric_matmul(pattern.gram(), linalg.gram(pattern, factor), a), product)


@given(named=named_patterns(2), seed=seeds)
def test_outer_is_the_adjoint_of_matmul_in_its_factor(named, seed) -> None:
    """Σ_s ⟨x_s, L y_s⟩ = ⟨Σ_s x_s y_sᵀ, L⟩ for samples s that share L, exactly on integers."""
    pattern, rng = named[1], np.random.default_rng(seed)
    factor = rng.integers(-4, 5, (2, pattern.nnz)).astype(float)
    x, y = rng.integers(-4, 5, (2, 5, 2, pattern.n)).astype(float)
    shared = linalg.outer(pattern, x, y, batch_shape=(2,))
    np.testing.assert_array_equal((shared * factor).sum(), (x * linalg.matmul(pattern, factor, y)).sum())
    single = linalg.outer(pattern, x, y)
    np.testing.assert_array_equal(shared, single.sum(axis=0))
    np.testing.assert_array_equal(linalg.outer(pattern, x, y, (1,)), single.sum(axis=(0, 1), keepdims=True)[0])
    np.testing.assert_array_equal(linalg.outer(pattern, x, y, ()), single.sum(axis=(0, 1)))


# ---------------------------------------------------------------------- patterns do not matter


@given(named=named_patterns(3), seed=seeds, dtype=dtypes)
def test_explicit_zeros_change_nothing(named, seed, dtype) -> None:
    """A factor embedded in its fill or envelope gives the same numbers: products with zero are exact."""
    pattern, rng = named[1], np.random.default_rng(seed)
    factor = factor_values(rng, pattern, (2,), "plain", dtype)
    x = rng.standard_normal((2, pattern.n)).astype(dtype)
    for other in (pattern.filled(), pattern.envelope(), pattern.envelope().filled()):
        larger = embedded(factor, pattern, other)
        for verb in (linalg.matmul, linalg.matmul_t, linalg.solve, linalg.solve_t):
            np.testing.assert_array_equal(verb(other, larger, x), verb(pattern, factor, x))
        np.testing.assert_array_equal(linalg.logdet(other, larger), linalg.logdet(pattern, factor))
        product = embedded(linalg.gram(pattern, factor), pattern.gram(), other.gram())
        np.testing.assert_array_equal(linalg.gram(other, larger), product)


@given(named=named_patterns(3), seed=seeds, dtype=dtypes)
def test_the_sparse_factor_recursion_is_that_of_its_fill_to_the_last_bit(named, seed, dtype) -> None:
    pattern = named[1]
    assume(not pattern.is_chain)  # a chain's variances have recurrences of their own, bounded where values are tested
    factor = factor_values(np.random.default_rng(seed), pattern, (2,), "plain", dtype)
    fill = pattern.filled()
    sigma = linalg.selected_inverse(pattern, factor)
    np.testing.assert_array_equal(sigma, linalg.selected_inverse(fill, embedded(factor, pattern, fill)))
    np.testing.assert_array_equal(linalg.marginal_variances(pattern, factor), sigma[..., fill.diagonal])
    variances = np.ascontiguousarray(sigma[..., fill.diagonal])  # NumPy's order of summation depends on the layout
    total = variances.sum(axis=-1, dtype=np.float64)
    np.testing.assert_array_equal(linalg.trace_inverse(pattern, factor), total.astype(dtype))
    envelope = pattern.envelope().filled()
    wider = linalg.selected_inverse(pattern, factor, on=envelope)
    np.testing.assert_array_equal(wider[..., fill.positions_in(envelope)], sigma)


@given(named=named_patterns(3, "precision"), seed=seeds, dtype=dtypes)
def test_cholesky_on_a_larger_pattern_is_the_same_factor(named, seed, dtype) -> None:
    pattern = named[1]
    precision = precision_values(np.random.default_rng(seed), pattern, (2,), "dominant", dtype)
    envelope = pattern.envelope()
    expected = embedded(linalg.cholesky(pattern, precision), pattern.filled(), envelope.filled())
    np.testing.assert_array_equal(linalg.cholesky(envelope, embedded(precision, pattern, envelope)), expected)


@pytest.mark.parametrize("other", [ExtendedGrid(1, 7), ExtendedGrid(7, 1), BlockChain(7, 1), Grid(7, order=range(7))])
@each_verb
def test_a_grid_of_one_row_is_a_chain(verb, other) -> None:
    chain = Chain(7)
    values = arguments(verb, chain.factor_pattern, 3, (2,))
    np.testing.assert_array_equal(verb(other.factor_pattern, values), verb(chain.factor_pattern, values))


# ---------------------------------------------------------------------- Gaussians


@given(rows=st.integers(1, 3), cols=st.integers(1, 4), seed=seeds)
def test_the_samplers_map_on_the_identity_is_the_inverse_transposed_factor(rows: int, cols: int, seed: int) -> None:
    """Row k of colorize(I) is L⁻ᵀ e_k, in the caller's numbering; whiten undoes it exactly on dyadic numbers."""
    topology = Grid(rows, cols)
    pattern, rng = topology.factor_pattern, np.random.default_rng(seed)
    diagonal = rng.choice([0.5, 1.0, 2.0], pattern.nnz)
    factor = np.where(pattern.rows == pattern.cols, diagonal, rng.integers(-1, 2, pattern.nnz))
    gaussian = GaussianGraphicalModel(np.zeros(topology.n), factor=factor, topology=topology)
    L = dense(pattern, factor)[topology.inverse_order][:, topology.inverse_order]
    np.testing.assert_array_equal(gaussian.colorize(np.eye(topology.n)) @ L, np.eye(topology.n))
    np.testing.assert_array_equal(gaussian.whiten(gaussian.colorize(np.eye(topology.n))), np.eye(topology.n))


@given(named=named_patterns(3, "precision"), seed=seeds)
def test_a_variance_is_at_least_its_conditional_variance(named, seed) -> None:
    """Σ_jj ≥ 1 / P_jj, less the bound of the computed Σ_jj."""
    pattern = named[1]
    factor = factor_values(np.random.default_rng(seed), pattern, (), "plain", np.float64)
    variances = linalg.marginal_variances(pattern, factor)
    precision = linalg.gram(pattern, factor)[pattern.gram().diagonal]
    L = dense(pattern, factor)
    sigma = np.tril(variances.astype(WIDE) * np.eye(pattern.n))
    error = np.diagonal(numerics.inverse_forward_bound(L, np.maximum(abs(sigma), sigma.max()), pattern.n, np.float64))
    slack = numerics.gamma(pattern.n + 2, np.float64) * variances
    assert (variances * (1 + slack) + error >= 1 / precision).all()
