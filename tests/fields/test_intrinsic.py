"""Intrinsic priors: their null spaces, densities, proper posteriors, exact diffuse evidence, and what is refused."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

import reference.fields
from sparseggm import (
    Band,
    BlockChain,
    Chain,
    Cycle,
    GaussianGraphicalModel,
    Graph,
    ImproperError,
    NonFiniteError,
    NotPositiveDefiniteError,
    PatternError,
    ShapeError,
    Topology,
)
from sparseggm.fields import IntrinsicGaussian, LinearObservation
from tests.gaussian.test_nile import LEVEL, LEVELS, NILE, NOISE, SLOPE, YEARS, evidence_by_kalman_filter
from tests.numerics import Array
from tests.strategies import seeds
from tests.topologies import topologies


def differences(n: int, order: int) -> Array:
    """The matrix of differences: `random walk` has P = Dᵀ D."""
    return np.diff(np.eye(n), order, axis=0)


def random_walk(n: int, order: int) -> tuple[IntrinsicGaussian, Array]:
    """RW1 on a chain, RW2 on a band, with P dense."""
    P = differences(n, order).T @ differences(n, order)
    topology = Chain(n) if order == 1 else Band(n, 2)
    null = np.vander(np.arange(n), order, increasing=True).astype(float)
    return IntrinsicGaussian(topology.pack(P), topology=topology, null=null), P


def icar(topology: Topology, weights: Array) -> tuple[IntrinsicGaussian, Array]:
    """The Laplacian of a weighted graph, perhaps of several parts."""
    P = np.zeros((topology.n, topology.n))
    for (i, j), w in zip(topology.edges, weights, strict=True):
        P[[i, j], [i, j]] += w
        P[[i, j], [j, i]] -= w
    return IntrinsicGaussian(topology.pack(P), topology=topology), P


def log_pseudo_determinant(P: Array, rank: int) -> float:
    """The logarithm of the product of the `rank` largest eigenvalues."""
    return float(np.log(np.linalg.eigvalsh(P)[len(P) - rank :]).sum())


# ---------------------------------------------------------------------- densities


@given(topology=topologies(3), seed=seeds)
def test_a_laplacian_has_a_direction_for_each_part_of_the_graph(topology: Topology, seed: int) -> None:
    rng = np.random.default_rng(seed)
    g, P = icar(topology, rng.uniform(0.5, 2, len(topology.edges)))
    d = g.null.shape[1]
    assert d == topology.n - np.linalg.matrix_rank(P)
    x = 3 * rng.standard_normal((2, topology.n))
    exact = 0.5 * (
        log_pseudo_determinant(P, topology.n - d)
        - np.einsum("...i,ij,...j->...", x, P, x)
        - (topology.n - d) * np.log(2 * np.pi)
    )
    np.testing.assert_allclose(g.log_prob(x), exact, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("order", [1, 2])
def test_a_density_is_flat_along_the_null_space(order: int) -> None:
    """Exactly that of the part across: a level of 10⁶ costs digits of x, and no others."""
    g, P = random_walk(9, order)
    x = np.sin(np.arange(9.0))
    along = g.null @ np.array([1e6, 1e5])[:order]
    np.testing.assert_allclose(g.log_prob(x + along), g.log_prob(x), rtol=1e-8)
    exact = 0.5 * (log_pseudo_determinant(P, 9 - order) - x @ P @ x - (9 - order) * np.log(2 * np.pi))
    np.testing.assert_allclose(g.log_prob(x), exact, rtol=1e-11)


def test_no_basis_of_the_null_space_changes_the_density() -> None:
    g, _ = random_walk(6, 2)
    other = IntrinsicGaussian(g.precision, topology=g.topology, null=g.null @ [[1.0, 2], [-3, 1]])
    np.testing.assert_allclose(other.log_prob(np.ones(6)), g.log_prob(np.ones(6)), rtol=1e-12)


# ---------------------------------------------------------------------- posteriors and evidence


@st.composite
def observed(draw: st.DrawFn) -> tuple[IntrinsicGaussian, Array, Array, Array, Array]:
    """A prior of any kind, P dense, and enough observations to determine it."""
    rng = np.random.default_rng(draw(seeds))
    kind = draw(st.sampled_from(["RW1", "RW2", "ICAR"]))
    if kind == "ICAR":
        topology = draw(topologies(3))
        g, P = icar(topology, rng.uniform(0.5, 2, len(topology.edges)))
    else:
        g, P = random_walk(draw(st.integers(4, 9)), 1 if kind == "RW1" else 2)
    k = g.n + 1
    A = np.where(rng.random((k, g.n)) < 0.4, rng.standard_normal((k, g.n)), 0) + np.eye(k, g.n)
    return g, P, A, rng.standard_normal(k), rng.uniform(0.5, 2, k)


@given(case=observed())
def test_the_evidence_is_the_diffuse_limit_of_proper_priors(case: Any) -> None:
    """log p(y) + ½ d log κ of a dense Gaussian whose null coefficients have variance κ, at κ = 10⁵.

    The limit is reached as 1/κ: the difference to κ = 10⁵ and that to 2 · 10⁵ are extrapolated to zero.
    """
    g, P, A, y, variance = case
    V = g.null
    d = V.shape[1]
    across = np.linalg.pinv(P)  # Σ of the part across the null space, and of u = z − V β nothing else
    plan = LinearObservation(g.topology, A)
    found = float(plan.log_evidence(g, y, variance))

    def approximate(kappa: float) -> float:
        sigma = across + kappa * V @ V.T
        R = A @ sigma @ A.T + np.diag(variance)
        logdet, square = np.linalg.slogdet(R)[1], y @ np.linalg.solve(R, y)
        return float(-0.5 * (len(y) * np.log(2 * np.pi) + logdet + square) + 0.5 * d * np.log(kappa))

    one, two = approximate(1e5), approximate(2e5)
    np.testing.assert_allclose(found, 2 * two - one, rtol=1e-5, atol=1e-5)
    posterior = plan.posterior(g, y, variance)
    mean, sigma = reference.fields.posterior(np.zeros(g.n), P, A, y, np.diag(1 / variance))
    np.testing.assert_allclose(posterior.loc, mean, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(posterior.variance, np.diagonal(sigma), rtol=1e-8)


def test_one_observation_of_a_walk_says_nothing_against_any_level() -> None:
    """log p(y₀) of a diffuse level is −½ log 2π, whatever y₀ is, and the posterior is the walk from there."""
    g, _ = random_walk(5, 1)
    posterior = g.observe([0], [1e4], 0.25)
    assert posterior.dtype == np.float64
    np.testing.assert_allclose(posterior.loc, 1e4, rtol=1e-12)
    np.testing.assert_allclose(posterior.variance, 0.25 + np.arange(5), rtol=1e-12)
    np.testing.assert_allclose(g.log_evidence([0], [1e4], 0.25), -0.5 * np.log(2 * np.pi), rtol=1e-9)


def local_linear_trend(topology: Topology) -> IntrinsicGaussian:
    """The Nile's model with a first state of which nothing is known: two null directions, F^t."""
    steps = np.zeros((2 * YEARS - 2, 2 * YEARS))
    for t in range(1, YEARS):
        steps[2 * t - 2 : 2 * t, 2 * t - 2 : 2 * t + 2] = [[-1, -1, 1, 0], [0, -1, 0, 1]]
    steps /= np.sqrt([LEVEL, SLOPE] * (YEARS - 1))[:, None]
    null = np.zeros((2 * YEARS, 2))
    null[LEVELS, 0], null[LEVELS, 1], null[LEVELS + 1, 1] = 1, np.arange(YEARS), 1
    return IntrinsicGaussian(topology.pack(steps.T @ steps), topology=topology, null=null)


