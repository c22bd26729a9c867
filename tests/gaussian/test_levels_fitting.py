"""Fits of grey images: the exact maximum of a pixel, EM against the bound it raises, moments by chunks, memory."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import logit
from scipy.stats import norm

import reference.inference
from sparseggm import Diagonal, ExtendedGrid, GaussianGraphicalModel, Stencil, Topology
from sparseggm.gaussian import levels_fitting
from sparseggm.gaussian.fitting import SampleMoments
from sparseggm.gaussian.levels_fitting import (
    PRIOR_IMAGES,
    PRIOR_VARIANCE,
    count_levels,
    em_sweep,
    fit_density,
    fit_independent,
    start_of_levels,
)
from sparseggm.gaussian.observed import GreyLevels
from tests.numerics import Array, gamma
from tests.strategies import mask

K = 8
EDGES = GreyLevels.edges_of(K)
HISTOGRAMS = {
    "of a normal": [3, 10, 31, 55, 40, 20, 4, 1],
    "black in every image": [500, 0, 0, 0, 0, 0, 0, 0],
    "white in every image": [0, 0, 0, 0, 0, 0, 0, 500],
    "black but once": [499, 0, 0, 1, 0, 0, 0, 0],
    "of one level": [0, 0, 500, 0, 0, 0, 0, 0],
    "of two levels": [0, 0, 0, 200, 300, 0, 0, 0],
    "black or white": [300, 0, 0, 0, 0, 0, 0, 200],
    "no image": [0, 0, 0, 0, 0, 0, 0, 0],
}


def posterior(counts: Array, loc: float, deviation: float) -> float:
    """log-likelihood of a pixel, and of PRIOR_IMAGES normal logits of mean 0 and variance PRIOR_VARIANCE, nats."""
    a, b = (EDGES[:-1] - loc) / deviation, (EDGES[1:] - loc) / deviation
    mass = np.where(a > 0, norm.sf(a) - norm.sf(b), norm.cdf(b) - norm.cdf(a))
    prior = -math.log(deviation) - (PRIOR_VARIANCE + loc**2) / (2 * deviation**2)
    with np.errstate(divide="ignore"):
        return float(np.log(mass[counts > 0]) @ counts[counts > 0] + PRIOR_IMAGES * prior)


def test_a_pixel_has_the_maximum_that_a_search_finds() -> None:
    counts = np.array([*HISTOGRAMS.values()])
    for row, loc, deviation in zip(counts, *fit_independent(counts, EDGES), strict=True):
        found = posterior(row, loc, deviation)
        searched = minimize(
            lambda at, row=row: -posterior(row, at[0], math.exp(at[1])),
            [0.0, 0.5],
            method="Nelder-Mead",
            options={"xatol": 1e-6, "fatol": 1e-10, "maxiter": 1000},
        )
        assert searched.success
        assert found >= -searched.fun - 1e-9 * (1 + abs(found))
        np.testing.assert_allclose([loc, math.log(deviation)], searched.x, rtol=1e-4, atol=1e-4)


def test_levels_are_counted_pixel_by_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(levels_fitting, "IMAGES_AT_ONCE", 7)
    images = np.random.default_rng(0).integers(0, K, (50, 3)).astype(np.uint8)
    expected = [[(images[:, i] == k).sum() for k in range(K)] for i in range(3)]
    np.testing.assert_array_equal(count_levels(images, K), expected)


# ---------------------------------------------------------------------- EM


def known(topology: Topology, count: int) -> tuple[GaussianGraphicalModel, Array]:
    """A Gaussian with strong couplings, and grey images of it, of which many are black."""
    pattern = topology.factor_pattern
    factor = np.where(pattern.rows == pattern.cols, 0.9, -0.5)
    truth = GaussianGraphicalModel(np.linspace(-3.0, 0.0, topology.n), factor=factor, topology=topology)
    return truth, GreyLevels(truth, K).sample(count, rng=1).astype(np.uint8)


def gain(after: GaussianGraphicalModel, before: GaussianGraphicalModel, images: Array) -> tuple[float, float]:
    """Rise of the bound, nats an image, from the same uniform numbers, and its standard error over images."""
    difference = GreyLevels(after, K).log_prob(images, 1, 7) - GreyLevels(before, K).log_prob(images, 1, 7)
    return float(difference.mean()), float(difference.std(ddof=1) / math.sqrt(len(images)))


@pytest.mark.parametrize("topology", [ExtendedGrid(3, 4), Stencil(3, 4, 1)], ids=str)
def test_sweeps_raise_the_bound(topology: Topology) -> None:
    _, images = known(topology, 5_000)
    first = g = start_of_levels(images, topology, 1e-6, np.random.default_rng(0), K)
    bounds = []
    for number in range(4):
        following, bound = em_sweep(g, images, np.random.default_rng(number), K)
        bounds.append(bound)
        rise, error = gain(following, g, images)
        assert rise >= -4 * error
        g = following
    rise, error = gain(g, first, images)
    assert rise >= 4 * error
    fresh = GreyLevels(first, K).log_prob(images, 1, 8)
    assert abs(bounds[0] - fresh.mean()) <= 5 * math.sqrt(2) * fresh.std() / math.sqrt(len(images))


def test_a_fit_is_as_good_as_the_known_model_on_images_that_it_has_not_seen() -> None:
    """Up to the parameters' own error, a half nat each over all images, and the noise of 64 samples."""
    topology = ExtendedGrid(2, 3)
    truth, images = known(topology, 6_000)
    train, test = images[:4_000], images[4_000:]
    g = start_of_levels(train, topology, 1e-6, np.random.default_rng(0), K)
    for number in range(8):
        g = em_sweep(g, train, np.random.default_rng(number), K)[0]
    loss = GreyLevels(truth, K).log_prob(test, 64, 5) - GreyLevels(g, K).log_prob(test, 64, 5)
    parameters = topology.n + topology.factor_pattern.nnz
    assert loss.mean() <= 2 * parameters / (2 * len(train)) + 4 * loss.std() / math.sqrt(len(test))


