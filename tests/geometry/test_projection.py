"""Covariance selection: the moments it must have, Pythagoras, that it changes nothing twice, and what it refuses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference.geometry
from sparseggm import (
    Band,
    BlockChain,
    Chain,
    Cycle,
    ExtendedGrid,
    GaussianGraphicalModel,
    Graph,
    Grid,
    NonFiniteError,
    NonPositiveError,
    NotPositiveDefiniteError,
    ShapeError,
    Star,
    Topology,
    Torus,
    geometry,
)
from sparseggm.gaussian import fitting, selection
from sparseggm.geometry import Moments
from tests import numerics
from tests.gaussian.test_fit import spread_residual
from tests.gaussian_bounds import (
    covariance_of,
    factor_of,
    family,
    in_callers_numbering,
    inverse_error,
    kl_bound,
    precision_error,
    precision_of,
)
from tests.ledger import check
from tests.numerics import WIDE, Array
from tests.strategies import mask, precision_values, seeds
from tests.topologies import complete_graph, edges_of, topologies

FLOAT64 = np.float64


def dense_gaussian(rng: np.random.Generator, n: int, batch: tuple[int, ...] = ()) -> GaussianGraphicalModel:
    """A Gaussian without zeros in P, in units from a thousandth to a thousand."""
    graph = complete_graph(n)
    values = precision_values(rng, graph.precision_pattern, batch, "nearly singular", FLOAT64)
    units = 10.0 ** rng.uniform(-3, 3, n)
    values *= units[graph.precision_pattern.rows] * units[graph.precision_pattern.cols]
    loc = rng.standard_normal((*batch, n)) / units
    return GaussianGraphicalModel.from_precision(loc, precision=values, topology=graph)


def on_graph(topology: Topology) -> Array:
    """(n, n) boolean, in the caller's numbering: nodes and edges."""
    stored = mask(topology.precision_pattern)
    return in_callers_numbering(topology, stored | stored.T)


@dataclass(frozen=True)
class Projection:
    """A Gaussian without zeros in P, and its projection on a graph."""

    q: GaussianGraphicalModel
    p: GaussianGraphicalModel

    @property
    def gap(self) -> Array:
        """|Σ_q − Σ_p| on the graph, zero elsewhere."""
        return np.where(on_graph(self.p.topology), abs(covariance_of(self.q) - covariance_of(self.p)), 0)

    @property
    def gap_bound(self) -> Array:
        """The stated 1e-8 √(Σ_ii Σ_jj), or what columns of regressions lose; and the error of the moments of q."""
        sigma, error = inverse_error(self.q)
        root = np.sqrt(np.diagonal(sigma, axis1=-2, axis2=-1))
        scale = root[..., :, None] * root[..., None, :]
        if self.p.topology.precision_pattern.is_closed:
            own = in_callers_numbering(self.p.topology, regression_error(self.p))
        else:
            own = selection.TOLERANCE * scale + numerics.rounding(4, FLOAT64) * abs(sigma) + inverse_error(self.p)[1]
        return np.where(on_graph(self.p.topology), own + error, 0)


def regression_error(p: GaussianGraphicalModel) -> Array:
    """Of Σ where L comes column by column, as in tests/gaussian/test_fit.py, its moments rounded 12 times."""
    L, c = abs(factor_of(p)), p.factor_pattern.longest_column
    order = p.topology.order
    root = np.sqrt(np.diagonal(covariance_of(p), axis1=-2, axis2=-1))[..., order]
    level = 6 * c**2 * numerics.rounding(c, FLOAT64) * 2.0 ** (c - 1) + numerics.rounding(12, FLOAT64)
    reach = (root[..., :, None] * L).sum(axis=-2, keepdims=True)
    residual = 2 * level * root[..., :, None] * reach * mask(p.factor_pattern)
    lower = np.where(mask(p.factor_pattern), spread_residual(L, residual), 0)
    return np.maximum(lower, np.swapaxes(lower, -1, -2))


