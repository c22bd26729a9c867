"""Geodesics and centroids: against dense parameters, by what they minimise, and where they leave the cone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference.gaussian
import reference.inference
from sparseggm import (
    Chain,
    Cycle,
    Diagonal,
    ExtendedGrid,
    GaussianGraphicalModel,
    Graph,
    Grid,
    NonFiniteError,
    NonPositiveError,
    NotPositiveDefiniteError,
    ShapeError,
    Topology,
    geometry,
)
from sparseggm.gaussian import selection
from tests import numerics
from tests.gaussian.test_inference import product_error
from tests.gaussian_bounds import (
    covariance_of,
    distance,
    energy,
    factorisation_error,
    family,
    kl_bound,
    loc_of,
    precision_error,
    precision_of,
    solution_bound,
    spread,
)
from tests.ledger import check
from tests.numerics import Array
from tests.strategies import gaussians, precision_values, seeds
from tests.topologies import sides, topologies_of

FLOAT64 = np.float64
Gaussians = list[GaussianGraphicalModel]


@st.composite
def together(draw: st.DrawFn, count: int = 2, one_graph: bool = False, dtype: str | None = "float64") -> Gaussians:
    """Gaussians on the same nodes, on one graph or on several; batch axes broadcast."""
    rows, cols = draw(sides(3)), draw(sides(3))
    one = st.one_of(st.sampled_from([Grid(rows, cols), ExtendedGrid(rows, cols)]), topologies_of(rows * cols))
    first = draw(gaussians(draw(one), dtype))
    rng = np.random.default_rng(draw(seeds))
    result = [first]
    for _ in range(count - 1):
        topology = first.graph if one_graph else draw(one)
        values = precision_values(rng, topology.precision_pattern, first.batch_shape, "dominant", first.dtype)
        loc = rng.standard_normal(topology.n).astype(first.dtype)
        result.append(GaussianGraphicalModel.from_precision(loc, precision=values, topology=topology))
    return result


# ---------------------------------------------------------------------- e-geodesics


@pytest.mark.property
@given(pair=together(dtype=None), t=st.sampled_from([0.0, 0.25, 0.5, 1.0]), as_array=st.booleans())
def test_an_e_geodesic_is_straight_in_natural_parameters(pair: Gaussians, t: float, as_array: bool) -> None:
    q, p = pair
    g = geometry.e_geodesic(q, p, np.full(q.batch_shape, t) if as_array else t)
    P, more = (1 - t) * precision_of(q), t * precision_of(p)
    information = t * numerics.apply(precision_of(p), loc_of(p)) - t * numerics.apply(precision_of(p), loc_of(q))
    mean, sigma = reference.inference.product(np.zeros_like(loc_of(q)), P, information, more)
    mean = mean + loc_of(q)
    error = (1 - t) * precision_error(q) + t * precision_error(p) + factorisation_error(P + more, q.dtype)
    error = error + numerics.rounding(3, q.dtype) * (abs(P) + abs(more))
    pull = t * product_error(p, abs(loc_of(p) - loc_of(q)))
    pull = pull + numerics.rounding(3, q.dtype) * numerics.apply(abs(more), abs(loc_of(p) - loc_of(q)))
    assert g.dtype == q.dtype
    check("e_geodesic", family(q), q.dtype, distance(g, sigma), spread(P + more, error))
    bound = solution_bound(g, sigma, loc_of(q), error, pull)
    check("e_geodesic, loc", family(q), q.dtype, energy(P + more, loc_of(g) - mean), bound)


@pytest.mark.property
@given(pair=together(one_graph=True), t=st.floats(0, 1))
def test_an_e_geodesic_stays_on_the_graph(pair: Gaussians, t: float) -> None:
    q, p = pair
    assert geometry.e_geodesic(q, p, t).graph is q.graph


def test_many_points_of_a_geodesic_are_a_batch() -> None:
    q = GaussianGraphicalModel(np.zeros((2, 3)), factor=np.ones(5), topology=Chain(3))
    p = GaussianGraphicalModel(np.ones(3), factor=[2.0, 0, 2, 0, 2], topology=Chain(3))
    t = np.linspace(0, 1, 5)[:, None]
    for geodesic in (geometry.e_geodesic, geometry.m_geodesic):
        path = geodesic(q, p, t)
        assert path.batch_shape == (5, 2)
        for k in range(5):
            one = geodesic(q, p, t[k, 0])
            np.testing.assert_allclose(path.factor[k], np.broadcast_to(one.factor, path.factor[k].shape), rtol=1e-14)
            np.testing.assert_allclose(path.loc[k], one.loc, rtol=1e-14)


def test_beyond_the_ends_a_geodesic_goes_as_far_as_there_are_gaussians() -> None:
    q = GaussianGraphicalModel(np.zeros(4), factor=np.ones(7), topology=Chain(4))
    p = GaussianGraphicalModel(np.zeros(4), factor=np.ones(4), topology=Diagonal(4))
    g = geometry.e_geodesic(q, p, -0.1)
    is_node = Chain(4).precision_pattern.rows == Chain(4).precision_pattern.cols
    np.testing.assert_allclose(g.precision, 1.1 * q.precision - 0.1 * is_node, rtol=1e-13)
    for geodesic, name in ((geometry.e_geodesic, "e"), (geometry.m_geodesic, "m")):
        message = (
            rf"^{name}_geodesic: t must be in \[0, 1\], or so near that a Gaussian is there, got t from -9 to -9, "
        )
        with pytest.raises(NotPositiveDefiniteError, match=message):
            geodesic(q if name == "e" else p, p if name == "e" else q, -9.0)
    with pytest.raises(NonFiniteError, match=r"^e_geodesic: t must be finite"):
        geometry.e_geodesic(q, p, np.nan)


# ---------------------------------------------------------------------- m-geodesics


@pytest.mark.property
@given(pair=together(), t=st.sampled_from([0.0, 0.3, 1.0]))
def test_an_m_geodesic_has_the_moments_of_the_mixture_on_the_union_of_the_graphs(pair: Gaussians, t: float) -> None:
    q, p = pair
    g = geometry.m_geodesic(q, p, t)
    d = loc_of(p) - loc_of(q)
    exact = (1 - t) * covariance_of(q) + t * covariance_of(p) + t * (1 - t) * d[..., :, None] * d[..., None, :]
    root = np.sqrt(np.diagonal(exact, axis1=-2, axis2=-1))
    i, j = np.concatenate([g.graph.edges, np.repeat(np.arange(g.n), 2).reshape(-1, 2)]).T
    error = abs(covariance_of(g) - exact)[..., i, j]
    rounding = 1e3 * numerics.gamma(
        q.n, FLOAT64
    )  # of well-conditioned parts; the stated gap is ten thousand times that
    check("m_geodesic", family(q), q.dtype, error, (selection.TOLERANCE + rounding) * root[..., i] * root[..., j])
    mean = (1 - t) * loc_of(q) + t * loc_of(p)
    size = abs(loc_of(q)) + abs(loc_of(p))
    check("m_geodesic, loc", family(q), q.dtype, loc_of(g) - mean, numerics.rounding(6, FLOAT64) * size)
    assert set(map(tuple, g.graph.edges)) == set(map(tuple, q.graph.edges)) | set(map(tuple, p.graph.edges))


def test_one_variable_by_hand() -> None:
    """N(0, 1) and N(4, 1/4): P = (1 + 4)/2 and h = 16/2 between them by e; mean 2, variance 5/8 + 4 by m."""
    q, p = (GaussianGraphicalModel([loc], factor=[pivot], topology=Chain(1)) for loc, pivot in ((0.0, 1.0), (4.0, 2.0)))
    e, m = geometry.e_geodesic(q, p, 0.5), geometry.m_geodesic(q, p, 0.5)
    np.testing.assert_allclose([e.precision[0], e.loc[0]], [2.5, 3.2], rtol=1e-15)
    np.testing.assert_allclose([m.variance[0], m.loc[0]], [4.625, 2.0], rtol=1e-15)


# ---------------------------------------------------------------------- centroids


@pytest.mark.property
@given(several=together(3), seed=seeds)
def test_an_e_centroid_minimises_the_mean_of_kl_to_them(several: Gaussians, seed: int) -> None:
    """Σ w KL(c' ‖ p_k) − Σ w KL(c ‖ p_k) = KL(c' ‖ c) for every Gaussian c'."""
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0.1, 1, 3)
    c = geometry.centroid(several, weights)
    other = random_on(rng, Graph(c.n, np.argwhere(np.tril(np.ones((c.n, c.n)), -1))))
    gain = total(weights, other, several) - total(weights, c, several)
    slack = sum(kl_bound(a, b) for a in (other, c) for b in several) + kl_bound(other, c) + slack_of(c, other)
    check("centroid e", family(several[0]), c.dtype, gain - other.kl_divergence(c), slack)