def test_on_a_diagonal_the_start_is_the_end() -> None:
    """A sweep from the exact maximum moves a mean by no more than the noise of the samples."""
    topology = Diagonal(5)
    images = known(topology, 20_000)[1]
    images[:, 0] = 0
    g = start_of_levels(images, topology, 1e-6, np.random.default_rng(0), K)
    following, bound = em_sweep(g, images, np.random.default_rng(1), K)
    deviation = 1 / g.factor
    assert (abs(following.loc - g.loc) <= 5 * deviation / math.sqrt(len(images))).all()
    assert (abs(following.factor / g.factor - 1) <= 5 / math.sqrt(len(images))).all()
    assert bound == pytest.approx(GreyLevels(g, K).log_prob(images).mean(), rel=1e-12)
    np.testing.assert_allclose([g.loc, deviation], fit_independent(count_levels(images, K), EDGES), rtol=1e-12)


def test_a_sweep_fits_its_samples_and_the_prior() -> None:
    """Of fewer images than a column has entries: without the prior there is no fit."""
    topology = Stencil(2, 3, 1)
    g, images = known(topology, 3)
    following, bound = em_sweep(g, images, np.random.default_rng(2), K)
    z, log_weights = GreyLevels(g, K).sample_logits(images, np.random.default_rng(2))
    mean = z.sum(axis=0) / (3 + PRIOR_IMAGES)
    second = (z.T @ z + PRIOR_IMAGES * PRIOR_VARIANCE * np.eye(6)) / (3 + PRIOR_IMAGES)
    stored = mask(topology.factor_pattern)
    factor = reference.inference.fit_factor(stored, second - np.outer(mean, mean))
    np.testing.assert_allclose(following.loc, mean, rtol=1e-13)
    np.testing.assert_allclose(topology.factor_pattern.to_dense(following.factor), factor, rtol=1e-9, atol=1e-12)
    assert bound == pytest.approx(log_weights.mean(), rel=1e-13)


def test_a_density_is_that_of_the_dequantised_logits() -> None:
    topology, images = ExtendedGrid(3, 4), known(ExtendedGrid(3, 4), 3_000)[1]
    uniform = np.random.default_rng(3).random(images.shape)
    z = logit(1e-3 + (1 - 2e-3) * (images + uniform) / K)
    found = fit_density(images, topology, 1e-3, np.random.default_rng(3), K)
    expected = GaussianGraphicalModel.fit(z, topology)
    np.testing.assert_allclose(found.loc, expected.loc, rtol=1e-12)
    np.testing.assert_allclose(found.factor, expected.factor, rtol=1e-9, atol=1e-9)


# ---------------------------------------------------------------------- chunks


def test_moments_of_chunks_are_those_of_all_samples() -> None:
    """A guess that is off by d costs digits of d² beside the variance."""
    rng, topology = np.random.default_rng(0), ExtendedGrid(2, 3)
    samples = rng.standard_normal((500, 6)) @ rng.standard_normal((6, 6)) + 5.0
    moments = SampleMoments(topology, np.full(6, 4.0))
    for first in range(0, 500, 120):
        moments.add(samples[first : first + 120])
    pattern, covariance = topology.precision_pattern, np.cov(samples.T, bias=True)
    deviation = np.sqrt(np.diagonal(covariance))
    bound = gamma(600, np.float64) * np.outer(deviation + 1, deviation + 1)[pattern.rows, pattern.cols]
    assert (abs(moments.mean - samples.mean(axis=0)) <= gamma(600, np.float64) * abs(samples).max()).all()
    assert (abs(moments.covariance - covariance[pattern.rows, pattern.cols]) <= 4 * bound).all()


def test_independent_samples_may_be_added_without_being_made() -> None:
    topology = ExtendedGrid(2, 3)
    samples = np.random.default_rng(0).standard_normal((40, 6))
    corners = np.array(np.meshgrid(*[[-1.0, 1.0]] * 6)).reshape(6, -1).T * 1.5 + 0.5  # 64, independent
    added, made = SampleMoments(topology, np.zeros(6)), SampleMoments(topology, np.zeros(6))
    for moments in (added, made):
        moments.add(samples)
    made.add(corners)
    added.add_independent(64, 0.5, 1.5**2)
    np.testing.assert_allclose(added.mean, made.mean, rtol=1e-13)
    np.testing.assert_allclose(added.covariance, made.covariance, rtol=1e-13, atol=1e-13)
    assert added.count == made.count == 104


def test_memory_does_not_grow_with_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(levels_fitting, "IMAGES_AT_ONCE", 200)
    topology = Stencil(28, 28, 2)
    images = np.random.default_rng(0).integers(0, 256, (1_600, 784), dtype=np.uint8)
    g = start_of_levels(images, topology, 1e-6, np.random.default_rng(0))
    peaks = []
    for part in (images[:400], images):
        tracemalloc.start()
        em_sweep(g, part, np.random.default_rng(0))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    chunk = 8 * 784 * 200
    assert peaks[1] <= peaks[0] + chunk / 2
    assert peaks[1] <= 12 * chunk
