"""Wasserstein's distance against dense matrix roots, and the bound of common noise."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st

from sparseggm import Chain, Diagonal, GaussianGraphicalModel, ShapeError, geometry
from tests.gaussian_bounds import covariance_of, loc_of
from tests.geometry.test_mixtures import Gaussians, together


def by_roots(q: GaussianGraphicalModel, p: GaussianGraphicalModel) -> float:
    """|Δloc|² + tr Σ_q + tr Σ_p − 2 tr (Σ_q^½ Σ_p Σ_q^½)^½."""
    S, T = (covariance_of(g).astype(np.float64) for g in (q, p))
    root = scipy.linalg.sqrtm(S)
    cross = scipy.linalg.sqrtm(root @ T @ root)
    return float(((loc_of(q) - loc_of(p)) ** 2).sum() + np.trace(S) + np.trace(T) - 2 * np.trace(cross).real)


def coupled(q: GaussianGraphicalModel, p: GaussianGraphicalModel) -> np.ndarray:
    """E |z_q − z_p|², the noise of each node in common, by the unit vectors."""
    apart = [q.colorize(e) - p.colorize(e) for e in np.eye(q.n)]
    return np.asarray(sum((x**2).sum(axis=-1) for x in apart) + ((loc_of(q) - loc_of(p)) ** 2).sum(axis=-1))


@pytest.mark.property
@given(pair=together())
def test_wasserstein_is_that_of_dense_roots_and_no_more_than_common_noise(pair: Gaussians) -> None:
    q, p = pair
    distance = geometry.wasserstein(q, p)
    size = np.trace(covariance_of(q) + covariance_of(p), axis1=-2, axis2=-1) + coupled(q, p)
    assert (distance**2 <= coupled(q, p) + 1e-12 * size).all()
    np.testing.assert_array_equal(distance.shape, q.batch_shape)
    for index in np.ndindex(q.batch_shape):
        one = GaussianGraphicalModel.from_precision(
            np.broadcast_to(q.loc, (*q.batch_shape, q.n))[index],
            precision=np.broadcast_to(q.precision, (*q.batch_shape, q.precision.shape[-1]))[index],
            topology=q.graph,
        )
        other = GaussianGraphicalModel.from_precision(
            np.broadcast_to(p.loc, (*q.batch_shape, p.n))[index],
            precision=np.broadcast_to(p.precision, (*q.batch_shape, p.precision.shape[-1]))[index],
            topology=p.graph,
        )
        assert abs(distance[index] ** 2 - by_roots(one, other)) <= 1e-7 * size[index]


@pytest.mark.property
@given(pair=together())
def test_the_bound_of_common_noise_is_estimated_without_bias(pair: Gaussians) -> None:
    q, p = pair
    estimate = geometry.coupled_distance(q, p, num_probes=200, rng=0)
    exact = np.sqrt(coupled(q, p))
    assert (abs(estimate.value - exact) <= 6 * estimate.standard_error + 1e-9 + 0.01 * exact).all()


@given(scales=st.tuples(*[st.floats(0.1, 10)] * 2), move=st.floats(-5, 5))
def test_of_one_variable_it_is_that_of_mean_and_scale(scales: tuple[float, float], move: float) -> None:
    q, p = (
        GaussianGraphicalModel([loc], factor=[1 / scale], topology=Chain(1))
        for loc, scale in zip((0.0, move), scales, strict=True)
    )
    exact = np.hypot(move, scales[0] - scales[1])
    np.testing.assert_allclose(geometry.wasserstein(q, p), exact, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(geometry.coupled_distance(q, p).value, exact, rtol=1e-12, atol=1e-13)


def test_near_gaussians_keep_their_digits() -> None:
    """Scales 1 and 1 + 2⁻³⁰ of 100 nodes: W = 10 · 2⁻³⁰, whose square the traces would cancel."""
    q, p = (
        GaussianGraphicalModel(np.zeros(100), factor=np.full(100, 1 / s), topology=Diagonal(100))
        for s in (1, 1 + 2.0**-30)
    )
    np.testing.assert_allclose(geometry.wasserstein(q, p), 10 * 2.0**-30, rtol=1e-6)
    assert geometry.wasserstein(q, q) < 1e-13


def test_what_has_no_distance_is_refused() -> None:
    q, p = (GaussianGraphicalModel(np.zeros(n), factor=np.ones(n), topology=Diagonal(n)) for n in (3, 30_000))
    with pytest.raises(ShapeError, match=r"^wasserstein: 30000 nodes would take 7\.2 GB a matrix\. Use coupled_dist"):
        geometry.wasserstein(p, p)
    with pytest.raises(ValueError, match=r"^coupled_distance: num_probes must be at least 2, got 1"):
        geometry.coupled_distance(q, q, num_probes=1)
    for wrong in (2.5, "9", np.nan):
        with pytest.raises(ValueError, match=r"^coupled_distance: num_probes must be an integer, got"):
            geometry.coupled_distance(q, q, num_probes=wrong)  # type: ignore[arg-type]
    assert geometry.coupled_distance(q, q).standard_error == 0