@pytest.mark.parametrize(
    "topology",
    [BlockChain(YEARS, 2), BlockChain(YEARS, 2, order=range(2 * YEARS)[::-1])],
    ids=["forwards", "backwards"],
)
def test_the_diffuse_evidence_of_the_nile_is_that_of_a_kalman_filter(topology: Topology) -> None:
    """In sixty digits, at κ = 10²⁴: in either order of time, with nothing nearly diffuse to lose digits to."""
    exact = evidence_by_kalman_filter(10**24) + np.log(1e24)
    found = local_linear_trend(topology).log_evidence(LEVELS, NILE, float(NOISE))
    assert found == pytest.approx(exact, abs=1e-8)
    assert found == pytest.approx(-661.483090316 + np.log(1e12), abs=1e-5)


def test_the_diffuse_evidence_of_the_nile_is_that_of_statsmodels() -> None:
    """Version 0.15, exact diffuse: of the trend above, and of a level at Durbin and Koopman's variances.

    R's KFAS has −632.5456 for the level: it leaves out the constant ½ log 2π of the diffuse observation.
    """
    found = local_linear_trend(BlockChain(YEARS, 2)).log_evidence(LEVELS, NILE, float(NOISE))
    assert found == pytest.approx(-633.8520685667361, abs=1e-8)
    P = differences(YEARS, 1)
    topology = Chain(YEARS)
    walk = IntrinsicGaussian(topology.pack(P.T @ P / 1469.1), topology=topology)
    assert walk.log_evidence(np.arange(YEARS), NILE, 15_099.0) == pytest.approx(-633.4645636488787, abs=1e-10)