@pytest.mark.property
@given(several=together(3), seed=seeds)
def test_an_m_centroid_minimises_the_mean_of_kl_from_them(several: Gaussians, seed: int) -> None:
    """Σ w KL(p_k ‖ c') − Σ w KL(p_k ‖ c) = KL(c ‖ c') for every c' on the graph."""
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0.1, 1, 3)
    c = geometry.centroid(several, weights, "m")
    other = random_on(rng, c.graph)
    gain = total(weights, other, several, True) - total(weights, c, several, True)
    root = np.sqrt(np.diagonal(covariance_of(c), axis1=-2, axis2=-1))
    scale = root[..., :, None] * root[..., None, :]
    gap = (abs(precision_of(other) - precision_of(c)) * selection.TOLERANCE * scale).sum(axis=(-1, -2))
    slack = gap + sum(kl_bound(b, a) for a in (other, c) for b in several) + kl_bound(c, other) + slack_of(c, other)
    check("centroid m", family(several[0]), c.dtype, gain - c.kl_divergence(other), slack)


def total(weights: Array, c: GaussianGraphicalModel, several: Gaussians, is_from: bool = False) -> Array:
    parts = [p.kl_divergence(c) if is_from else c.kl_divergence(p) for p in several]
    return np.asarray(sum(w * part for w, part in zip(weights / weights.sum(), parts, strict=True)))


