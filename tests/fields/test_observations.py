"""Observations through a matrix: against dense Gaussians, in two parts, of nodes alone; and what is refused."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given
from hypothesis import strategies as st

import reference.fields
import reference.gaussian
import reference.linalg
import sparseggm.torch
from sparseggm import (
    Chain,
    Cycle,
    Diagonal,
    DTypeError,
    GaussianGraphicalModel,
    Graph,
    Grid,
    NonFiniteError,
    NonPositiveError,
    NotPositiveDefiniteError,
    PatternError,
    Potential,
    ShapeError,
)
from sparseggm.fields import LinearObservation
from sparseggm.gaussian import designs
from tests import numerics
from tests.gaussian_bounds import (
    covariance_of,
    distance,
    energy,
    factor_of,
    factorisation_error,
    family,
    half_sum_bound,
    inverse_error,
    loc_of,
    logdet_bound,
    precision_error,
    precision_of,
    quadratic_bound,
    solution_bound,
    spread,
)
from tests.ledger import check
from tests.numerics import WIDE, Array, apply
from tests.strategies import gaussians, seeds

FLOAT64 = np.float64


@dataclass
class Case:
    """A Gaussian, a matrix with empty and full rows, and observations some of which may be missing."""

    g: GaussianGraphicalModel
    matrix: Array
    values: Array
    variance: Array

    @property
    def plan(self) -> LinearObservation:
        return LinearObservation(self.g.graph, self.matrix)

    @property
    def k(self) -> int:
        return len(self.matrix)

    @property
    def weights(self) -> Array:
        return np.asarray(1 / self.variance.astype(WIDE))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    g = draw(gaussians())
    rng = np.random.default_rng(draw(seeds))
    k, density = draw(st.integers(1, 6)), draw(st.sampled_from([0.2, 0.5, 1.0]))
    matrix = np.where(rng.random((k, g.n)) < density, rng.standard_normal((k, g.n)), 0).astype(g.dtype)
    batch = draw(st.sampled_from([(), g.batch_shape, (2, *(1,) * len(g.batch_shape))]))
    values = 3 * rng.standard_normal((*batch, k)).astype(g.dtype)
    variance = 10.0 ** rng.uniform(-2, 2, (*draw(st.sampled_from([(), batch])), k))
    variance[..., rng.random(k) < draw(st.sampled_from([0.0, 0.3]))] = np.inf
    return Case(g, matrix, values, variance.astype(g.dtype))


# ---------------------------------------------------------------------- bounds


@dataclass(frozen=True)
class Bound:
    """What a posterior may lose: of P + Aᵀ W A entrywise, of its pull, and of the residual y − A loc."""

    precision: Array
    pull: Array
    residual: Array


def bound_of(case: Case) -> Bound:
    """A rounded sum of `Aᵀ W A` has at most k products of four; the sum with P is rounded, and factorised."""
    g, A, W, dtype = case.g, abs(case.matrix.astype(WIDE)), case.weights, case.g.dtype
    gram = numerics.transpose(A) @ (W[..., None] * A)
    P = precision_of(g) + numerics.transpose(case.matrix) @ (W[..., None] * case.matrix.astype(WIDE))
    error = precision_error(g) + numerics.rounding(case.k + 5, dtype) * gram + factorisation_error(P, dtype)
    error = error + numerics.rounding(1, dtype) * abs(P)
    size = abs(case.values) + apply(A, abs(loc_of(g)))
    pull = numerics.rounding(case.k + g.n + 5, dtype) * apply(numerics.transpose(A), W * size)
    floor = (case.k + g.n + 4) * numerics.underflow(dtype)
    return Bound(error, pull + floor, numerics.rounding(g.n + 2, dtype) * size + floor)


def posterior_of(case: Case) -> tuple[Array, Array]:
    W = case.weights[..., None] * np.eye(case.k)
    matrix, values = case.matrix.astype(WIDE), case.values.astype(WIDE)
    return reference.fields.posterior(loc_of(case.g), precision_of(case.g), matrix, values, W)


def evidence_bound(case: Case, posterior: GaussianGraphicalModel) -> Array:
    """Of the three log determinants and the two squares, as the docstring of `log_evidence` says.

    With λ the eigenvalues of P⁻¹ P̂ − 1, Σ λ² ≤ δ², log det P̂ is off by Σ log (1 + λ), at most √n δ / (1 − δ). The
    squares are least at the exact mean, so that its error enters squared; what remains is their evaluation.
    """
    g, A, W, bound = case.g, abs(case.matrix.astype(WIDE)), case.weights, bound_of(case)
    mean, sigma = posterior_of(case)
    move = mean - loc_of(g)
    P = reference.gaussian.covariance(sigma)
    delta = spread(P, bound.precision)
    moved = energy(P, 0 * move) + solution_bound(posterior, sigma, loc_of(g), bound.precision, bound.pull)
    misfit = abs(case.values - apply(case.matrix.astype(WIDE), mean))
    step = np.sqrt(np.diagonal(sigma, axis1=-2, axis2=-1)) * moved[..., None]  # |m̂ − m| entrywise
    slip = bound.residual + numerics.rounding(g.n + 2, g.dtype) * apply(A, abs(move) + step)
    size = misfit + apply(A, step) + slip
    squares = W * (2 * (misfit + apply(A, step)) * slip + slip**2 + numerics.rounding(case.k + 4, g.dtype) * size**2)
    whitened = quadratic_bound(g, abs(move) + step)
    logs = np.where(W > 0, abs(np.log(np.where(W > 0, W, 1))), 0).sum(axis=-1)
    bounds = (
        np.sqrt(WIDE(g.n)) * delta / (1 - delta)
        + numerics.logdet_bound(factor_of(posterior), FLOAT64)
        + logdet_bound(g)
        + numerics.rounding(case.k + 2, FLOAT64) * logs
        + (case.k + 1) * numerics.rounding(2, g.dtype)
        + squares.sum(axis=-1)
        + whitened
        + moved**2
    )
    parts = (
        logs,
        reference.linalg.logdet(factor_of(g)),
        reference.linalg.logdet(reference.linalg.cholesky(P)),
        (W * misfit**2).sum(axis=-1),
        reference.gaussian.quadratic(precision_of(g), move),
        np.asarray(2 * WIDE(case.k)),
    )
    return half_sum_bound(g, bounds, *parts)


# ---------------------------------------------------------------------- values


@pytest.mark.property
@given(case=cases())
def test_the_posterior_adds_the_weighted_gram_matrix(case: Case) -> None:
    posterior, g = case.plan.posterior(case.g, case.values, case.variance), case.g
    mean, sigma = posterior_of(case)
    P, bound = reference.gaussian.covariance(sigma), bound_of(case)
    check("LinearObservation.posterior", family(g), g.dtype, distance(posterior, sigma), spread(P, bound.precision))
    loc = solution_bound(posterior, sigma, loc_of(g), bound.precision, bound.pull)
    check("LinearObservation.posterior, loc", family(g), g.dtype, energy(P, loc_of(posterior) - mean), loc)


@pytest.mark.property
@given(case=cases())
def test_the_evidence_is_the_dense_log_density_of_what_is_there(case: Case) -> None:
    """Of each batch element alone, whose missing rows are left out of the dense Gaussian."""
    g = case.g
    found = case.plan.log_evidence(g, case.values, case.variance)
    bound = evidence_bound(case, case.plan.posterior(g, case.values, case.variance))
    batch = np.broadcast_shapes(g.batch_shape, case.values.shape[:-1], case.variance.shape[:-1])
    assert found.shape == batch
    sigma, bound = np.broadcast_to(covariance_of(g), (*batch, g.n, g.n)), np.broadcast_to(bound, batch)
    loc, values, variance = (
        np.broadcast_to(array, (*batch, array.shape[-1])) for array in (loc_of(g), case.values, case.variance)
    )
    for at in np.ndindex(batch):
        there = np.isfinite(variance[at])
        A, R = case.matrix[there].astype(WIDE), np.diag(variance[at][there].astype(WIDE))
        exact = WIDE(0)
        if there.any():
            exact = reference.fields.log_evidence(loc[at], sigma[at], A, values[at][there].astype(WIDE), R)
        check("LinearObservation.log_evidence", family(g), g.dtype, np.asarray(found[at] - exact), bound[at])


@pytest.mark.property
@given(case=cases())
def test_predictions_are_moments_of_a_dense_gaussian(case: Case) -> None:
    g, A = case.g, case.matrix.astype(WIDE)
    found = case.plan.predictive(g)
    sigma, error = inverse_error(g)
    level = numerics.rounding(g.n**2 + 4, g.dtype)
    bound = abs(A) @ (level * (abs(sigma) + error) + error) @ abs(A).T + numerics.underflow(g.dtype) * g.n**2
    exact = np.diagonal(reference.fields.predictive(sigma, A), axis1=-2, axis2=-1)
    limit = np.diagonal(bound, axis1=-2, axis2=-1)
    check("LinearObservation.predictive", family(g), g.dtype, found.variance - exact, limit)
    mean = numerics.product_bound(A, loc_of(g), g.n + 1, g.dtype)
    check("LinearObservation.predictive, mean", family(g), g.dtype, found.mean - apply(A, loc_of(g)), mean)
    pairs = np.array([[0, case.k - 1], [case.k - 1, 0], [0, 0]])
    covariance = case.plan.predictive_covariance(g, pairs)
    at = (..., pairs[:, 0], pairs[:, 1])
    wanted, limit = reference.fields.predictive(sigma, A)[at], bound[at]
    check("LinearObservation.predictive_covariance", family(g), g.dtype, covariance - wanted, limit)


@pytest.mark.property
@given(case=cases(), cut=st.integers(0, 6))
def test_observing_in_two_parts_is_observing_at_once(case: Case, cut: int) -> None:
    """Posteriors and evidence: log p(y₁, y₂) = log p(y₁) + log p(y₂ | y₁); within 4 times the bound of one step."""
    if case.g.dtype == np.float32 or not 0 < cut < case.k:
        return
    g, one, two = case.g, slice(None, cut), slice(cut, None)
    first, second = (
        LinearObservation(g.graph, case.matrix[one]),
        LinearObservation(case.plan.topology, case.matrix[two]),
    )
    middle = first.posterior(g, case.values[..., one], case.variance[..., one])
    last = second.posterior(middle, case.values[..., two], case.variance[..., two])
    _, sigma = posterior_of(case)
    P, bound = reference.gaussian.covariance(sigma), bound_of(case)
    check("observe twice", family(g), g.dtype, distance(last, sigma), 4 * spread(P, bound.precision))
    parts = first.log_evidence(g, case.values[..., one], case.variance[..., one]) + second.log_evidence(
        middle, case.values[..., two], case.variance[..., two]
    )
    whole = case.plan.log_evidence(g, case.values, case.variance)
    check("evidence twice", family(g), g.dtype, parts - whole, 8 * evidence_bound(case, last))


def correlated(rng: np.random.Generator, k: int) -> GaussianGraphicalModel:
    """Noise on a ring, in another order of elimination, with a mean."""
    ring = Graph(k, Cycle(k).edges, rng.permutation(k))
    precision = ring.pack((np.full(k, 3.0), rng.uniform(-1, 1, k)))
    return GaussianGraphicalModel.from_precision(rng.standard_normal(k), precision=precision, topology=ring)


@given(g=gaussians(dtype="float64"), seed=seeds)
def test_correlated_noise_weighs_with_its_precision(g: GaussianGraphicalModel, seed: int) -> None:
    rng = np.random.default_rng(seed)
    noise, A = correlated(rng, 4), np.where(rng.random((4, g.n)) < 0.5, rng.standard_normal((4, g.n)), 0)
    y, plan = rng.standard_normal((2, *g.batch_shape, 4)), LinearObservation(g.graph, A, noise.topology)
    W, sigma = precision_of(noise), covariance_of(g)
    mean, after = reference.fields.posterior(loc_of(g), precision_of(g), A.astype(WIDE), y - noise.loc, W)
    posterior = plan.posterior(g, y, noise)
    np.testing.assert_allclose(covariance_of(posterior), np.broadcast_to(after, covariance_of(posterior).shape), 1e-8)
    np.testing.assert_allclose(posterior.loc, mean.astype(FLOAT64), rtol=1e-8, atol=1e-8)
    exact = reference.fields.log_evidence(loc_of(g), sigma, A.astype(WIDE), y - noise.loc, covariance_of(noise))
    np.testing.assert_allclose(plan.log_evidence(g, y, noise), exact.astype(FLOAT64), rtol=1e-8)
    there = np.flatnonzero(rng.random(4) < 0.7) if rng.random() < 0.8 else np.array([2])
    if there.size:  # the others are missing
        errors = noise.marginal(there)
        exact = reference.fields.log_evidence(
            loc_of(g),
            sigma,
            A[there].astype(WIDE),
            (y - noise.loc)[..., there],
            covariance_of(noise)[np.ix_(there, there)],
        )
        evidence = LinearObservation(g.graph, A[there], errors.graph).log_evidence(g, y[..., there], errors)
        np.testing.assert_allclose(evidence, exact.astype(FLOAT64), rtol=1e-8)
    products = plan.predictive(g).variance
    exact = np.diagonal(reference.fields.predictive(sigma, A), axis1=-2, axis2=-1).astype(FLOAT64)
    np.testing.assert_allclose(products, np.broadcast_to(exact, products.shape), rtol=1e-8)


# ---------------------------------------------------------------------- laws


G = GaussianGraphicalModel(np.arange(4.0), factor=np.array([2, 1, 2, 1, 2, 1, 2.0]), topology=Chain(4))
A = sp.csr_array(np.array([[1.0, 0, 0, 2], [0, 1, 0, 0]]))
PLAN = LinearObservation(G.topology, A)


def test_the_graph_of_z_stays_if_it_joins_the_nodes_of_every_row() -> None:
    inside = LinearObservation(Chain(4), sp.csr_array(np.array([[1.0, 1, 0, 0], [0, 0, 2, 0]])))
    assert inside.topology is inside.prior_topology
    assert len(PLAN.topology.edges) == 4


def test_rows_of_one_entry_are_observations_of_nodes() -> None:
    y, variance = np.array([[1.0, 2], [0, 3]]), np.array([0.5, np.inf])
    nodes = G.observe([2, 0], y, variance)
    unit = G.observe(sp.csr_array(np.eye(4)[[2, 0]]), y, variance)
    np.testing.assert_allclose(unit.loc, nodes.loc, rtol=1e-14)
    np.testing.assert_allclose(unit.precision, nodes.precision, rtol=1e-14)
    np.testing.assert_array_equal(
        G.log_evidence([2, 0], y, variance), G.log_evidence(sp.csr_array(np.eye(4)[[2, 0]]), y, variance)
    )


def test_the_short_forms_are_those_of_the_plan() -> None:
    y, variance = [1.0, 2.0], 0.5
    for observed in (A, PLAN):
        np.testing.assert_array_equal(G.observe(observed, y, variance).loc, PLAN.posterior(G, y, variance).loc)
        np.testing.assert_array_equal(G.log_evidence(observed, y, variance), PLAN.log_evidence(G, y, variance))


def test_two_forms_of_a_missing_observation_agree() -> None:
    one = PLAN.posterior(G, [np.nan, 2.0], [np.inf, 0.5])
    for value, variance in ((np.nan, np.nan), (np.inf, -1.0), (7.0, 0.0)):
        other = PLAN.posterior(G, [value, 2.0], [variance, 0.5], missing=[True, False])
        np.testing.assert_array_equal(one.loc, other.loc)
        np.testing.assert_array_equal(one.precision, other.precision)
    both = PLAN.log_evidence(G, [np.nan, 2.0], [np.inf, 0.5])
    assert both == pytest.approx(float(G.log_evidence([1], [2.0], 0.5)), rel=1e-14)
    assert PLAN.log_evidence(G, np.nan, np.inf) == 0


def test_entries_stand_for_those_of_the_matrix() -> None:
    entries = np.array([[3.0, -1, 2], [1, 2, 1]])
    for k, row in enumerate(entries):
        other = LinearObservation(Chain(4), sp.csr_array((row, A.indices, A.indptr), A.shape))
        batch = PLAN.posterior(G, [1, 2], 0.5, entries=entries)
        np.testing.assert_allclose(batch.loc[k], other.posterior(G, [1, 2], 0.5).loc, rtol=1e-14)
        found = PLAN.log_evidence(G, [1, 2], 0.5, entries=entries)[k]
        np.testing.assert_allclose(found, other.log_evidence(G, [1, 2], 0.5), rtol=1e-14)
        np.testing.assert_allclose(PLAN.predictive(G, entries=entries).variance[k], other.predictive(G).variance)
    np.testing.assert_array_equal(PLAN.rows, [0, 0, 1])
    np.testing.assert_array_equal(PLAN.cols, [0, 3, 1])


def test_products_with_the_matrix() -> None:
    x, y = np.arange(8.0).reshape(2, 4), np.array([1.0, -2.0])
    np.testing.assert_allclose(PLAN.matmul(x), x @ A.toarray().T)
    np.testing.assert_allclose(PLAN.matmul_t(y), y @ A.toarray())
    weights, dense = np.array([2.0, -3.0]), A.toarray()
    expected = PLAN.topology.pack(dense.T @ np.diag(weights) @ dense)
    np.testing.assert_allclose(PLAN.gram(weights), expected)
    P = Chain(4).pack(np.diag(np.full(4, 5.0)) + np.diag(np.ones(3), 1) + np.diag(np.ones(3), -1))
    total = PLAN.precision(P, weights)
    np.testing.assert_allclose(total, PLAN.topology.pack(precision_dense(P) + dense.T @ np.diag(weights) @ dense))


def precision_dense(values: Array) -> Array:
    return Chain(4).precision_pattern.to_dense(values, symmetric=True)


def test_a_prior_on_a_smaller_graph_serves() -> None:
    small = GaussianGraphicalModel(np.zeros(4), factor=np.ones(4), topology=Diagonal(4))
    chain = GaussianGraphicalModel(np.zeros(4), factor=np.array([1.0, 0, 1, 0, 1, 0, 1]), topology=Chain(4))
    np.testing.assert_array_equal(PLAN.posterior(small, 1, 1).loc, PLAN.posterior(chain, 1, 1).loc)


def test_the_sum_is_a_product_with_a_potential() -> None:
    """P + Aᵀ W A and P loc + Aᵀ W y are natural parameters."""
    y, W = np.array([1.0, 2.0]), np.array([2.0, 0.5])
    likelihood = Potential(PLAN.matmul_t(W * y), precision=PLAN.gram(W), topology=PLAN.topology)
    np.testing.assert_allclose(G.product(likelihood).loc, PLAN.posterior(G, y, 1 / W).loc, rtol=1e-13)


def test_a_float32_field_stays_so() -> None:
    g = GaussianGraphicalModel(G.loc.astype(np.float32), factor=G.factor.astype(np.float32), topology=Chain(4))
    plan = LinearObservation(Chain(4), A.astype(np.float32))
    assert plan.posterior(g, [1, 2], 1).dtype == np.float32
    assert plan.log_evidence(g, [1, 2], 1).dtype == np.float32
    assert PLAN.posterior(g, [1, 2], 1).dtype == np.float64  # no digit of A is lost


def test_the_log_normaliser_is_that_of_its_density() -> None:
    """log N(0; loc, P⁻¹) = −log Z: at z = 0 the exponent of the information form is zero."""
    np.testing.assert_allclose(G.log_normaliser(), -G.log_prob(np.zeros(4)), rtol=1e-15)


# ---------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("matrix", "noise", "error", "message"),
    [
        (np.ones((2, 3)), None, ShapeError, "matrix must be (k, 4), a row for each observation and a column for"),
        (np.ones((0, 4)), None, ShapeError, "matrix must be (k, 4), a row for each observation and a column for"),
        (np.ones(4), None, ShapeError, "matrix must be (k, n), got shape (4,)"),
        (np.ones((1, 4)) * 1j, None, DTypeError, "matrix must hold real numbers in at most float64, got complex128"),
        ("matrix", None, DTypeError, "matrix must be of scipy.sparse, or a dense array, got str"),
        (np.array([[1, np.nan, 0, 0]]), None, NonFiniteError, "matrix must be finite, got nan at (0, 1)"),
        (sp.csr_array([[0, 0, np.inf, 0]]), None, NonFiniteError, "matrix must be finite, got inf at (0, 2)"),
        (np.ones((2, 4)), Chain(3), ShapeError, "noise must be a graph of 2 nodes, one for each row of the matrix, go"),
        (np.ones((2, 4)), "white", PatternError, "topology must be a Topology"),
    ],
)
def test_matrices_that_do_not_fit_are_refused(matrix: Any, noise: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^LinearObservation: {re.escape(message)}"):
        LinearObservation(Chain(4), matrix, noise)


def test_a_matrix_dense_by_accident_is_refused_before_any_work() -> None:
    with pytest.raises(PatternError, match=r"rows of up to 100000 entries.* 5,000,050,000 products.*force=True"):
        LinearObservation(Chain(100_000), np.ones((1, 100_000)))


def test_many_short_rows_are_no_dense_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(designs, "PRODUCT_LIMIT", 1_000)
    plan = LinearObservation(Chain(3), np.ones((1_200, 3)))
    np.testing.assert_array_equal(plan.gram(np.ones(1_200)), np.full(6, 1_200.0))
    LinearObservation(Chain(100), np.ones((1, 100)))
    with pytest.raises(PatternError, match=r"rows of up to 101 entries.* 5,151 products, more than 1,000"):
        LinearObservation(Chain(101), np.ones((1, 101)))


@pytest.mark.parametrize(
    ("values", "variance", "options", "error", "message"),
    [
        (
            [1.0, 2.0],
            0.0,
            {},
            NonPositiveError,
            "variance must be positive, and 1/variance in the range of float64, got",
        ),
        (
            1.0,
            [1, -1.0],
            {},
            NonPositiveError,
            "variance must be positive, and 1/variance in the range of float64, got",
        ),
        (1.0, [1, np.nan], {}, NonPositiveError, "variance must be positive, and 1/variance in the range of float64"),
        (1.0, 5e-324, {}, NonPositiveError, "variance must be positive, and 1/variance in the range of float64"),
        ([1, np.nan], 1.0, {}, NonFiniteError, "values must be finite, got nan at observation 1. Give it an infinite"),
        ([[1, 1], [np.inf, 1]], np.inf, {}, NonFiniteError, "values must be finite, got inf at observation 0, batch"),
        (
            [1, 2, 3],
            1.0,
            {},
            ShapeError,
            "values must broadcast to (..., 2), one for each row of the matrix, got shape",
        ),
        (1.0, [1, 2, 3], {}, ShapeError, "variance must broadcast to (..., 2), one for each row of the matrix, got"),
        (1.0, 1.0, {"missing": [0, 1]}, ShapeError, "missing must be booleans that end in 2, got int64 of shape (2,)"),
        (1.0, 1.0, {"missing": [True]}, ShapeError, "missing must be booleans that end in 2, got bool of shape (1,)"),
        (
            1.0,
            1.0,
            {"entries": [1.0, 2]},
            ShapeError,
            "entries must end in 3, the entries of the matrix, got shape (2,",
        ),
        (1.0, 1.0, {"entries": [1.0, np.nan, 1]}, NonFiniteError, "entries must be finite"),
        (
            np.nan,
            1.0,
            {"missing": np.ma.masked_array([1, 1], [1, 0], bool)},
            DTypeError,
            "missing must have a value in",
        ),
        (np.nan, 1.0, {"missing": [[True], [True, True]]}, DTypeError, "missing must be an array of"),
    ],
)
@pytest.mark.parametrize("name", ["posterior", "log_evidence"])
def test_observations_that_mean_nothing_are_refused(
    name: str, values: Any, variance: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^LinearObservation.{name}: {re.escape(message)}"):
        getattr(PLAN, name)(G, values, variance, **options)


def test_priors_that_do_not_fit_are_refused() -> None:
    grid = GaussianGraphicalModel(np.zeros(4), factor=np.ones(Grid(2, 2).factor_pattern.nnz), topology=Grid(2, 2))
    star = LinearObservation(Chain(4), np.eye(4)[:1])
    with pytest.raises(PatternError, match=r"the prior must be on Chain\(n=4\), or join no other nodes"):
        star.posterior(grid, 1.0, 1.0)
    with pytest.raises(
        TypeError, match=r"^LinearObservation.posterior: prior must be a GaussianGraphicalModel, got st"
    ):
        PLAN.posterior("prior", 1.0, 1.0)
    with pytest.raises(ShapeError, match=r"^LinearObservation.predictive: g must be a Gaussian of 4 nodes, got"):
        PLAN.predictive(GaussianGraphicalModel(np.zeros(2), factor=np.ones(3), topology=Chain(2)))
    with pytest.raises(PatternError, match=r"pairs must be of observations 0 … 1, got 0 … 2"):
        PLAN.predictive_covariance(G, [[0, 2]])


def test_correlated_noise_must_be_the_gaussian_of_the_plan() -> None:
    plan = LinearObservation(Chain(4), A, Diagonal(2))
    with pytest.raises(TypeError, match="variance must be a GaussianGraphicalModel, got float"):
        plan.posterior(G, 1.0, 1.0)
    chain = GaussianGraphicalModel(np.zeros(2), factor=np.ones(3), topology=Chain(2))
    with pytest.raises(PatternError, match=r"variance must be a Gaussian on Diagonal\(n=2\), got one on Chain"):
        plan.posterior(G, 1.0, chain)
    noise = GaussianGraphicalModel(np.zeros(2), factor=np.ones(2), topology=Diagonal(2))
    with pytest.raises(
        NonFiniteError, match=r"at observation 1\. Where there is none, leave out the row of the matrix"
    ):
        plan.posterior(G, [0.0, np.nan], noise)
    with pytest.raises(ValueError, match="beside correlated noise missing= is not known"):
        plan.posterior(G, 1.0, GaussianGraphicalModel(np.zeros(2), factor=np.ones(2), topology=Diagonal(2)), missing=0)


def test_a_failure_names_the_node() -> None:
    weights = np.array([-3.0, 0.0])
    precision = PLAN.precision(G.precision, weights)
    with pytest.raises(NotPositiveDefiniteError, match=r"pivot .* at node"):
        GaussianGraphicalModel.from_precision(np.zeros(4), precision=precision, topology=PLAN.topology)


def test_batches_that_do_not_broadcast_are_named() -> None:
    two = GaussianGraphicalModel(np.zeros((2, 4)), factor=G.factor, topology=Chain(4))
    with pytest.raises(
        ShapeError, match=r"^LinearObservation\.posterior: batch axes must broadcast, got .*\(2,\) of gau"
    ):
        PLAN.posterior(two, np.zeros((3, 2)), 1.0)
    with pytest.raises(ShapeError, match=r"^LinearObservation\.gram: batch axes must broadcast, got .* of entries"):
        PLAN.gram(np.ones((2, 2)), np.ones((3, 3)))
    with pytest.raises(ShapeError, match=r"batch axes must broadcast, got .* of missing"):
        PLAN.posterior(G, np.zeros((3, 2)), 1.0, missing=np.zeros((2, 2), bool))


def test_integers_beside_fractions_are_refused() -> None:
    plan = LinearObservation(Chain(3), [[0.5, 0.5, 0.0]])
    for x in (np.array([1, 2, 3]), torch.tensor([1, 2, 3])):  # the entries would become zeros
        with pytest.raises(DTypeError, match=r"matmul: x must be of floating-point numbers, got .*int64"):
            plan.matmul(x)
    with pytest.raises(DTypeError, match="gram: weights must be of floating-point numbers"):
        plan.gram(np.array([1]))


def test_what_is_missing_must_fit_the_batch_of_the_prior() -> None:
    g = GaussianGraphicalModel(np.zeros((3, 2)), factor=np.ones(2), topology=Diagonal(2))
    plan = LinearObservation(g.topology, np.eye(2))
    with pytest.raises(ShapeError, match=r"got \(2,\) of observations and .*\(3,\) of gaussian"):
        plan.posterior(g, 1.0, 1.0, missing=np.zeros((2, 2), bool))
    with pytest.raises(ShapeError, match=r"got \(2,\) of prior_precision and \(3,\) of gram"):
        plan.precision(np.ones((2, 2)), np.ones((3, 2)))
    with pytest.raises(NonFiniteError, match="predictive: entries must be finite"):
        plan.predictive(g, entries=[1.0, np.inf])


def test_vectors_and_weights_of_other_lengths_are_refused() -> None:
    for name, message in (("matmul", "x must end in 4"), ("matmul_t", "y must end in 2"), ("gram", "weights must end")):
        with pytest.raises(ShapeError, match=f"^LinearObservation.{name}: {message}"):
            getattr(PLAN, name)(np.ones(3))
    with pytest.raises(ShapeError, match=r"^LinearObservation\.precision: prior_precision must end in 7, the nnz of P"):
        PLAN.precision(np.ones(3), np.ones(2))


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_predictions_beyond_the_dtype_are_refused(kind: Any) -> None:
    make = GaussianGraphicalModel if kind is np.asarray else sparseggm.torch.GaussianGraphicalModel
    g = make(kind(np.full(2, 1e10)), factor=kind(np.array([1.0, 0.0, 1.0])), topology=Chain(2))
    plan = LinearObservation(g.topology, np.ones((2, 2)))
    message = "the arguments are finite but the result overflows .*float64"
    for entries in (np.full(4, 1e200), np.full(4, 1e300)):
        with pytest.raises(NonFiniteError, match=f"^LinearObservation.predictive: {message}"):
            plan.predictive(g, entries=entries)
        with pytest.raises(NonFiniteError, match=f"^LinearObservation.predictive_covariance: {message}"):
            plan.predictive_covariance(g, [(0, 1)], entries=entries)
