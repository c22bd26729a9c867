"""Jeffreys' divergence against its definition, and bounds of Fisher–Rao against its closed forms."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference.gaussian
import reference.geometry
from sparseggm import Chain, Diagonal, GaussianGraphicalModel, Graph, PatternError, ShapeError, geometry
from tests import numerics
from tests.gaussian_bounds import covariance_of, family, kl_bound, loc_of, precision_error, precision_of, trace_bound
from tests.gaussian_bounds import inverse_error as sigma_error
from tests.geometry.test_mixtures import Gaussians, random_on, together
from tests.ledger import check
from tests.numerics import Array
from tests.strategies import seeds
from tests.topologies import complete_graph

FLOAT64 = np.float64
ROUNDING = 1e-9
"""Far above rounding in the well-conditioned cases here, and far below the differences that are tested."""


@pytest.mark.property
@given(pair=together(dtype=None))
def test_jeffreys_is_the_sum_of_both_divergences_without_their_cancellation(pair: Gaussians) -> None:
    """½ tr(ΔP ΔΣ) and two quadratic forms: within the errors of ΔP and ΔΣ, which do not grow with n + |log det P|."""
    q, p = pair
    exact = sum(
        reference.gaussian.kl_divergence(loc_of(a), precision_of(a), loc_of(b), precision_of(b))
        for a, b in ((q, p), (p, q))
    )
    weights, weights_error = precision_of(p) - precision_of(q), precision_error(p) + precision_error(q)
    sigma, error = covariance_of(q) - covariance_of(p), sigma_error(q)[1] + sigma_error(p)[1]
    trace = trace_bound(weights, weights_error + numerics.rounding(1, q.dtype) * abs(weights), sigma, error) / 2
    bound = trace + kl_bound(q, p) + kl_bound(p, q)
    check("jeffreys", family(q), q.dtype, geometry.jeffreys(q, p) - exact, bound)


def test_jeffreys_of_near_gaussians_keeps_its_digits() -> None:
    """P and s P have J = n (s + 1/s − 2)/2: 5e-11 for n = 10⁴ and s = 1 + 1e-7, lost in KL, whose n is 10⁴."""
    n, s = 10_000, 1 + 2.0**-23
    q = GaussianGraphicalModel(np.zeros(n), factor=np.tile([1.0, 0.5], n)[:-1], topology=Chain(n))
    p = GaussianGraphicalModel.from_precision(q.loc, precision=s * q.precision, topology=Chain(n))
    exact = n * (s - 1) ** 2 / s / 2
    assert abs(geometry.jeffreys(q, p) - exact) < 1e-6 * exact
    assert abs(q.kl_divergence(p) + p.kl_divergence(q) - exact) > 1e-3 * exact
    assert geometry.jeffreys(q, q) == 0


# ---------------------------------------------------------------------- lengths


@pytest.mark.property
@given(pair=together(), pieces=st.sampled_from([2, 3, 8]))
def test_jeffreys_is_the_energy_of_the_e_geodesic(pair: Gaussians, pieces: int) -> None:
    """Σ J of K equal pieces is J / K: both are Δθᵀ Δη, and Δη telescopes."""
    q, p = pair
    path = [geometry.e_geodesic(q, p, k / pieces) for k in range(pieces + 1)]
    parts = sum(geometry.jeffreys(a, b) for a, b in pairwise(path))
    whole = geometry.jeffreys(q, p)
    np.testing.assert_allclose(pieces * parts, whole, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.property
@given(pair=together())
def test_more_points_never_lengthen_an_e_geodesic(pair: Gaussians) -> None:
    q, p = pair
    lengths = [
        geometry.fisher_length([geometry.e_geodesic(q, p, t) for t in np.linspace(0, 1, k)]) for k in (2, 3, 5, 9)
    ]
    np.testing.assert_allclose(lengths[0], np.sqrt(geometry.jeffreys(q, p)), rtol=ROUNDING, atol=ROUNDING)
    assert all((b <= a * (1 + ROUNDING) + ROUNDING).all() for a, b in pairwise(lengths))


def test_a_path_of_one_point_has_no_length_and_an_empty_one_is_refused() -> None:
    q = GaussianGraphicalModel(np.zeros((2, 3)), factor=np.ones(5), topology=Chain(3))
    np.testing.assert_array_equal(geometry.fisher_length([q]), np.zeros(2))
    with pytest.raises(ShapeError, match=r"^fisher_length: needs a list of Gaussians, one or more, got \[\]\.$"):
        geometry.fisher_length([])


# ---------------------------------------------------------------------- bounds


def diagonal(rng: np.random.Generator, n: int) -> GaussianGraphicalModel:
    return GaussianGraphicalModel(3 * rng.standard_normal((2, n)), factor=rng.lognormal(size=n), topology=Diagonal(n))


def distance_of_nodes(q: GaussianGraphicalModel, p: GaussianGraphicalModel) -> Array:
    scales = (np.sqrt(np.diagonal(covariance_of(g), axis1=-2, axis2=-1)) for g in (q, p))
    scale_q, scale_p = scales
    own = reference.geometry.normal_distance(loc_of(q), scale_q, loc_of(p), scale_p)
    return np.asarray(np.sqrt((own**2).sum(axis=-1)))


@pytest.mark.parametrize("scale", [1e-150, 1e-100, 1.0, 1e100, 3e153])
def test_bounds_do_not_depend_on_the_scale(scale: float) -> None:
    """Of means and deviations: N(0, s²) and N(s, 9 s²) are as far apart for every s."""
    means, deviations = np.array([0.0, scale]), np.array([scale, 3.0 * scale])
    q, p = (
        GaussianGraphicalModel(means[k : k + 1], factor=1.0 / deviations[k : k + 1], topology=Chain(1))
        for k in range(2)
    )
    exact = 2.0 * math.sqrt(2.0) * math.asinh(math.sqrt((1.0 + 2.0 * 2.0**2) / (8.0 * 3.0)))
    for bound in geometry.fisher_rao_bounds(q, p):
        assert abs(bound - exact) <= numerics.rounding(20, FLOAT64) * exact


@pytest.mark.property
@given(n=st.integers(1, 6), seed=seeds)
def test_without_edges_both_bounds_are_the_closed_form(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    q, p = diagonal(rng, n), diagonal(rng, n)
    bounds, exact = geometry.fisher_rao_bounds(q, p), distance_of_nodes(q, p)
    np.testing.assert_array_equal(bounds.lower, bounds.upper)
    slack = numerics.rounding(n + 20, FLOAT64) * exact * 4
    check("fisher_rao_bounds: exact", "Diagonal", q.dtype, bounds.lower - exact, slack)


@pytest.mark.property
@given(n=st.integers(2, 6), seed=seeds, near=st.sampled_from([1.0, 1e-2]))
def test_the_bounds_hold_the_closed_form_of_independent_nodes_on_a_chain(n: int, seed: int, near: float) -> None:
    """The same Gaussians as on a diagonal, as a chain whose couplings are zero."""
    rng, chain = np.random.default_rng(seed), Chain(n)
    is_node = chain.factor_pattern.rows == chain.factor_pattern.cols
    pair = []
    for _ in range(2):
        pivots = np.exp(near * rng.standard_normal(n))
        factor = np.where(is_node, pivots[chain.factor_pattern.cols], 0)
        pair.append(GaussianGraphicalModel(near * rng.standard_normal(n), factor=factor, topology=chain))
    bounds, exact = geometry.fisher_rao_bounds(*pair), distance_of_nodes(*pair)
    assert bounds.lower <= exact * (1 + ROUNDING)
    assert exact <= bounds.upper * (1 + ROUNDING)
    if near < 1:
        assert bounds.upper - bounds.lower < 0.02 * exact


@pytest.mark.property
@given(pair=together())
def test_the_bounds_hold_the_closed_form_of_one_mean(pair: Gaussians) -> None:
    """ρ² = ½ Σ log² λ(P_p⁻¹ P_q) among all Gaussians; on the graph alone it is no less."""
    q, p = pair[0].moved_to(np.zeros(pair[0].n)), pair[1].moved_to(np.zeros(pair[0].n))
    bounds = geometry.fisher_rao_bounds(q, p, 32)
    whitener = np.linalg.inv(np.linalg.cholesky(precision_of(p).astype(FLOAT64)))
    inside = whitener @ precision_of(q).astype(FLOAT64) @ np.swapaxes(whitener, -1, -2)
    exact = np.sqrt((np.log(np.linalg.eigvalsh(inside)) ** 2).sum(axis=-1) / 2)
    assert (bounds.lower <= exact * (1 + ROUNDING) + 1e-7).all()
    assert (exact <= bounds.upper * (1 + ROUNDING) + 1e-7).all()


@pytest.mark.parametrize("n", range(2, 6))
def test_the_bounds_hold_the_distances_of_geomstats(n: int) -> None:
    """Of independent nodes, and of full covariances with one mean: closed forms there, which other code has written."""
    normal = pytest.importorskip(
        "geomstats.information_geometry.normal",
        reason="geomstats is not installed, or does not work with this NumPy",
        exc_type=ImportError,
    )
    rng, topology = np.random.default_rng(n), complete_graph(n)
    independent, centred = (normal.NormalDistributions(n, kind).metric for kind in ("diagonal", "centered"))
    for _ in range(20):
        pair = diagonal(rng, n), diagonal(rng, n)
        points = (np.concatenate([g.loc, g.variance + 0.0 * g.loc], -1) for g in pair)
        np.testing.assert_allclose(geometry.fisher_rao_bounds(*pair).upper, independent.dist(*points), rtol=1e-10)
        pair = tuple(random_on(rng, topology).moved_to(np.zeros(n)) for _ in range(2))
        exact = centred.dist(*(covariance_of(g).astype(FLOAT64) for g in pair))
        bounds = geometry.fisher_rao_bounds(*pair, 32)
        assert (bounds.lower <= exact * (1 + ROUNDING) + 1e-7).all()
        assert (exact <= bounds.upper * (1 + ROUNDING) + 1e-7).all()


@pytest.mark.property
@given(pair=together(), t=st.floats(0.1, 0.9))
def test_a_lower_bound_is_below_every_path(pair: Gaussians, t: float) -> None:
    """Of the m-geodesic, and of two e-geodesics by way of a third Gaussian."""
    q, p = pair
    bounds = geometry.fisher_rao_bounds(q, p)
    middle = random_on(np.random.default_rng(0), q.graph)
    around = [
        *(geometry.e_geodesic(q, middle, s) for s in (0, t, 1)),
        *(geometry.e_geodesic(middle, p, s) for s in (t, 1)),
    ]
    straight = [q, geometry.m_geodesic(q, p, t), p]
    for path in (around, straight):
        assert (bounds.lower <= geometry.fisher_length(path) * (1 + ROUNDING) + 1e-7).all()
    assert (bounds.lower <= bounds.upper).all()


def test_near_gaussians_have_near_bounds() -> None:
    rng = np.random.default_rng(0)
    q = random_on(rng, Chain(50))
    p = geometry.e_geodesic(q, random_on(rng, Chain(50)), 0.01)
    bounds = geometry.fisher_rao_bounds(q, p)
    assert 0 < bounds.upper - bounds.lower < 0.01 * bounds.upper


def test_the_scales_of_many_nodes_count_together() -> None:
    """Of a chain of independent pairs the distance grows as √n, and so does the lower bound."""
    edges = [(2 * k + 1, 2 * k) for k in range(50)]
    q = GaussianGraphicalModel(np.zeros(100), factor=np.tile([1.0, 0.0, 1.0], 50), topology=Graph(100, edges))
    p = GaussianGraphicalModel(np.zeros(100), factor=np.tile([3.0, 0.0, 3.0], 50), topology=Graph(100, edges))
    exact = np.sqrt(2 * 100) * np.log(3)
    bounds = geometry.fisher_rao_bounds(q, p, 64)
    assert bounds.lower == pytest.approx(exact, rel=1e-12)
    assert exact <= bounds.upper < 1.001 * exact


def test_pieces_are_counted_from_one() -> None:
    q = random_on(np.random.default_rng(0), complete_graph(3))
    for wrong in (2.5, "3", np.nan):
        with pytest.raises(PatternError, match=r"^fisher_rao_bounds: pieces must be an integer, got"):
            geometry.fisher_rao_bounds(q, q, wrong)  # type: ignore[arg-type]
    with pytest.raises(PatternError, match=r"^fisher_rao_bounds: pieces must be at least 1, got 0\.$"):
        geometry.fisher_rao_bounds(q, q, 0)
    bounds = geometry.fisher_rao_bounds(q, q, 1)
    assert bounds.lower == 0
    assert bounds.upper < 1e-7
