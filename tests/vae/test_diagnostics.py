"""Diagnostics against plain loops, known distributions and closed forms."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from scipy import stats

import sparseggm as sg
from sparseggm.cli import main
from sparseggm.torch import GaussianGraphicalModel
from sparseggm.vae import VAE, Config, Images, evaluate, evaluate_images, figures, train
from sparseggm.vae.diagnostics import (
    PosteriorSpread,
    RunningMoments,
    RunningSpread,
    RunningTail,
    largest_shape,
    pareto_shape,
    tail_size,
)
from sparseggm.vae.likelihoods import Bernoulli, held_out
from tests.vae.test_objective import some_posterior, white

STANDARD_ERRORS = 5.0


def zhang_and_stephens(excess: list[float]) -> float:
    """k̂, number by number as in section 4 of their paper, with the prior of Pareto-smoothed importance sampling."""
    x = sorted(excess)
    n = len(x)
    m = 30 + math.floor(math.sqrt(n))
    quartile = x[math.floor(n / 4 + 0.5) - 1]
    theta = [1 / x[-1] + (1 - math.sqrt(m / (j - 0.5))) / 3 / quartile for j in range(1, m + 1)]

    def k(b: float) -> float:
        return -sum(math.log(1 - b * each) for each in x) / n

    def profile(b: float) -> float:
        return n * (math.log(b / k(b)) + k(b) - 1)

    likelihoods = [profile(b) for b in theta]
    weights = [1 / sum(math.exp(other - own) for other in likelihoods) for own in likelihoods]
    estimate = sum(b * weight for b, weight in zip(theta, weights, strict=True))
    return (n * -k(estimate) + 10 * 0.5) / (n + 10)


@pytest.mark.parametrize("size", [5, 6, 63, 200])
@pytest.mark.parametrize("scale", [1e-150, 1.0, 1e150])
def test_the_shape_of_a_tail_is_that_of_plain_loops(size: int, scale: float) -> None:
    excess = scale * np.random.default_rng(size).exponential(size=(3, size)) ** 1.5
    expected = [zhang_and_stephens([*row]) for row in excess]
    np.testing.assert_allclose(pareto_shape(torch.from_numpy(excess)), expected, rtol=1e-10)


@pytest.mark.parametrize("k", [-0.3, 0.1, 0.5, 0.9, 1.5])
def test_the_shape_of_samples_of_a_known_shape_is_found(k: float) -> None:
    size, repeats = 1_000, 400
    excess = stats.genpareto.rvs(k, size=(repeats, size), random_state=1)
    shapes = pareto_shape(torch.from_numpy(excess)).numpy()
    without_prior = (shapes * (size + 10) - 5) / size
    bias = (1 + abs(k)) / size  # of a maximum of the likelihood, to first order
    assert abs(without_prior.mean() - k) <= bias + STANDARD_ERRORS * without_prior.std(ddof=1) / math.sqrt(repeats)
    deviation = (1 + k) / math.sqrt(size)  # asymptotic, of an efficient estimate, k > −½
    assert without_prior.std(ddof=1) == pytest.approx(deviation, rel=STANDARD_ERRORS / math.sqrt(2 * repeats) + 0.02)


@pytest.mark.parametrize("excess", [[0.0] * 8, [1.0] * 8, [0.0] * 7 + [1.0], [0.0] + [1e-300] * 7])
def test_the_shape_of_equal_numbers_is_finite(excess: list[float]) -> None:
    assert torch.isfinite(pareto_shape(torch.tensor(excess, dtype=torch.float64)))


@pytest.mark.parametrize("samples", [25, 97, 500])
def test_the_tail_of_chunks_is_the_tail_of_all(samples: int) -> None:
    log_weights = 3.0 * white(samples, 4) - 40_000.0
    ordered = log_weights.sort(dim=0, descending=True).values
    size = math.ceil(min(samples / 5, 3 * math.sqrt(samples)))
    assert tail_size(samples) == size
    weights = (ordered[: size + 1] - ordered[0]).exp()
    expected = pareto_shape((weights[:size] - weights[size]).T)
    for chunk in (1, 10, samples):
        tail = RunningTail(4, samples)
        for each in log_weights.split(chunk):
            tail.add(each)
        assert torch.equal(tail.shape(), expected)


def test_a_tail_needs_five_weights_and_fewer_samples_trust_less() -> None:
    assert [RunningTail(1, samples).has_shape for samples in (20, 21)] == [False, True]
    assert tail_size(35) == 7
    assert largest_shape(100) == 0.5
    assert largest_shape(10_000) == 0.7


@pytest.mark.parametrize("chunk", [1, 7, 50])
def test_moments_of_chunks_are_those_of_all(chunk: int) -> None:
    values = white(50, 3) + 1e6
    moments = RunningMoments()
    for each in values.split(chunk):
        moments.add(each)
    np.testing.assert_allclose(moments.mean, values.mean(0), rtol=1e-14)
    np.testing.assert_allclose(moments.variance(), np.var(values.numpy(), axis=0), rtol=1e-8)


def test_the_spread_of_posteriors_is_that_of_their_dense_covariances() -> None:
    q, spread = some_posterior(sg.ExtendedGrid(2, 3), 40), RunningSpread()
    for part in (slice(0, 30), slice(30, 40)):
        spread.add(GaussianGraphicalModel(q.loc[part], factor=q.factor[part], topology=q.topology))
    covariance = q.covariance_matrix.numpy()
    deviations = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
    i, j = q.topology.edges.T
    correlations = covariance[:, i, j] / deviations[:, i] / deviations[:, j]
    result = spread.result()
    assert np.array_equal(result.edges, q.topology.edges)
    np.testing.assert_allclose(result.correlation, correlations.mean(0), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(result.correlation_deviation, correlations.std(0), rtol=1e-10)
    np.testing.assert_allclose(result.variance_of_means, q.loc.numpy().var(0), rtol=1e-12)


def test_a_diagonal_posterior_has_no_correlations() -> None:
    spread = RunningSpread()
    spread.add(some_posterior(sg.Diagonal(3), 5))
    summary = spread.result().summary()
    assert (summary["correlation_rms"], summary["correlation_deviation_rms"]) == (0.0, 0.0)


def test_a_unit_is_active_above_a_variance_of_a_hundredth() -> None:
    none = np.empty(0)
    spread = PosteriorSpread(np.array([0.0, 0.01, 0.011, 2.0]), np.empty((0, 2), np.int64), none, none)
    assert spread.summary()["active_units"] == 2


def test_the_diagnostics_of_an_evaluation_are_in_its_files(few_digits: Images, recipe: Config, tmp_path: Path) -> None:
    train(recipe, tmp_path)
    evaluate(tmp_path, samples=210)
    content = json.loads((tmp_path / "evaluation.json").read_text())
    arrays = dict(np.load(tmp_path / "evaluation.npz"))
    assert content["gap"] == pytest.approx(content["log_p"] - content["elbo"])
    assert 0 <= content["active_units"] <= 4
    assert content["pareto_k_mean"] == pytest.approx(arrays["pareto_k"].mean())
    assert content["pareto_k_trusted"] == np.mean(arrays["pareto_k"] <= largest_shape(210))
    assert arrays["log_p_200"].shape == arrays["pareto_k"].shape == (100,)
    assert content["correlation_rms"] == pytest.approx(np.sqrt(np.mean(arrays["correlation"] ** 2)))
    evaluate(tmp_path, samples=20)
    content = json.loads((tmp_path / "evaluation.json").read_text())
    assert "log_p_200" not in content
    assert "pareto_k_mean" not in content


def test_log_p_of_the_first_200_samples_is_that_of_200_samples(digits: Images) -> None:
    vae = VAE(Config(posterior="chain", latent=4, hidden=16), digits.mean_intensity)
    images = held_out(Bernoulli(), digits, "test")[:64]
    few, many = evaluate_images(vae, images, 200), evaluate_images(vae, images, 230)
    np.testing.assert_array_equal(many.log_p_200, few.log_p)
    assert few.log_p_200 is None


def test_the_figure_of_diagnostics_needs_an_evaluation(
    few_digits: Images, recipe: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("sparseggm.vae.figures")
    write = module._write

    def writes_diagnostics(path: Path, *given: Any) -> Path:  # the other pictures would take seconds
        written: Path = write(path, *given) if path.stem == "diagnostics" else path
        return written

    monkeypatch.setattr(module, "_write", writes_diagnostics)
    train(recipe, tmp_path)
    assert "diagnostics.png" not in {path.name for path in figures([tmp_path])}
    heights = []
    for samples in (30, 3):  # with and without the shape of the tail, which has a row of its own
        evaluate(tmp_path, samples=samples)
        (picture,) = (path for path in figures([tmp_path]) if path.name == "diagnostics.png")
        heights.append(len(imread(picture)))
    assert 1.2 < heights[0] / heights[1] < 1.5
    older = json.loads((tmp_path / "evaluation.json").read_text()) | {"epochs_trained": 1}
    (tmp_path / "evaluation.json").write_text(json.dumps(older))
    (tmp_path / "figures" / "diagnostics.png").unlink()
    assert "diagnostics.png" not in {path.name for path in figures([tmp_path])}


@pytest.mark.parametrize("damage", [("evaluation.json", b"{"), ("evaluation.npz", b"PK"), ("evaluation.npz", b"")])
def test_a_damaged_evaluation_is_one_line(
    damage: tuple[str, bytes], few_digits: Images, recipe: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(recipe, tmp_path)
    evaluate(tmp_path, samples=3)
    name, content = damage
    (tmp_path / name).write_bytes(content)
    capsys.readouterr()
    assert main(["figures", str(tmp_path)]) == 2
    errors = capsys.readouterr().err
    assert "Evaluate the run again." in errors
    assert errors.count("\n") == 1
