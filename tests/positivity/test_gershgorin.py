"""Gershgorin's discs by definition, with and without weights, and the theorem as a property."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given

import reference.linalg
from sparseggm import Chain, NonPositiveError, Pattern, ShapeError, gershgorin
from tests import numerics
from tests.ledger import check
from tests.strategies import PRECISIONS, Problem, precision_problems


@pytest.mark.property
@given(problem=precision_problems(kinds=PRECISIONS))
def test_discs_slack_and_bounds_are_those_of_the_dense_matrix(problem: Problem) -> None:
    P, pattern = problem.dense(symmetric=True), problem.pattern
    centres, radii = gershgorin.discs(pattern, problem.values)
    exact_centres, exact_radii = reference.linalg.discs(P)
    np.testing.assert_array_equal(centres, exact_centres)
    level = numerics.rounding(pattern.n, problem.dtype)
    check("gershgorin.discs", problem.family, problem.dtype, radii - exact_radii, level * exact_radii)
    slack = gershgorin.slack(pattern, problem.values)
    bound = level * (exact_centres + exact_radii)
    check("gershgorin.slack", problem.family, problem.dtype, slack - reference.linalg.slack(P), bound)
    for computed, exact in zip(gershgorin.bounds(pattern, problem.values), reference.linalg.bounds(P), strict=True):
        check("gershgorin.bounds", problem.family, problem.dtype, computed - exact, bound.max(axis=-1))


@given(problem=precision_problems(kinds=PRECISIONS))
def test_every_eigenvalue_lies_in_the_bounds(problem: Problem) -> None:
    """To the backward error of LAPACK's eigenvalues, ‖ΔP‖ ≤ n² u ‖P‖ generously [Golub & Van Loan 2013, §8.3]."""
    P = problem.dense(symmetric=True).astype(np.float64)
    eigenvalues = np.linalg.eigvalsh(P)
    lower, upper = gershgorin.bounds(problem.pattern, problem.values)
    size = abs(P).sum(axis=-1).max(axis=-1)
    n = problem.pattern.n
    tolerance = size * (n**2 * numerics.unit_roundoff(np.float64) + numerics.gamma(n, problem.dtype))
    assert (eigenvalues[..., 0] >= lower - tolerance).all()
    assert (eigenvalues[..., -1] <= upper + tolerance).all()


def test_the_documented_example() -> None:
    chain = Chain(3).precision_pattern
    precision = np.array([2.0, -1.0, 3.0, 0.5, 1.0])
    centres, radii = gershgorin.discs(chain, precision)
    assert centres.tolist() == [2.0, 3.0, 1.0]
    assert radii.tolist() == [1.0, 1.5, 0.5]
    assert gershgorin.slack(chain, precision).tolist() == [1.0, 1.5, 0.5]
    assert tuple(map(float, gershgorin.bounds(chain, precision))) == (0.5, 4.5)


def test_a_wrong_size_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"precision must end in 5, the nnz of the pattern, got \(2, 4\)\.$"):
        gershgorin.slack(Chain(3).precision_pattern, np.ones((2, 4)))


@pytest.mark.property
@given(problem=precision_problems(kinds=PRECISIONS))
def test_weights_x_give_the_discs_of_the_similar_matrix_with_entries_p_ij_x_j_over_x_i(problem: Problem) -> None:
    P, pattern = problem.dense(symmetric=True), problem.pattern
    weights = 2.0 ** problem.rng.uniform(-3, 3, (*problem.other_batch, pattern.n)).astype(problem.dtype)
    similar = P * (weights[..., None, :].astype(numerics.WIDE) / weights[..., :, None])
    centres, radii = gershgorin.discs(pattern, problem.values, weights)
    exact_centres, exact_radii = reference.linalg.discs(similar)
    np.testing.assert_array_equal(*np.broadcast_arrays(centres, exact_centres))
    bound = numerics.rounding(pattern.n + 2, problem.dtype) * exact_radii + pattern.n * numerics.underflow(
        problem.dtype
    )
    check("gershgorin.discs, weights", problem.family, problem.dtype, radii - exact_radii, bound)


@pytest.mark.parametrize("bad", [-1.0, 0.0, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["discs", "slack", "bounds", "condition_bound"])
@pytest.mark.parametrize("convert", [np.array, torch.tensor], ids=["numpy", "torch"])
def test_weights_that_are_not_positive_prove_nothing(convert, name, bad: float) -> None:
    """[[1, 2], [2, 1]] is indefinite, and weights (1, −1) would give it the slack 3."""
    precision, weights = convert([1.0, 2.0, 1.0]), convert([[1.0, 1.0], [1.0, bad]])
    message = (
        rf"^gershgorin: weights must be positive and finite, got {bad:.3g} at column 1 of 2, batch element \(1,\)\.$"
    )
    with pytest.raises(NonPositiveError, match=message):
        getattr(gershgorin, name)(Chain(2).precision_pattern, precision, weights)


@pytest.mark.parametrize("bad", [-1.0, 0.0, torch.nan])
def test_where_weights_cannot_be_read_bad_ones_prove_nothing(bad: float) -> None:
    pattern, precision = Chain(2).precision_pattern, torch.tensor([3.0, 1.0, 3.0])
    slacks = torch.func.vmap(lambda x: gershgorin.slack(pattern, precision, x))(torch.tensor([[1.0, 1.0], [1.0, bad]]))
    assert slacks[0].tolist() == [2.0, 2.0]
    assert not slacks[1, 1] > 0


@given(problem=precision_problems(kinds=PRECISIONS))
def test_the_condition_number_is_bounded_where_the_slack_is_positive_and_nothing_is_claimed_elsewhere(
    problem: Problem,
) -> None:
    lower, upper = gershgorin.bounds(problem.pattern, problem.values)
    bound = gershgorin.condition_bound(problem.pattern, problem.values)
    assert bound.dtype == problem.dtype
    np.testing.assert_array_equal(np.isinf(bound), ~(lower > 0))
    proven = np.isfinite(bound)
    np.testing.assert_array_equal(bound[proven], upper[proven] / lower[proven])


def test_weights_prove_a_matrix_that_is_dominant_only_when_scaled() -> None:
    """P = D M D with M = [[1, 1/2], [1/2, 1]], D = diag(1, 4): row sums prove nothing, those of D P D⁻¹ everything."""
    pattern, precision, scales = Chain(2).precision_pattern, np.array([1.0, 2.0, 16.0]), np.array([1.0, 4.0])
    assert np.isinf(gershgorin.condition_bound(pattern, precision))
    assert gershgorin.slack(pattern, precision, 1 / scales).tolist() == [0.5, 8.0]
    assert float(gershgorin.condition_bound(pattern, precision, weights=1 / scales)) == 24 / 0.5


def test_one_node_is_its_own_condition() -> None:
    assert float(gershgorin.condition_bound(Pattern.from_edges(1, []), np.array([3.0]))) == 1.0


def test_weights_of_a_wrong_size_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"^gershgorin: weights must end in 3, the nodes, got \(2,\)\.$"):
        gershgorin.discs(Chain(3).precision_pattern, np.ones(5), np.ones(2))
