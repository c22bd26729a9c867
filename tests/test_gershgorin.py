"""Gershgorin's discs by definition, the theorem as a property, and the families that rest on it."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference.linalg
from sparseggm import Chain, ExtendedGrid, Grid, PatternError, ShapeError, Topology, gershgorin, linalg, parametrize
from tests import numerics
from tests.ledger import check
from tests.numerics import WIDE
from tests.strategies import PRECISIONS, Problem, dense, precision_problems
from tests.topologies import topologies

seeds = st.integers(0, 2**32 - 1)


# ---------------------------------------------------------------------- discs


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


# ---------------------------------------------------------------------- families

factor_free = topologies().filter(lambda topology: topology.is_factor_free)
batches = st.sampled_from([(), (1,), (3, 2), (0,)])
dtypes = st.sampled_from(["float32", "float64"])


@given(topology=factor_free, seed=seeds, batch=batches, dtype=dtypes)
def test_factor_takes_the_inputs_as_l_with_a_bounded_log_diagonal(topology: Topology, seed, batch, dtype) -> None:
    rng = np.random.default_rng(seed)
    inputs = (3 * rng.standard_normal((*batch, parametrize.factor.num_inputs(topology)))).astype(dtype)
    values = parametrize.factor(topology, inputs)
    pattern = topology.factor_pattern
    on_diagonal = pattern.rows == pattern.cols
    exact = np.where(on_diagonal, bounded_exp(inputs), inputs)
    assert values.dtype == dtype
    check("parametrize.factor", type(topology).__name__, dtype, values - exact, exp_bound(exact, dtype))
    np.testing.assert_array_equal(values[..., ~on_diagonal], inputs[..., ~on_diagonal])


@given(topology=topologies(), seed=seeds, batch=batches, dtype=dtypes)
def test_dominant_takes_the_couplings_as_given_and_tops_up_the_diagonal(topology: Topology, seed, batch, dtype) -> None:
    rng, n = np.random.default_rng(seed), topology.n
    inputs = (3 * rng.standard_normal((*batch, parametrize.dominant.num_inputs(topology)))).astype(dtype)
    diagonal, couplings = topology.unpack(parametrize.dominant(topology, inputs))
    assert diagonal.dtype == dtype
    np.testing.assert_array_equal(couplings, inputs[..., n:])
    radii = np.zeros((*batch, n), WIDE)
    for e, ends in enumerate(topology.edges):
        radii[..., ends] += abs(couplings[..., e : e + 1]).astype(WIDE)
    exact = bounded_exp(inputs[..., :n]) + radii
    bound = exp_bound(exact, dtype) + numerics.rounding(n, dtype) * exact
    check("parametrize.dominant", type(topology).__name__, dtype, diagonal - exact, bound)


def bounded_exp(d: numerics.Array) -> numerics.Array:
    """exp(5 tanh(d / 5)) in WIDE."""
    return np.exp(5 * np.tanh(d.astype(WIDE) / 5))


def exp_bound(exact: numerics.Array, dtype: str) -> numerics.Array:
    """A relative error of ≤ 4 roundings in an exponent of size ≤ 5, and one of exp, each function within 2 units."""
    return 2 * numerics.rounding(4 * 5 + 1, np.dtype(dtype)) * abs(exact)


@given(topology=topologies(), seed=seeds, scale=st.sampled_from([0.1, 1.0, 30.0]))
def test_dominant_is_positive_definite_with_the_slack_it_promises(topology: Topology, seed, scale) -> None:
    inputs = scale * np.random.default_rng(seed).standard_normal((4, parametrize.dominant.num_inputs(topology)))
    precision = parametrize.dominant(topology, inputs)
    linalg.cholesky(topology.precision_pattern, precision)
    slack = gershgorin.slack(topology.precision_pattern, precision)
    promised = np.exp(5 * np.tanh(inputs[..., : topology.n] / 5))[..., topology.order]
    diagonal = precision[..., topology.precision_pattern.diagonal]
    tolerance = exp_bound(promised, "float64") + numerics.rounding(2 * topology.n, np.float64) * diagonal
    assert (abs(slack - promised) <= tolerance).all()


@given(topology=topologies(), dtype=dtypes)
def test_zero_inputs_are_the_identity(topology: Topology, dtype: str) -> None:
    zeros = np.zeros(parametrize.dominant.num_inputs(topology), dtype)
    P = dense(topology.precision_pattern, parametrize.dominant(topology, zeros), symmetric=True)
    np.testing.assert_array_equal(P, np.eye(topology.n))
    if topology.is_factor_free:
        zeros = np.zeros(parametrize.factor.num_inputs(topology), dtype)
        L = dense(topology.factor_pattern, parametrize.factor(topology, zeros))
        np.testing.assert_array_equal(L, np.eye(topology.n))


def test_extreme_inputs_stay_within_e_to_the_five() -> None:
    topology = Chain(2)
    values = parametrize.factor(topology, np.array([1e30, 0.0, -1e30]))
    np.testing.assert_allclose(values, [np.exp(5), 0.0, np.exp(-5)], rtol=2 * np.finfo(float).eps * 5)


def test_numbers_of_inputs() -> None:
    assert parametrize.factor.num_inputs(ExtendedGrid(4, 4)) == 40
    assert parametrize.dominant.num_inputs(Grid(4, 4)) == 16 + 24
    assert parametrize.dominant.num_inputs(ExtendedGrid(4, 4)) == 16 + 33


def test_families_say_what_they_need() -> None:
    with pytest.raises(PatternError, match=re.escape("parametrize.factor: Grid(2, 2) is not factor-free")):
        parametrize.factor.num_inputs(Grid(2, 2))
    with pytest.raises(ShapeError, match=re.escape("parametrize.factor: inputs must end in 5, got shape (2, 4).")):
        parametrize.factor(Chain(3), np.ones((2, 4)))
    with pytest.raises(ShapeError, match=re.escape("parametrize.dominant: inputs must end in 8, got shape (2, 4).")):
        parametrize.dominant(Grid(2, 2), np.ones((2, 4)))