def test_a_missing_year_is_left_out() -> None:
    g, _ = random_walk(6, 1)
    y = np.array([1.0, np.nan, 2, 3, np.nan, 2])
    there = np.flatnonzero(~np.isnan(y))
    variance = np.where(np.isnan(y), np.inf, 0.5)
    np.testing.assert_allclose(g.log_evidence(np.arange(6), y, variance), g.log_evidence(there, y[there], 0.5))


def test_batches_broadcast() -> None:
    g, P = random_walk(5, 1)
    many = IntrinsicGaussian(g.topology.pack(P) * np.array([[1.0], [4.0]]), topology=g.topology)
    y = np.arange(15.0).reshape(3, 1, 5)
    found = many.log_evidence(np.arange(5), y, 0.5)
    assert found.shape == (3, 2)
    np.testing.assert_allclose(found[1, 0], g.log_evidence(np.arange(5), y[1, 0], 0.5), rtol=1e-13)


# ---------------------------------------------------------------------- bad input


def test_an_improper_posterior_is_refused_and_names_its_direction() -> None:
    g, _ = random_walk(5, 1)
    contrast = sp.csr_array(np.array([[1.0, -1, 0, 0, 0]]))
    with pytest.raises(ImproperError, match=r"^observe: nothing determines the direction 1 at node 0, 1 at node 1, "):
        g.observe(contrast, 0.0, 1.0)
    trend, _ = random_walk(5, 2)
    with pytest.raises(ImproperError, match=r"^observe: nothing determines the direction .* at node 0, .* at node 1, "):
        trend.observe([2], 0.0, 1.0)
    trend.observe([2, 4], 0.0, 1.0)
    parts, _ = icar(Graph(5, [(0, 1), (2, 3)]), np.ones(2))
    with pytest.raises(ImproperError, match=r"nothing determines the direction 1 at node 4\. Observe a node there"):
        parts.log_evidence([0, 3], 0.0, 1.0)
    with pytest.raises(ImproperError, match=r"at node 4, batch element \(1,\)"):
        parts.observe([0, 3, 4], 0.0, [[1.0, 1, 1], [1, 1, np.inf]])