def random_on(rng: np.random.Generator, topology: Topology) -> GaussianGraphicalModel:
    values = precision_values(rng, topology.precision_pattern, (), "dominant", FLOAT64)
    return GaussianGraphicalModel.from_precision(rng.standard_normal(topology.n), precision=values, topology=topology)


def slack_of(c: GaussianGraphicalModel, other: GaussianGraphicalModel) -> Array:
    """What the rounding of the parameters of c, δ of each as a quadratic form, may add to divergences about c."""
    P, S = precision_of(c), covariance_of(other) + covariance_of(c)
    d = abs(loc_of(other) - loc_of(c))
    level = 20 * numerics.rounding(c.n, FLOAT64)
    root = np.sqrt(np.diagonal(P, axis1=-2, axis2=-1))
    size = root[..., :, None] * root[..., None, :]
    moved = d[..., :, None] * d[..., None, :]
    spread_of = abs(covariance_of(c)).sum(axis=(-1, -2)) * size.sum(axis=(-1, -2))
    return level * (1 + spread_of) * (size * (abs(S) + moved)).sum(axis=(-1, -2))


def test_a_centroid_of_one_is_itself_and_zero_weights_count_nothing() -> None:
    rng = np.random.default_rng(0)
    q, p = random_on(rng, Cycle(5)), random_on(rng, Chain(5))
    for kind in ("e", "m"):
        assert abs(geometry.centroid([q], None, kind).kl_divergence(q)) < 1e-12
        assert abs(geometry.centroid([q, p], [2.0, 0.0], kind).kl_divergence(q)) < 1e-12


def test_two_equal_weights_are_the_middle_of_the_geodesic() -> None:
    rng = np.random.default_rng(0)
    q, p = random_on(rng, Chain(5)), random_on(rng, Chain(5))
    for kind, geodesic in (("e", geometry.e_geodesic), ("m", geometry.m_geodesic)):
        np.testing.assert_array_equal(geometry.centroid([q, p], kind=kind).factor, geodesic(q, p, 0.5).factor)


def test_what_has_no_centroid_is_refused() -> None:
    q = GaussianGraphicalModel(np.zeros(3), factor=np.ones(5), topology=Chain(3))
    with pytest.raises(ShapeError, match=r"^centroid: needs a list of Gaussians, one or more, got \[\]\.$"):
        geometry.centroid([])
    with pytest.raises(ShapeError, match=r"^centroid: weights must be \(2,\), one for each Gaussian, got shape \(3,\)"):
        geometry.centroid([q, q], [1, 2, 3])
    with pytest.raises(NonPositiveError, match=r"^centroid: weights must be ≥ 0, and one of them positive, got"):
        geometry.centroid([q, q], [1.0, -1.0])
    with pytest.raises(NonPositiveError, match=r"^centroid: weights must be ≥ 0, and one of them positive, got"):
        geometry.centroid([q, q], [0, 0])
    with pytest.raises(ValueError, match=r"^centroid: kind must be"):
        geometry.centroid([q], kind="n")
    with pytest.raises(ShapeError, match=r"^centroid: needs two Gaussians of 3 nodes, got one of 4\.$"):
        geometry.centroid([q, GaussianGraphicalModel(np.zeros(4), factor=np.ones(4), topology=Diagonal(4))])
