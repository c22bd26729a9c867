"""Logit-normal densities and grey levels: change of variables, levels that add up, the ends, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, logit

from sparseggm import (
    Chain,
    Diagonal,
    DTypeError,
    ExtendedGrid,
    GaussianGraphicalModel,
    Grid,
    ShapeError,
    Star,
    Topology,
)
from sparseggm.gaussian.observed import GreyLevels, LogitNormal, bits_per_dimension, squeezed
from tests.numerics import Array
from tests.strategies import factor_values

TOPOLOGIES = [Diagonal(3), Chain(4), ExtendedGrid(2, 3), Star(4), Grid(2, 3)]
each_topology = pytest.mark.parametrize("topology", TOPOLOGIES, ids=str)


def gaussian(topology: Topology, batch: tuple[int, ...] = (), seed: int = 0) -> GaussianGraphicalModel:
    rng = np.random.default_rng(seed)
    factor = factor_values(rng, topology.factor_pattern, batch, "plain", "float64")
    return GaussianGraphicalModel(rng.standard_normal((*batch, topology.n)), factor=factor, topology=topology)


@each_topology
def test_the_density_is_that_of_the_logits_and_their_jacobian(topology: Topology) -> None:
    g, x = gaussian(topology, (2,)), np.random.default_rng(1).uniform(0.01, 0.99, (3, 1, topology.n))
    expected = g.log_prob(logit(x)) - np.log(x * (1 - x)).sum(axis=-1)
    np.testing.assert_allclose(LogitNormal(g).log_prob(x), expected, rtol=1e-12)


def test_the_density_integrates_to_one() -> None:
    grid = (np.arange(400) + 0.5) / 400
    x = np.stack(np.meshgrid(grid, grid), axis=-1)
    density = np.exp(LogitNormal(gaussian(Chain(2))).log_prob(x))
    assert abs(density.mean() - 1) <= 1e-3


@each_topology
def test_samples_of_a_density_have_its_logits(topology: Topology) -> None:
    g = gaussian(topology)
    np.testing.assert_allclose(logit(LogitNormal(g).sample(5, rng=3)), g.sample(5, rng=3), rtol=1e-9, atol=1e-9)


def test_conditioning_on_pixels_is_conditioning_on_their_logits() -> None:
    g, values = gaussian(ExtendedGrid(2, 3)), np.array([0.2, 0.9])
    found, expected = LogitNormal(g).condition([1, 4], values), g.condition([1, 4], logit(values))
    np.testing.assert_array_equal(found.gaussian.loc, expected.loc)
    np.testing.assert_array_equal(found.gaussian.factor, expected.factor)


@pytest.mark.parametrize("bad", [0.0, 1.0, -0.1, 1.5, np.nan])
def test_the_density_has_no_ends(bad: float) -> None:
    x = np.array([0.5, bad])
    with pytest.raises(
        ValueError, match=r"^LogitNormal\.log_prob: numbers must be in \(0, 1\), got .* for example to 1e-6"
    ):
        LogitNormal(gaussian(Chain(2))).log_prob(x)


@pytest.mark.parametrize("alpha", [0.0, 0.5, -1e-6, np.nan])
def test_alpha_is_between_zero_and_a_half(alpha: float) -> None:
    with pytest.raises(ValueError, match=r"^squeezed: alpha must be in \(0, ½\)"):
        squeezed(np.array([0.0, 1.0]), alpha)


def test_bits_of_a_density_count_every_jacobian() -> None:
    """A uniform density on (0, 1) has log₂ K bits a level, whatever α, less what α leaves outside."""
    alpha, n = 0.01, 5
    assert np.isclose(bits_per_dimension(0.0, n, 256, alpha), 8 - np.log2(1 - 2 * alpha))
    assert np.isclose(bits_per_dimension(-n * np.log(256), n), 8)


# ---------------------------------------------------------------------- levels


def all_levels(n: int, levels: int) -> Array:
    return np.stack(np.meshgrid(*n * [np.arange(levels)], indexing="ij"), axis=-1).reshape(-1, n)


@pytest.mark.parametrize("topology", [Diagonal(3), Chain(3), Star(3)], ids=str)
def test_probabilities_of_all_levels_add_up_to_one(topology: Topology) -> None:
    x = all_levels(3, 4)
    estimate = GreyLevels(gaussian(topology), levels=4).estimate_log_prob(x, num_samples=2000, rng=0)
    probabilities = np.exp(estimate.value)
    error = np.sqrt(((probabilities * estimate.standard_error) ** 2).sum())
    assert abs(probabilities.sum() - 1) <= 4 * error + 1e-12
    assert (estimate.value <= 0).all()


def test_levels_are_exact_on_a_diagonal_and_independent_of_the_generator() -> None:
    model, x = GreyLevels(gaussian(Diagonal(5)), levels=16), np.arange(5)
    first, second = model.estimate_log_prob(x, rng=0), model.estimate_log_prob(x, num_samples=9, rng=1)
    assert first.value == second.value
    assert first.standard_error == 0


@each_topology
def test_frequencies_of_samples_are_the_marginals(topology: Topology) -> None:
    model = GreyLevels(gaussian(topology), levels=8)
    x = model.sample(20_000, rng=0)
    assert x.min() >= 0
    assert x.max() <= 7
    assert (abs(x.mean(axis=0) - model.mean()) <= 4 * x.std(axis=0) / np.sqrt(len(x))).all()


@each_topology
def test_logits_are_sampled_within_their_levels(topology: Topology) -> None:
    model, rng = GreyLevels(gaussian(topology, (2,)), levels=8), np.random.default_rng(5)
    x = rng.integers(0, 8, (3, 2, topology.n))
    z, log_weight = model.sample_logits(x, rng=1)
    assert log_weight.shape == (3, 2)
    place = 8 * expit(z)
    assert ((x - 1e-9 <= place) & (place <= x + 1 + 1e-9)).all()


@pytest.mark.parametrize("topology", [Diagonal(3), Chain(3), Star(3)], ids=str)
def test_missing_pixels_are_summed_over(topology: Topology) -> None:
    model, x, missing = GreyLevels(gaussian(topology), levels=3), np.array([1, 0, 2]), np.array([False, True, False])
    completed = np.array([[1, level, 2] for level in range(3)])
    summands = model.estimate_log_prob(completed, 4000, rng=0)
    found = model.estimate_log_prob(x, 4000, rng=1, missing=missing)
    probabilities = np.exp(summands.value)
    relative = (probabilities * summands.standard_error).sum() / probabilities.sum() + found.standard_error
    assert abs(found.value - np.log(probabilities.sum())) <= 4 * relative + 1e-12
    assert model.log_prob(x, missing=np.full(3, True)) == 0


@each_topology
def test_missing_pixels_take_any_value_and_the_others_stay_in_their_levels(topology: Topology) -> None:
    model, rng = GreyLevels(gaussian(topology), levels=8), np.random.default_rng(5)
    x, missing = rng.integers(0, 8, topology.n), np.arange(topology.n) < 2
    z, _ = model.sample_logits(np.broadcast_to(x, (500, topology.n)), rng=1, missing=missing)
    found = model.levels_of(expit(z))
    assert (found[:, ~missing] == x[~missing]).all()
    assert all(len(np.unique(found[:, node])) > 3 for node in np.flatnonzero(missing))
    other = model.sample_logits(np.where(missing, 999, x), rng=1, missing=missing)[0]
    np.testing.assert_array_equal(other, model.sample_logits(x, rng=1, missing=missing)[0])


def test_more_samples_raise_the_bound() -> None:
    model, x = GreyLevels(gaussian(ExtendedGrid(3, 3)), levels=4), np.full((2000, 9), 2)
    one, many = (model.log_prob(x, num_samples, rng=0) for num_samples in (1, 50))
    assert many.mean() - one.mean() > 4 * (one - many).std() / np.sqrt(len(x))


@each_topology
def test_a_limit_gives_a_lower_bound_that_it_reaches_from_far(topology: Topology) -> None:
    g, x = gaussian(topology), np.arange(topology.n) % 2 * 7
    free, near, far = (GreyLevels(g, 8, limit).log_prob(x, rng=0) for limit in (np.inf, 3.0, 300.0))
    if topology == Diagonal(3):
        assert near < free
    np.testing.assert_allclose(far, free, rtol=1e-12)
    z, _ = GreyLevels(g, 8, 3.0).sample_logits(np.broadcast_to(x, (100, topology.n)), rng=0)
    assert abs(z).max() <= 3.0


def test_what_levels_refuse() -> None:
    model = GreyLevels(gaussian(Chain(3)))
    with pytest.raises(ValueError, match=r"levels must be in 0 … 255, got 0 … 256"):
        model.log_prob(np.array([0, 256, 3]))
    with pytest.raises(DTypeError, match=r"levels must be integers, got float64"):
        model.log_prob(np.array([0.0, 1.0, 2.0]))
    with pytest.raises(ShapeError, match=r"x must end in 3, the pixels of Chain\(n=3\), got shape \(2,\)"):
        model.log_prob(np.array([0, 1]))
    for missing in ([0, 1, 0], [True], True):
        with pytest.raises(ShapeError, match=r"missing must be booleans that end in 3, the pixels, got"):
            model.log_prob(np.array([0, 1, 2]), missing=missing)
    with pytest.raises(ValueError, match=r"num_samples must be an integer of at least 1"):
        model.log_prob(np.array([0, 1, 2]), num_samples=0)
    with pytest.raises(ValueError, match=r"levels must be an integer of at least 2"):
        GreyLevels(gaussian(Chain(3)), levels=1)
    for limit in (0.0, np.log(7), -np.inf, np.nan):
        with pytest.raises(ValueError, match=r"limit must be above 1\.946, where the last of 8 levels begins"):
            GreyLevels(gaussian(Chain(3)), 8, limit)


def test_values_are_promoted_and_refused_as_those_of_a_gaussian() -> None:
    g = GaussianGraphicalModel(np.full(2, 8.0), factor=np.array([1e4, -9e3, 1e4]), topology=Chain(2))
    x = np.array([0.99966, 0.99967], np.float32)
    assert LogitNormal(g).log_prob(x) == LogitNormal(g).log_prob(x.astype(np.float64))
    narrow = GaussianGraphicalModel(np.zeros(2, np.float32), factor=np.ones(3, np.float32), topology=Chain(2))
    assert LogitNormal(narrow).log_prob([0.5, 0.25]).dtype == np.float32
    hidden = np.ma.array([0.5, 0.25], mask=[False, True])
    for wrong in (hidden, np.array([0.5 + 1j, 0.25]), np.array(["a", "b"]), np.array([0.5, 0.25], object)):
        with pytest.raises(DTypeError, match=r"^LogitNormal\.(log_prob|condition): "):
            LogitNormal(g).log_prob(wrong)
        with pytest.raises(DTypeError, match=r"^LogitNormal\.condition: "):
            LogitNormal(g).condition([0, 1], wrong)
    levels = GreyLevels(g)
    with pytest.raises(DTypeError, match="x must have a value in every place"):
        levels.log_prob(np.ma.array([1, 2], mask=[False, True]))
    with pytest.raises(DTypeError, match="missing must have a value in every place"):
        levels.log_prob(np.array([1, 2]), missing=np.ma.array([True, False], mask=[False, True]))


@pytest.mark.parametrize("bad", [-0.5, np.nan, np.inf, 1.5])
def test_levels_of_no_number_between_zero_and_one_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match=r"levels_of: numbers must be in \[0, 1\], got"):
        GreyLevels(gaussian(Chain(3))).levels_of([0.5, bad])


def test_narrow_levels_far_from_zero_have_their_own_probability() -> None:
    """log P = log φ(e) + log of the width, where both ends of the interval round to one number."""
    g = GaussianGraphicalModel(np.array([1e16]), factor=np.array([1e-16]), topology=Diagonal(1))
    model = GreyLevels(g)
    ends = model.edges[128:130]
    expected = -0.5 - 0.5 * np.log(2 * np.pi) + np.log(1e-16 * (ends[1] - ends[0]))
    assert np.isclose(model.log_prob(np.array([128])), expected, rtol=1e-12)
    every = np.exp(model.log_prob(np.arange(256)[:, None])).sum()
    assert every <= 1 + 1e-12


@pytest.mark.parametrize("count", [0, 2.5, True, None, "2"])
def test_a_number_of_samples_is_a_positive_integer(count: object) -> None:
    with pytest.raises(
        ValueError, match=r"GreyLevels\.estimate_log_prob: num_samples must be an integer of at least 1"
    ):
        GreyLevels(gaussian(Chain(3))).estimate_log_prob(np.array([0, 1, 2]), num_samples=count)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [LogitNormal, GreyLevels])
def test_what_is_no_gaussian_is_refused(kind: type) -> None:
    with pytest.raises(TypeError, match="gaussian must be a GaussianGraphicalModel, got int"):
        kind(3)


def test_a_batch_of_factors_beside_one_mean() -> None:
    g = GaussianGraphicalModel(
        np.zeros(3), factor=np.array([[1.0, 0, 2.0, 0, 3.0], [2.0, 0, 1.0, 0, 1.0]]), topology=Chain(3)
    )
    means = GreyLevels(g, 4).mean()
    assert means.shape == (2, 3)
    np.testing.assert_allclose(means, 1.5)  # symmetric


def test_samples_lie_inside_however_far_the_logits() -> None:
    for dtype in (np.float32, np.float64):
        far = np.array([60.0, -800.0], dtype)
        q = LogitNormal(GaussianGraphicalModel(far, factor=np.array([1.0, 0, 1.0], dtype), topology=Chain(2)))
        x = q.sample(4, rng=0)
        assert x.dtype == dtype
        assert ((x > 0) & (x < 1)).all()
        assert np.isfinite(q.log_prob(x)).all()
