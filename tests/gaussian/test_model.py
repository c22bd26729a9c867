"""`GaussianGraphicalModel` against `reference.gaussian`, in the caller's numbering, also where no order is natural.

Bounds follow the computation: each combines the theorems of `numerics` with the float64 sums that every scalar is.
"""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

import reference.gaussian
import reference.linalg
from sparseggm import (
    Chain,
    Diagonal,
    ExtendedGrid,
    GaussianGraphicalModel,
    Grid,
    Star,
    Topology,
)
from tests import numerics
from tests.gaussian_bounds import (
    factor_of,
    family,
    half_sum_bound,
    inverse_error,
    kl_bound,
    loc_of,
    log_prob_bound,
    logdet_bound,
    precision_of,
    trace_bound,
)
from tests.ledger import check
from tests.numerics import WIDE, Array
from tests.strategies import Shape, gaussians, seeds
from tests.topologies import topologies_of

FLOAT64 = np.float64


@st.composite
def pairs(draw: st.DrawFn) -> tuple[GaussianGraphicalModel, GaussianGraphicalModel]:
    """Two Gaussians of one size and dtype whose batches broadcast, on one topology or on two in different orders."""
    q = draw(gaussians())
    on = q.topology if draw(st.booleans()) else draw(topologies_of(q.n))
    p = draw(gaussians(on, q.dtype.name).filter(lambda p: broadcast(p.batch_shape, q.batch_shape)))
    return q, p


def broadcast(*shapes: Shape) -> bool:
    try:
        np.broadcast_shapes(*shapes)
    except ValueError:
        return False
    return True


# ---------------------------------------------------------------------- densities and divergences


@pytest.mark.property
@given(g=gaussians(), seed=seeds, size=st.sampled_from([(), (5,), (0,)]))
def test_log_prob_is_that_of_the_dense_density(g: GaussianGraphicalModel, seed: int, size: Shape) -> None:
    x = np.random.default_rng(seed).standard_normal((*size, *g.batch_shape, g.n)).astype(g.dtype)
    value = g.log_prob(x)
    assert value.shape == (*size, *g.batch_shape)
    assert value.dtype == g.dtype
    exact = reference.gaussian.log_prob(loc_of(g), precision_of(g), x.astype(WIDE))
    check("Gaussian.log_prob", family(g), g.dtype, value - exact, log_prob_bound(g, x))


@pytest.mark.property
@given(g=gaussians())
def test_entropy_is_that_of_the_dense_precision(g: GaussianGraphicalModel) -> None:
    value = g.entropy()
    assert value.shape == g.batch_shape
    assert value.dtype == g.dtype
    P = precision_of(g)
    parts = (reference.linalg.logdet(factor_of(g)), reference.gaussian.log_two_pi_to(P), np.asarray(WIDE(g.n)))
    check("Gaussian.entropy", family(g), g.dtype, value - reference.gaussian.entropy(P), entropy_bound(g, parts))


def entropy_bound(g: GaussianGraphicalModel, parts: tuple[Array, ...]) -> Array:
    return half_sum_bound(g, logdet_bound(g), *parts)


@pytest.mark.property
@given(g=gaussians())
def test_variances_and_their_trace_are_those_of_the_dense_inverse(g: GaussianGraphicalModel) -> None:
    exact = np.broadcast_to(reference.gaussian.variance(precision_of(g)), (*g.batch_shape, g.n))
    _, error = inverse_error(g)
    bound = reference.linalg.diagonal(error)
    assert g.variance.shape == exact.shape
    assert g.variance.dtype == g.trace_covariance().dtype == g.dtype
    check("Gaussian.variance", family(g), g.dtype, g.variance - exact, bound)
    assert g.trace_covariance().shape == g.batch_shape
    total = (exact + bound).sum(axis=-1)
    bound = bound.sum(axis=-1) + numerics.rounding(g.n, FLOAT64) * total + numerics.stored(total, g.dtype)
    check("Gaussian.trace_covariance", family(g), g.dtype, g.trace_covariance() - exact.sum(axis=-1), bound)


@pytest.mark.property
@given(pair=pairs())
def test_kl_divergence_is_that_of_the_dense_formula(pair: tuple[GaussianGraphicalModel, ...]) -> None:
    q, p = pair
    value = q.kl_divergence(p)
    assert value.shape == np.broadcast_shapes(q.batch_shape, p.batch_shape)
    assert value.dtype == q.dtype
    exact = reference.gaussian.kl_divergence(loc_of(q), precision_of(q), loc_of(p), precision_of(p))
    bound = kl_bound(q, p)
    check("Gaussian.kl_divergence", family(q), q.dtype, value - exact, bound)
    assert (value >= -bound).all()


@pytest.mark.property
@given(g=gaussians())
def test_kl_divergence_of_a_gaussian_from_itself_is_zero(g: GaussianGraphicalModel) -> None:
    check("Gaussian.kl_divergence", family(g), g.dtype, g.kl_divergence(g), kl_bound(g, g))


