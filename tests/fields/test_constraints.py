"""Gaussians on a subspace: dense moments and densities, draws on it, the limit of observations, and what is refused."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

import reference.fields
import sparseggm.torch
from sparseggm import Chain, GaussianGraphicalModel, Grid, NotPositiveDefiniteError, PatternError, ShapeError, Star
from sparseggm.errors import NonFiniteError
from sparseggm.fields import Constrained, LinearObservation, constrain
from tests.gaussian_bounds import covariance_of, inverse_error, loc_of
from tests.numerics import WIDE, Array, rounding
from tests.strategies import gaussians, seeds

FLOAT64 = np.float64
KINDS = pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])


@st.composite
def constrained(draw: st.DrawFn) -> tuple[GaussianGraphicalModel, Array, Array]:
    """A Gaussian of two nodes or more, some rows, one of them a sum, and values in batches."""
    g = draw(gaussians(dtype="float64").filter(lambda g: g.n > 1 and 0 not in g.batch_shape))
    rng = np.random.default_rng(draw(seeds))
    k = draw(st.integers(1, min(3, g.n - 1)))
    matrix = np.concatenate([np.ones((1, g.n)), rng.standard_normal((k - 1, g.n))])
    batch = draw(st.sampled_from([(), g.batch_shape, (2, *(1,) * len(g.batch_shape))]))
    return g, matrix, rng.standard_normal((*batch, k))


def condition_of(g: GaussianGraphicalModel, matrix: Array) -> Any:
    """The condition number of A Σ Aᵀ, for which the dense solve of G answers."""
    return np.linalg.cond((matrix @ covariance_of(g) @ matrix.T).astype(FLOAT64)).max(initial=1)


@given(case=constrained())
def test_moments_are_those_of_the_dense_gaussian(case: tuple[GaussianGraphicalModel, Array, Array]) -> None:
    """Within the error of Σ, grown by the condition number of G: means by deviations, variances by variances."""
    g, matrix, values = case
    found = constrain(g, matrix, values)
    mean, sigma = reference.fields.constrain(loc_of(g), covariance_of(g), matrix.astype(WIDE), values.astype(WIDE))
    exact, error = inverse_error(g)
    relative = (error / np.sqrt(exact.diagonal(0, -2, -1)[..., None] * exact.diagonal(0, -2, -1)[..., None, :])).max()
    level = 50 * (relative + rounding(g.n**2, FLOAT64)) * condition_of(g, matrix)
    variances = np.diagonal(exact, axis1=-2, axis2=-1)
    assert (abs(found.variance - np.diagonal(sigma, axis1=-2, axis2=-1)) <= level * variances).all()
    size = abs(mean).max() + abs(loc_of(g)).max() + abs(values).max()
    assert (abs(found.mean - mean) <= level * size * np.sqrt(variances.max() / variances.min())).all()


@given(case=constrained(), seed=seeds)
def test_draws_and_the_mean_lie_on_the_subspace_to_rounding(
    case: tuple[GaussianGraphicalModel, Array, Array], seed: int
) -> None:
    g, matrix, values = case
    found = constrain(g, matrix, values)
    for z in (found.mean, found.project(g.sample(rng=seed))):
        residual = abs(z.astype(WIDE) @ matrix.T - values)
        spread = np.sqrt(np.diagonal(covariance_of(g), axis1=-2, axis2=-1)).max()  # intermediate sizes
        size = (abs(z) + spread + abs(g.loc).max()) @ abs(matrix).T + abs(values)
        assert (residual <= 20 * g.n * rounding(g.n, FLOAT64) * size * max(1, condition_of(g, matrix) * 1e-8)).all()


def test_samples_have_the_moments_of_the_constrained_gaussian() -> None:
    g = GaussianGraphicalModel(np.array([1.0, 2, 3]), factor=np.array([1, 0.5, 1, -0.5, 1]), topology=Chain(3))
    found = constrain(g, np.ones((1, 3)), 0.0)
    z = found.sample(20_000, rng=0)
    assert abs(z.sum(axis=-1)).max() < 1e-13
    np.testing.assert_allclose(z.mean(axis=0), found.mean, atol=4 * np.sqrt(found.variance.max() / 20_000))
    np.testing.assert_allclose(z.var(axis=0), found.variance, rtol=0.05)


@pytest.mark.parametrize("k", [1, 2])
def test_the_density_is_that_of_coordinates_on_the_subspace(k: int) -> None:
    """In an orthonormal basis of the null space of A, whose volume is that of the subspace."""
    topology = Grid(2, 2)
    P = np.diag(np.full(4, 3.0))
    P[tuple(topology.edges.T)] = P[tuple(topology.edges.T[::-1])] = -0.7
    g = GaussianGraphicalModel.from_precision(np.arange(4.0), precision=topology.pack(P), topology=topology)
    matrix = np.array([[1.0, 1, 1, 1], [2, 0, -1, 0]])[:k]
    values = np.array([1.0, -2])[:k]
    found = constrain(g, sp.csr_array(matrix), values)
    basis = np.linalg.svd(matrix)[2][k:]
    mean, sigma = reference.fields.constrain(g.loc, np.linalg.inv(P), matrix, values)
    x = found.project(np.array([[0.3, 1, -1, 2], [0, 0, 1, 1.0]]))
    dense = scipy.stats.multivariate_normal(np.zeros(4 - k), basis @ sigma @ basis.T)
    np.testing.assert_allclose(found.log_prob(x), dense.logpdf((x - mean) @ basis.T), rtol=1e-12)
    assert found.log_prob(x + 1e-3).tolist() == [-np.inf, -np.inf]


def test_a_constraint_is_the_limit_of_an_observation() -> None:
    """The observed mean and variance differ from the constrained by O(variance)."""
    g = GaussianGraphicalModel(np.arange(5.0), factor=np.linspace(1, 2, 9), topology=Star(5))
    matrix, e = np.array([[1.0, 1, 1, 1, 1], [0, 1, 0, 0, -1]]), np.array([1.0, 2.0])
    plan, found = LinearObservation(g.graph, matrix), constrain(g, matrix, e)
    for variance in (1e-4, 1e-6):
        posterior = plan.posterior(g, e, variance)
        assert 0 < abs(posterior.loc - found.mean).max() < 10 * variance
        assert 0 < abs(posterior.variance - found.variance).max() < 10 * variance
        assert abs(plan.log_evidence(g, e, variance) - found.log_density) < 100 * variance


def test_observing_and_constraining_commute() -> None:
    g = GaussianGraphicalModel(np.arange(4.0), factor=np.linspace(1, 2, 7), topology=Chain(4))
    matrix, y = np.ones((1, 4)), np.array([0.5, -1.0])
    found = constrain(g, matrix, 0.0)
    posterior = found.observe([0, 2], y, 0.3)
    both = np.concatenate([matrix, np.eye(4)[[0, 2]]])
    noise = np.diag([0, 0.3, 0.3])
    sigma = covariance_of(g).astype(FLOAT64)
    gain = sigma @ both.T @ np.linalg.inv(both @ sigma @ both.T + noise)
    np.testing.assert_allclose(posterior.mean, g.loc + gain @ ([0, *y] - both @ g.loc), rtol=1e-12)
    np.testing.assert_allclose(posterior.variance, np.diagonal(sigma - gain @ both @ sigma), rtol=1e-11)
    mean, inside = reference.fields.constrain(g.loc, sigma, matrix, np.zeros(1))
    exact = scipy.stats.multivariate_normal(mean[[0, 2]], inside[np.ix_([0, 2], [0, 2])] + 0.3 * np.eye(2)).logpdf(y)
    np.testing.assert_allclose(found.log_evidence([0, 2], y, 0.3), exact, rtol=1e-12)


@KINDS
def test_samples_have_the_batch_of_gaussian_and_values(kind: Any) -> None:
    c = constrain(pair_of_nodes(kind), [[1.0, 1.0]], kind(np.arange(5.0)[:, None]))
    many, one = c.sample((4,)), c.sample()
    assert tuple(many.shape) == (4, 5, 2)
    assert tuple(one.shape) == (5, 2)
    np.testing.assert_allclose(np.asarray(many.sum(-1)), np.broadcast_to(np.arange(5.0), (4, 5)), atol=1e-14)
    assert len(np.unique(np.asarray(one[:, 0] - one[:, 1]))) == 5  # each with noise of its own


def test_an_empty_batch_stays_one() -> None:
    g = GaussianGraphicalModel(np.zeros((0, 3)), factor=np.ones(5), topology=Chain(3))
    found = constrain(g, np.ones((1, 3)), 0.0)
    assert found.mean.shape == (0, 3)
    assert found.log_prob(np.array([1.0, 0, -1])).shape == (0,)


def test_a_node_that_is_determined_has_no_variance() -> None:
    g = GaussianGraphicalModel(np.zeros(3), factor=np.ones(5), topology=Chain(3))
    found = constrain(g, np.array([[0, 1.0, 0]]), 2.0)
    given = g.condition([1], [2.0])
    np.testing.assert_allclose(found.mean[[0, 2]], given.loc, rtol=1e-14)
    np.testing.assert_allclose(found.variance, [given.variance[0], 0, given.variance[1]], rtol=1e-14, atol=1e-15)


# ---------------------------------------------------------------------- bad input


G = GaussianGraphicalModel(np.zeros(3), factor=np.ones(5), topology=Chain(3))


@pytest.mark.parametrize(
    ("matrix", "values", "error", "message"),
    [
        (np.ones((1, 4)), 0, ShapeError, "constrain: matrix must be (k, 3)"),
        (np.ones((1, 3)), [1.0, 2], ShapeError, "constrain: values must broadcast to (..., 1), got shape (2,)"),
        (np.zeros((1, 3)), 0, PatternError, "constrain: row 0 of the matrix is zero. Leave it out"),
        ([[1.0, 1, 1], [2, 2, 2]], [1, 2], PatternError, "constrain: rows 0, 1 of the matrix are linearly dependent"),
        (np.concatenate([np.eye(3), np.ones((1, 3))]), 0, PatternError, "are linearly dependent to working precision"),
        (np.ones((1, 3)), np.nan, NonFiniteError, "constrain: values must be finite"),
        (np.ones((1, 3)), np.inf, NonFiniteError, "constrain: values must be finite"),
    ],
)
def test_constraints_that_do_not_fit_are_refused(
    matrix: Any, values: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        constrain(G, np.asarray(matrix, np.float64), values)


@pytest.mark.parametrize("name", ["project", "log_prob"])
def test_points_that_do_not_fit_are_refused(name: str) -> None:
    factor = torch.tensor(np.asarray(G.factor))
    tensors = sparseggm.torch.GaussianGraphicalModel(torch.tensor(G.loc), factor=factor, topology=G.topology)
    for of in (G, tensors):
        method = getattr(constrain(of, np.ones((1, 3)), 0.0), name)
        with pytest.raises(ShapeError, match=f"{name}: needs points that end in 3, got shape"):
            method([1.0, 2.0])
        with pytest.raises(NonFiniteError, match=f"{name}: needs finite points"):
            method([1.0, math.nan, 0.0])
        np.testing.assert_array_equal(method([1, 2, -3]), method([1.0, 2.0, -3.0]))


def test_a_float32_gaussian_projects_float64_points() -> None:
    loc, factor = torch.tensor(G.loc).float(), torch.tensor(np.asarray(G.factor)).float()
    narrow = constrain(sparseggm.torch.GaussianGraphicalModel(loc, factor=factor, topology=G.topology), [[1, 1, 1]], 0)
    z = narrow.project(torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64))
    assert z.dtype == torch.float64
    assert abs(float(z.sum())) < 1e-15


def test_dependent_rows_are_named_redundant_or_contradictory() -> None:
    rows = np.array([[1.0, 1, 1], [2, 2, 2]])
    with pytest.raises(PatternError, match="redundant"):
        constrain(G, rows, [1.0, 2.0])
    with pytest.raises(
        PatternError, match=r"contradictory: a combination of them is zero, that of their values is 0\.408"
    ):
        constrain(G, rows, [1.0, 0.0])


def test_rows_that_the_gaussian_determines_already_are_refused() -> None:
    """Σ has a variance ten million times smaller than another: in float32 z₀ and z₀ + z₁ are one."""
    scale = np.array([1.0, 0, 1e5, 0, 1.0], np.float32)
    g = GaussianGraphicalModel(np.zeros(3, np.float32), factor=scale, topology=Chain(3))
    with pytest.raises(NotPositiveDefiniteError, match=r"^constrain: A Σ Aᵀ is singular to working precision"):
        constrain(g, np.array([[1, 0, 0], [1, 1, 0]]), 0)


@KINDS
def test_of_a_batch_the_element_that_is_singular_is_named(kind: Any) -> None:
    make = GaussianGraphicalModel if kind is np.asarray else sparseggm.torch.GaussianGraphicalModel
    factor = np.array([[1.0, 0, 1.0, 0, 1.0], [1.0, 0, 1e9, 0, 1.0]])
    g = make(kind(np.zeros(3)), factor=kind(factor), topology=Chain(3))
    with pytest.raises(NotPositiveDefiniteError, match=r"to working precision, batch element \(1,\)") as raised:
        constrain(g, np.array([[1, 0, 0], [1, 1, 0]]), 0)
    assert raised.value.batch_index == (1,)
    assert raised.value.column == 1
    assert 0 <= raised.value.pivot < 1e-15


def test_other_objects_are_refused() -> None:
    with pytest.raises(TypeError, match=r"^constrain: g must be a GaussianGraphicalModel, got str"):
        constrain("g", np.ones((1, 3)), 0)
    assert isinstance(constrain(G, np.ones((1, 3), np.int64), 0), Constrained)


def pair_of_nodes(kind: Any) -> Any:
    """N(0, I) on a chain of two nodes, of arrays or tensors."""
    make = GaussianGraphicalModel if kind is np.asarray else sparseggm.torch.GaussianGraphicalModel
    return make(kind(np.zeros(2)), factor=kind(np.array([1.0, 0.0, 1.0])), topology=Chain(2))


@KINDS
@pytest.mark.parametrize("size", [1e-200, 1e-160, 1e160])
def test_rows_whose_squares_leave_the_range_are_refused(kind: Any, size: float) -> None:
    """Of rows of 1e-160 A Σ Aᵀ is subnormal: its four digits would be all that the variances have."""
    with pytest.raises(NonFiniteError, match=r"A Σ Aᵀ must be in the range of .*float64, got .* in row 1"):
        constrain(pair_of_nodes(kind), [[1.0, 1.0], [size, -size]], 0.0)


@KINDS
def test_results_beyond_the_dtype_are_refused(kind: Any) -> None:
    moved = constrain(pair_of_nodes(kind), [[1.0, 1.0]], 1e200)
    with pytest.raises(NonFiniteError, match=r"^project: the arguments are finite but the result overflows"):
        moved.project(kind(np.full(2, 1e308)))
    with pytest.raises(NonFiniteError, match=r"^log_density: the arguments are finite but the result overflows"):
        _ = moved.log_density
    with pytest.raises(NonFiniteError, match=r"^constrain: the arguments are finite but the result overflows"):
        constrain(pair_of_nodes(kind).moved_to(kind(np.full(2, 1.5e308))), [[1.0, 1.0]], 0.0)