@st.composite
def projections(draw: st.DrawFn, on: st.SearchStrategy[Topology] | None = None) -> Projection:
    topology = draw(topologies(3) if on is None else on)
    rng, batch = np.random.default_rng(draw(seeds)), draw(st.sampled_from([(), (2,), (0,)]))
    q = dense_gaussian(rng, topology.n, batch)
    return Projection(q, geometry.project(q, topology))


# ---------------------------------------------------------------------- the projection


@pytest.mark.property
@given(projection=projections())
def test_a_projection_is_on_the_graph_with_the_moments_given_there(projection: Projection) -> None:
    p = projection.p
    assert p.graph is p.topology
    assert p.factor_pattern is p.topology.precision_pattern.filled()
    np.testing.assert_array_equal(p.loc, projection.q.loc)
    check("project", family(p), p.dtype, np.tril(projection.gap), np.tril(projection.gap_bound))


@pytest.mark.property
@given(projection=projections())
def test_a_projection_is_its_own_projection(projection: Projection) -> None:
    p = projection.p
    again = Projection(p, geometry.project(p, p.topology))
    check("project twice", family(p), p.dtype, np.tril(again.gap), np.tril(again.gap_bound))


@pytest.mark.property
@given(projection=projections(), seed=seeds)
def test_kl_to_the_graph_is_kl_to_the_projection_and_on_from_there(projection: Projection, seed: int) -> None:
    """KL(q ‖ p') − KL(q ‖ p) − KL(p ‖ p') = ½ tr[(P_p' − P_p)(Σ_q − Σ_p)], which is zero if the moments agree."""
    q, p = projection.q, projection.p
    pattern, rng = p.topology.precision_pattern, np.random.default_rng(seed)
    scale = np.sqrt(p.precision[..., pattern.diagonal])
    values = (
        precision_values(rng, pattern, (), "dominant", FLOAT64) * scale[..., pattern.rows] * scale[..., pattern.cols]
    )
    other = GaussianGraphicalModel.from_precision(p.loc, precision=values, topology=p.topology)
    left, *right = (a.kl_divergence(b) for a, b in ((q, other), (q, p), (p, other)))
    slack = (abs(precision_of(other) - precision_of(p)) * projection.gap_bound).sum(axis=(-1, -2)) / 2
    slack = slack + sum(kl_bound(a, b) for a, b in ((q, other), (q, p), (p, other)))
    slack = slack + off_graph(p, q) + off_graph(other, q) + off_graph(other, p)
    check("project: Pythagoras", family(p), p.dtype, left - sum(right), slack)


def off_graph(p: GaussianGraphicalModel, q: GaussianGraphicalModel) -> Array:
    """½ Σ |P_ij Σ_ij| off the graph, where the P of a computed factor is not exactly zero: rounding of `cholesky`."""
    stray = np.where(on_graph(p.topology), 0, precision_error(p))
    return (stray * abs(covariance_of(q))).sum(axis=(-1, -2))


@pytest.mark.parametrize(
    "topology", [Chain(7), Chain(7, order=range(7)[::-1]), Star(6), BlockChain(3, 2), Band(7, 2), complete_graph(4)]
)
def test_on_a_chordal_graph_the_projection_of_samples_is_their_fit_to_the_bit(topology: Topology) -> None:
    samples = np.random.default_rng(0).standard_normal((3, 50, topology.n)) @ np.tril(np.ones((topology.n,) * 2))
    loc, packed = fitting.mean_and_covariance(topology, samples)
    p = geometry.project(Moments(loc, *topology.unpack(packed)), topology)
    fitted = GaussianGraphicalModel.fit(samples, topology)
    np.testing.assert_array_equal(p.factor, fitted.factor)
    np.testing.assert_array_equal(p.loc, fitted.loc)