@pytest.mark.property
@given(g=gaussians())
def test_kl_divergence_to_none_is_that_to_the_standard_normal(g: GaussianGraphicalModel) -> None:
    value = g.kl_divergence()
    zero, identity = np.zeros(g.n, WIDE), np.eye(g.n, dtype=WIDE)
    exact = reference.gaussian.kl_divergence(loc_of(g), precision_of(g), zero, identity)
    sigma, error = inverse_error(g)
    square = (loc_of(g) ** 2).sum(axis=-1)
    bounds = trace_bound(identity, 0 * identity, sigma, error) + logdet_bound(g)
    bounds = bounds + numerics.rounding(g.n, FLOAT64) * square
    trace, logdet = np.trace(sigma, axis1=-2, axis2=-1), reference.linalg.logdet(factor_of(g))
    bound = half_sum_bound(g, bounds, trace, square, logdet, np.asarray(WIDE(g.n)))
    assert value.shape == g.batch_shape
    check("Gaussian.kl to N(0, I)", family(g), g.dtype, value - exact, bound)


def test_nats_over_a_million_nodes_are_accurate_in_float32() -> None:
    """A float32 accumulator of a million equal squares drifts by far more than the last place of the result."""
    n = 1_000_000
    ones, x = np.ones(n, np.float32), np.full(n, 0.1, np.float32)
    g = GaussianGraphicalModel(0 * x, factor=ones, topology=Diagonal(n))
    moved = GaussianGraphicalModel(x, factor=ones, topology=Diagonal(n))
    square = n * WIDE(x[0]) ** 2
    log_two_pi = n * np.log(2 * np.arccos(WIDE(-1)))
    for value, exact in (
        (g.log_prob(x), -(square + log_two_pi) / 2),
        (g.entropy(), (n + log_two_pi) / 2),
        (moved.kl_divergence(), square / 2),
        (moved.kl_divergence(g), square / 2),
    ):
        bound = numerics.rounding(n + 5, FLOAT64) * (square + log_two_pi + 2 * n)
        assert abs(value - exact) <= bound + numerics.stored(exact, np.float32)


# ---------------------------------------------------------------------- numbering


@pytest.mark.parametrize("topology", [Star(200_001), ExtendedGrid(30, 7), Chain(300)], ids=str)
def test_covariance_matmul_is_within_the_bounds_of_its_solves(topology: Topology) -> None:
    pattern = topology.factor_pattern
    factor = np.where(pattern.rows == pattern.cols, 1.0, 0.1).astype(np.float32)
    g = GaussianGraphicalModel(np.zeros(topology.n, np.float32), factor=factor, topology=topology)
    y = g.covariance_matmul(np.ones(topology.n, np.float32))[topology.order].astype(np.float64)
    lower, r, c = pattern.to_scipy(factor.astype(np.float64)), pattern.longest_row, pattern.longest_column
    size = abs(lower) @ (abs(lower).T @ abs(y))
    of_rows, of_columns = numerics.gamma(r, np.float32), numerics.gamma(c, np.float32)
    level = of_rows + of_columns + of_rows * of_columns + 2 * numerics.gamma(r + c, np.float64)
    assert (abs(lower @ (lower.T @ y) - 1.0) <= level * size + numerics.underflow(np.float32) * (r + c)).all()


def test_a_gaussian_from_a_precision_has_that_precision_node_by_node() -> None:
    """On a 4 × 5 grid, whose order is far from natural: whiten, variance and log_prob know nothing of it."""
    topology, rng = Grid(4, 5), np.random.default_rng(0)
    assert not topology.is_naturally_ordered
    couplings = rng.uniform(-1, 1, len(topology.edges))
    P = np.zeros((20, 20))
    for (i, j), coupling in zip(topology.edges, couplings, strict=True):
        P[i, j] = P[j, i] = coupling
    P[np.diag_indices(20)] = abs(P).sum(axis=0) + np.arange(1.0, 21.0)
    g = GaussianGraphicalModel.from_precision(np.arange(20.0), precision=topology.pack(P), topology=topology)
    x = rng.standard_normal((3, 20))
    tolerance = 20 * numerics.failure_margin(20, FLOAT64) * np.linalg.cond(P)
    quadratic = np.einsum("si,ij,sj->s", x, P, x)
    np.testing.assert_allclose((g.whiten(x) ** 2).sum(axis=-1), quadratic, rtol=float(tolerance))
    np.testing.assert_allclose(g.variance, np.diag(np.linalg.inv(P)), rtol=float(tolerance))
    expected = scipy.stats.multivariate_normal(np.arange(20.0), np.linalg.inv(P)).logpdf(x)
    np.testing.assert_allclose(g.log_prob(x), expected, rtol=float(tolerance))


def test_the_order_of_elimination_cannot_be_seen_from_outside() -> None:
    rng, sides = np.random.default_rng(1), (3, 4)
    orders = [None, range(12), rng.permutation(12)]
    grids = [Grid(*sides, order=order) for order in orders]
    diagonal, couplings = rng.uniform(4, 5, 12), rng.uniform(-1, 1, 17)
    x = rng.standard_normal((2, 12))
    gaussians = [
        GaussianGraphicalModel.from_precision(np.ones(12), precision=grid.pack((diagonal, couplings)), topology=grid)
        for grid in grids
    ]
    tolerance = float(12 * numerics.failure_margin(12, FLOAT64) * 9 / 0.01)  # P is within [0.01, 9]
    for g in gaussians[1:]:
        np.testing.assert_allclose(g.variance, gaussians[0].variance, rtol=tolerance)
        np.testing.assert_allclose(g.log_prob(x), gaussians[0].log_prob(x), rtol=tolerance)
        np.testing.assert_allclose(g.kl_divergence(), gaussians[0].kl_divergence(), rtol=tolerance)