@pytest.mark.parametrize(
    ("topology", "precision", "null", "error", "message"),
    [
        (Chain(3), 3 * np.eye(3), None, PatternError, "P v must be zero for each column v of null, got 3 at node 0"),
        (Chain(3), np.zeros((3, 3)), None, NotPositiveDefiniteError, "P must be positive definite but for the 1 direc"),
        (Chain(3), np.zeros((3, 3)), np.ones((2, 3)), ShapeError, "null must be (3, d), a column for each direction"),
        (Chain(3), np.zeros((3, 3)), np.ones(3), ShapeError, "null must be (3, d), a column for each direction"),
        (Chain(3), np.zeros((3, 3)), np.ones((3, 2)), PatternError, "the columns of null must be linearly independent"),
    ],
)
def test_precisions_that_are_not_intrinsic_are_refused(
    topology: Topology, precision: Array, null: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^IntrinsicGaussian: {re.escape(message)}"):
        IntrinsicGaussian(topology.pack(precision), topology=topology, null=null)


def test_an_indefinite_precision_is_refused() -> None:
    """A Laplacian with a negative weight: it has the null vector of ones, and a negative eigenvalue."""
    P = np.array([[1.0, -2, 1], [-2, 1, 1], [1, 1, -2]])
    with pytest.raises(NotPositiveDefiniteError, match="P must be positive definite but for the 1 directions of null"):
        IntrinsicGaussian(Cycle(3).pack(P), topology=Cycle(3))


def test_a_second_order_walk_needs_both_of_its_directions() -> None:
    g, _ = random_walk(8, 2)
    with pytest.raises(NotPositiveDefiniteError, match="Give null= all directions with P v = 0"):
        IntrinsicGaussian(g.precision, topology=g.topology, null=np.ones((8, 1)))


@pytest.mark.parametrize("null", [None, np.ones((6, 1))], ids=["constants", "float64"])
def test_rounding_of_a_float32_precision_is_that_of_float32(null: Any) -> None:
    """Its rows sum to zero within γ of float32 alone, also where numbers are computed in float64."""
    P = differences(6, 1).T @ np.diag([0.1, 0.7, 0.3, 1.3, 0.9]) @ differences(6, 1)
    g = IntrinsicGaussian(Chain(6).pack(P).astype(np.float32), topology=Chain(6), null=null)
    assert g.dtype == np.float32
    wide = IntrinsicGaussian(Chain(6).pack(P), topology=Chain(6))
    np.testing.assert_allclose(
        g.log_evidence([1, 3], [1.0, 2], 0.5), wide.log_evidence([1, 3], [1.0, 2], 0.5), rtol=1e-5
    )


def test_a_float32_walk_takes_float64_data() -> None:
    P = differences(6, 1).T @ differences(6, 1) / 3
    g = IntrinsicGaussian(Chain(6).pack(P).astype(np.float32), topology=Chain(6), null=np.ones((6, 1), np.float32))
    assert g.observe([0], [1.0], 1.0).dtype == np.float32
    posterior = g.observe([0], np.array([1.0]), 1.0)
    assert isinstance(posterior, GaussianGraphicalModel)
    assert posterior.dtype == np.float64
    with pytest.raises(ImproperError):
        g.observe(sp.csr_array(np.array([[1.0, -1, 0, 0, 0, 0]])), np.array([1.0]), 1.0)


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_a_basis_of_any_size_serves(size: float) -> None:
    """Coefficients in units of `size` have densities that are larger by it, and the same posterior."""
    walk = Chain(3).pack(np.array([[1.0, -1.0, 0.0], [-1.0, 2.0, -1.0], [0.0, -1.0, 1.0]]))
    plain = IntrinsicGaussian(walk, topology=Chain(3))
    scaled = IntrinsicGaussian(walk, topology=Chain(3), null=np.full((3, 1), size))
    seen = [0, 2], [1.0, 3.0], [0.5, 2.0]
    np.testing.assert_allclose(scaled.observe(*seen).loc, plain.observe(*seen).loc, rtol=1e-14)
    np.testing.assert_allclose(scaled.log_evidence(*seen), plain.log_evidence(*seen) - np.log(size), rtol=1e-12)
    with pytest.raises(ImproperError, match="nothing determines the direction 1 at node 0, 1 at node 1, 1 at node 2"):
        scaled.observe([0], [np.nan], [np.inf])


def test_a_number_that_is_not_finite_is_found_in_x() -> None:
    walk = IntrinsicGaussian(Chain(3).pack(([1.0, 2.0, 1.0], [-1.0, -1.0])), topology=Chain(3))
    with pytest.raises(NonFiniteError, match=r"^log_prob: x must be finite, got nan at .* 2"):
        walk.log_prob([0.0, 0.0, np.nan])