@pytest.mark.parametrize("topology", [Cycle(4), Grid(2, 3), ExtendedGrid(3, 3)], ids=str)
def test_newton_finds_what_proportional_scaling_finds(topology: Topology) -> None:
    rng = np.random.default_rng(1)
    q = dense_gaussian(rng, topology.n)
    sigma = covariance_of(q).astype(FLOAT64)
    units = np.sqrt(np.diag(sigma))
    P = reference.geometry.selection(edges_of(topology), sigma / np.outer(units, units), 300)
    p = geometry.project(q, topology)
    np.testing.assert_allclose(
        precision_of(p).astype(FLOAT64) * np.outer(units, units), P, rtol=0, atol=1e-5 * abs(P).max()
    )


def test_a_projection_on_an_extended_grid_is_nearer_than_the_fit_of_its_factor() -> None:
    """`fit` is nearest among the 40-dimensional family of L, which lies within the 49 dimensions of P on the graph."""
    grid, rng = ExtendedGrid(4, 4), np.random.default_rng(0)
    samples = rng.standard_normal((200, 16)) @ rng.standard_normal((16, 16))
    loc, packed = fitting.mean_and_covariance(grid, samples)
    p, fitted = geometry.project(Moments(loc, *grid.unpack(packed)), grid), GaussianGraphicalModel.fit(samples, grid)
    assert p.log_prob(samples).mean() > fitted.log_prob(samples).mean() + 0.01


def test_moments_broadcast_and_keep_their_dtype() -> None:
    chain, one = Chain(3), np.ones(3, np.float32)
    loc = np.arange(6, dtype=np.float32).reshape(2, 3)
    p = geometry.project(Moments(loc, one, np.full((4, 1, 2), 0.5, np.float32)), chain)
    assert p.batch_shape == (4, 2)
    assert p.dtype == np.float32
    exact = numerics.gamma(40, np.float32)
    np.testing.assert_allclose(p.covariance_on(chain.edges), 0.5, rtol=0, atol=exact)
    grid = geometry.project(
        Moments(np.zeros(4, np.float32), np.ones(4, np.float32), np.full(4, 0.3, np.float32)), Grid(2, 2)
    )
    np.testing.assert_allclose(grid.covariance_on(Grid(2, 2).edges), 0.3, rtol=0, atol=exact)


# ---------------------------------------------------------------------- fit on graphs that are not factor-free


@pytest.mark.property
@given(
    topology=topologies(3).filter(lambda topology: not topology.is_factor_free),
    seed=seeds,
    dtype=st.sampled_from(["float32", "float64"]),
)
def test_a_fit_on_any_other_graph_has_the_moments_of_the_samples(topology: Topology, seed: int, dtype: str) -> None:
    rng, n = np.random.default_rng(seed), topology.n
    count = topology.factor_pattern.longest_column + 5
    samples = (rng.standard_normal((2, count, n)) @ (np.eye(n) + rng.uniform(-0.3, 0.3, (n, n)))).astype(dtype)
    g = GaussianGraphicalModel.fit(samples, topology)
    exact = samples.astype(WIDE)
    centred = exact - exact.mean(axis=-2, keepdims=True)
    C = np.swapaxes(centred, -1, -2) @ centred / count
    root = np.sqrt(np.diagonal(C, axis1=-2, axis2=-1))
    scale = root[..., :, None] * root[..., None, :]
    sums = (
        numerics.rounding(count + 12, FLOAT64) * (1 + abs(exact).max(axis=-2) / root).max(axis=-1)[:, None, None] ** 2
    )
    sigma, error = inverse_error(g)
    L = abs(factor_of(g))
    rounded = numerics.gamma(1, g.dtype) * in_callers_numbering(topology, 2 * spread_of(L)) if dtype == "float32" else 0
    bound = (selection.TOLERANCE + sums) * scale + error + rounded
    assert g.dtype == np.dtype(dtype)
    check(
        "fit: moments",
        family(g),
        g.dtype,
        np.where(on_graph(topology), sigma - C, 0),
        np.where(on_graph(topology), bound, 0),
    )


def spread_of(L: Array) -> Array:
    """What a relative change of each L_ij by u does to Σ, in units of u: |L⁻ᵀ| (|L|ᵀ|Σ| …), to first order."""
    inverse = abs(np.linalg.inv(L.astype(FLOAT64)))
    sigma = np.swapaxes(inverse, -1, -2) @ inverse
    return 2 * np.swapaxes(inverse, -1, -2) @ np.swapaxes(L, -1, -2).astype(FLOAT64) @ sigma + sigma


def test_too_few_samples_are_refused_with_the_number_that_suffices_and_fitted_with_a_ridge() -> None:
    grid, rng = Grid(3, 3), np.random.default_rng(0)
    samples = rng.standard_normal((2, 5, 9))
    samples[1, :, 4] = samples[1, :, 3]
    message = (
        r"^fit: found no Gaussian on Grid\(3, 3\) for 5 samples: the covariance of .*node 4.*, batch element \(1,\)\. "
        rf"More than {grid.factor_pattern.longest_column} samples, the longest column of L, suffice; so does a ridge\.$"
    )
    with pytest.raises(NotPositiveDefiniteError, match=message) as caught:
        GaussianGraphicalModel.fit(samples, grid)
    assert caught.value.batch_index == (1,)
    fitted = GaussianGraphicalModel.fit(samples, grid, ridge=0.25)
    np.testing.assert_allclose(fitted.variance, 1.25 * samples.var(axis=-2), rtol=1e-8)
    np.testing.assert_allclose(fitted.correlation_on([(4, 3)])[1], 0.8, atol=1e-8)


@pytest.mark.parametrize("ridge", [-0.1, np.nan, np.inf])
def test_a_ridge_is_a_number_that_is_not_negative(ridge: float) -> None:
    with pytest.raises(NonPositiveError, match=r"^fit: ridge must be finite and ≥ 0, got"):
        GaussianGraphicalModel.fit(np.ones((3, 2)), Chain(2), ridge=ridge)


def test_a_ridge_multiplies_the_variances_on_a_chain_too() -> None:
    samples = np.random.default_rng(0).standard_normal((1, 3))
    with pytest.raises(NotPositiveDefiniteError):
        GaussianGraphicalModel.fit(samples, Chain(3), ridge=0.5)  # one sample has no variance to multiply
    samples = np.random.default_rng(0).standard_normal((2, 3))
    np.testing.assert_allclose(GaussianGraphicalModel.fit(samples, Chain(3), ridge=0.5).variance, 1.5 * samples.var(0))


# ---------------------------------------------------------------------- refusals

ZERO, ONE = np.zeros(4), np.ones(4)


@pytest.mark.parametrize(
    ("moments", "topology", "error", "message"),
    [
        (Moments(ZERO, ONE, ONE), Cycle(4), NotPositiveDefiniteError, r".*Cycle\(n=4\).* node 0 and node 1 is 1, its"),
        (
            Moments(ZERO, ONE * [1, 0, 1, 1], ZERO),
            Cycle(4),
            NotPositiveDefiniteError,
            r".*the variance of node 1 is 0\.",
        ),
        (
            Moments(ZERO, ONE * [1, 1, -1, 1], ZERO[:3]),
            Chain(4),
            NotPositiveDefiniteError,
            r".*variance of node 2 is -1",
        ),
        (
            Moments(ZERO, ONE, ONE[:3]),
            Cycle(4),
            ShapeError,
            r" covariance must end in 4 on Cycle\(n=4\), got shape \(3,",
        ),
        (Moments(ZERO[:3], ONE, ONE), Cycle(4), ShapeError, r" loc must end in 4"),
        (Moments(ZERO, ONE * np.nan, ZERO), Cycle(4), NonFiniteError, r" variance must be finite"),
        (Moments(np.zeros((2, 4)), np.ones((3, 4)), ZERO), Cycle(4), ShapeError, r" batch axes must broadcast"),
    ],
)
def test_moments_that_no_gaussian_has_are_refused(
    moments: Moments, topology: Topology, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^project:{message}"):
        geometry.project(moments, topology)


@pytest.mark.parametrize("correlation", [0.75, 0.9])
def test_moments_of_which_each_pair_alone_is_possible_are_refused_with_how_far_it_came(correlation: float) -> None:
    """On a four-cycle three correlations ρ and one −ρ have a completion only if 3 arccos ρ ≥ arccos(−ρ): ρ ≤ 0.7072."""
    cycle = Cycle(4)
    covariance = np.where((cycle.edges == [3, 0]).all(axis=1), -correlation, correlation)
    message = (
        r"^project: found no Gaussian on Cycle\(n=4\) for these moments: after \d+ Newton steps the correlation of"
    )
    with pytest.raises(NotPositiveDefiniteError, match=message):
        geometry.project(Moments(ZERO, ONE, covariance), cycle)
    p = geometry.project(Moments(ZERO, ONE, covariance * 0.7 / correlation), cycle)
    np.testing.assert_allclose(abs(p.covariance_on(cycle.edges)), 0.7, rtol=0, atol=1.1e-8)


def test_another_number_of_nodes_is_refused() -> None:
    q = dense_gaussian(np.random.default_rng(0), 3)
    with pytest.raises(ShapeError, match=r"^project: topology must have 3 nodes, as the Gaussian, got Chain\(n=4\)\.$"):
        geometry.project(q, Chain(4))


def test_a_torus_is_projected_within_the_stated_gap() -> None:
    """A larger case than hypothesis draws, strongly correlated: Newton's steps must be cut, and many products made."""
    torus = Torus(12, 12)
    values = torus.pack((np.full(144, 4.01), -np.ones(len(torus.edges))))
    q = GaussianGraphicalModel.from_precision(np.zeros(144), precision=values, topology=torus)
    p = geometry.project(q, torus)
    moments, again = geometry.moments_on(q, torus), geometry.moments_on(p, torus)
    np.testing.assert_allclose(again.variance, moments.variance, rtol=1.1e-8)
    np.testing.assert_allclose(again.covariance, moments.covariance, rtol=0, atol=1.1e-8 * moments.variance[0])


def test_a_graph_without_edges_keeps_the_variances() -> None:
    q = dense_gaussian(np.random.default_rng(0), 4)
    p = geometry.project(q, Graph(4, np.empty((0, 2), int)))
    np.testing.assert_allclose(p.variance, q.variance, rtol=1e-14)


def test_the_graphical_lasso_is_the_projection_of_its_own_moments() -> None:
    """Its Σ has the moments S_ii, S_ij ± α on the edges that it keeps, and its P no others: scikit-learn's solution."""
    covariance = pytest.importorskip("sklearn.covariance", reason="scikit-learn is optional")
    rng = np.random.default_rng(3)
    x = rng.standard_normal((400, 9)) @ (np.eye(9) + 0.5 * rng.standard_normal((9, 9)))
    x /= x.std(0)
    sigma, P = covariance.graphical_lasso(np.cov(x.T, bias=True), 0.1, tol=1e-12, enet_tol=1e-12, max_iter=1000)
    edges = np.argwhere(np.tril(P, -1))
    graph = Graph(9, edges)
    assert 9 < len(edges) < 30
    assert not graph.precision_pattern.is_closed
    i, j = graph.edges.T
    g = geometry.project(Moments(np.zeros(9), sigma.diagonal(), sigma[i, j]), graph)
    np.testing.assert_allclose(g.precision_matrix(), P, atol=1e-6 * abs(P).max())  # 1e-8 in Σ, times cond(Σ) < 100
    assert np.linalg.cond(sigma) < 100
