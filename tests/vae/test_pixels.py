"""Models of grey images: their likelihoods, training, evaluation and pictures."""

from __future__ import annotations

import json
import math
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sparseggm.torch import GaussianGraphicalModel, GreyLevels, LogitNormal
from sparseggm.vae import (
    GREY_PIXELS,
    PIXEL_GRAPHS,
    VAE,
    CheckpointError,
    Config,
    Images,
    Interrupted,
    Training,
    evaluate,
    evaluate_images,
    experiment,
    figures,
    pixel_figures,
    pixel_topology,
    report,
)
from sparseggm.vae.config import PIXELS
from sparseggm.vae.evaluate import HIDDEN, UPPER_HALF
from sparseggm.vae.files.checkpoint import load
from sparseggm.vae.files.interrupt import StopRequest
from sparseggm.vae.likelihoods import LevelPixels, LogitNormalPixels, held_out, likelihood_of
from sparseggm.vae.networks import SharedFactorHead
from sparseggm.vae.pixel_figures import correlations, factor_maps, fillings
from sparseggm.vae.randomness import generator
from tests.vae.conftest import assert_same_numbers

MODELS = [  # every likelihood, graph, structure and decoder
    ("levels", "diagonal", "per-image", "dense"),
    ("levels", "extended-grid", "per-image", "convolutional"),
    ("levels", "diagonal", "per-image", "convolutional"),
    ("levels", "stencil-3", "global", "dense"),
    ("logit-normal", "diagonal", "global", "convolutional"),
    ("logit-normal", "extended-grid", "global", "dense"),
    ("logit-normal", "stencil-5", "per-image", "dense"),
]
every_model = pytest.mark.parametrize(("likelihood", "pixels", "structure", "decoder"), MODELS)


@pytest.fixture
def grey(recipe: Config) -> Config:
    return replace(recipe, likelihood="levels", pixels="extended-grid")


def some_pixels(pixels: str, batch: int, seed: int = 0) -> GaussianGraphicalModel:
    """Gaussians of logits, in float64."""
    topology, rng = pixel_topology(pixels), np.random.default_rng(seed)
    factor = 0.1 * rng.standard_normal((batch, topology.factor_pattern.nnz))
    factor[:, topology.factor_pattern.diagonal] = 0.5
    loc = torch.from_numpy(rng.standard_normal((batch, PIXELS)))
    return GaussianGraphicalModel(loc, factor=torch.from_numpy(factor), topology=topology)


def test_every_word_of_a_recipe_is_tried() -> None:
    assert {pixels for _, pixels, _, _ in MODELS} == set(PIXEL_GRAPHS)


# ---------------------------------------------------------------------- likelihoods


def test_the_density_bounds_the_probability_of_levels_from_below(digits: Images) -> None:
    """E_u log p(k + u) ≤ log ∫ p = log P(k), equal up to how much the density varies within a level."""
    g, images = some_pixels("diagonal", 3), digits.test[:3]
    density = LogitNormalPixels(alpha=1e-9)
    rng = generator(0, "dequantisation")
    values = torch.stack([density.log_prob(g, density.observe(images, rng), rng) for _ in range(50)])
    exact = LevelPixels().log_prob(g, images, rng)
    slack = exact - values.mean(0)
    assert (slack >= -4 * values.std(0) / math.sqrt(50)).all()
    assert (slack <= 0.1 * exact.abs()).all()


@pytest.mark.parametrize("pixels", PIXEL_GRAPHS)
def test_the_density_of_half_an_image_is_that_of_the_marginal(pixels: str, digits: Images) -> None:
    g, density, seen = some_pixels(pixels, 2), LogitNormalPixels(alpha=1e-3), ~HIDDEN["upper"]
    x = density.observe(digits.test[:2], generator(0)).double()
    marginal = LogitNormal(g.marginal(np.flatnonzero(seen)))
    expected = marginal.log_prob(x[:, seen]) + int(seen.sum()) * math.log((1 - 2e-3) / 256)
    torch.testing.assert_close(density.log_prob(g, x, generator(0), HIDDEN["upper"]), expected)


def test_a_density_without_a_pixel_that_others_depend_on_is_refused() -> None:
    density, x = LogitNormalPixels(alpha=1e-3), torch.full((PIXELS,), 0.5, dtype=torch.float64)
    with pytest.raises(ValueError, match="a missing pixel comes after one that is seen"):
        density.log_prob(some_pixels("extended-grid", 1), x, generator(0), ~HIDDEN["upper"])


@pytest.mark.parametrize("likelihood", ["bernoulli", "levels", "logit-normal"])
def test_held_out_images_are_observed_alike_at_every_call(likelihood: str, digits: Images) -> None:
    observing = likelihood_of(Config(likelihood=likelihood))
    first, second = (held_out(observing, digits, "test") for _ in range(2))
    assert torch.equal(first, second)
    seen = observing.encoded(first).float()
    assert seen.min() >= 0
    assert seen.max() <= 1
    assert not torch.equal(first, observing.observe(digits.test, generator(9))) or likelihood == "levels"


# ---------------------------------------------------------------------- training


@every_model
def test_training_raises_the_bound_of_grey_images(
    likelihood: str, pixels: str, structure: str, decoder: str, digits: Images, recipe: Config, tmp_path: Path
) -> None:
    words = {"likelihood": likelihood, "pixels": pixels, "structure": structure, "decoder": decoder}
    training = Training(replace(recipe, epochs=3, learning_rate=0.01, **words), digits, tmp_path)  # type: ignore[arg-type]
    while not training.finished:
        training.train_epoch(StopRequest())
    first, *_, last = training.history
    assert last.elbo > first.elbo + 100
    found = evaluate_images(training.vae, held_out(training.vae.likelihood, digits, "test")[:2], samples=3)
    assert (found.log_p >= found.elbo).all()


@pytest.mark.parametrize("likelihood", ["bernoulli", "levels"])
def test_a_convolutional_decoder_has_any_batch_axes(likelihood: str, digits: Images, recipe: Config) -> None:
    vae = VAE(replace(recipe, likelihood=likelihood, decoder="convolutional"), digits.mean_intensity)
    z = torch.randn(3, 2, recipe.latent)
    with torch.inference_mode():
        whole, each = (vae.likelihood.intensities(vae.decoder(part)) for part in (z, z[1]))
    torch.testing.assert_close(whole[1], each)


def test_a_shared_factor_is_one_parameter_for_all_images(digits: Images, grey: Config) -> None:
    vae = VAE(replace(grey, structure="global"), digits.mean_intensity)
    head = vae.decoder[-1]
    assert isinstance(head, SharedFactorHead)
    decoded = vae.decoder(torch.randn(3, grey.latent))
    assert torch.equal(decoded.factor[0], decoded.factor[2])
    assert not torch.equal(decoded.loc[0], decoded.loc[2])
    decoded.loc.sum().backward()
    assert head.inputs.grad is None
    vae.log_likelihood(torch.randn(3, grey.latent), digits.test[:3], generator(0)).sum().backward()
    assert head.inputs.grad is not None
    assert head.inputs.grad.abs().max() > 0


def test_a_dense_decoder_starts_at_the_mean_image(digits: Images, grey: Config) -> None:
    for structure in ("per-image", "global"):
        vae = VAE(replace(grey, structure=structure), digits.mean_intensity)
        bias = next(module for module in vae.decoder[-1].modules() if isinstance(module, torch.nn.Linear)).bias
        expected = torch.logit(digits.mean_intensity.clamp(1e-3, 1 - 1e-3))
        torch.testing.assert_close(bias[:PIXELS], expected)


def test_a_stopped_run_of_grey_images_goes_on_to_the_bit(digits: Images, grey: Config, tmp_path: Path) -> None:
    whole = Training(grey, digits, tmp_path / "whole")
    while not whole.finished:
        whole.train_epoch(StopRequest())
    stopped, stop = Training(grey, digits, tmp_path / "stopped"), StopRequest()
    steps = iter(range(100))

    def stop_at_the_fifth() -> None:
        if next(steps) == 4:
            stop.signal = signal.SIGINT

    with pytest.raises(Interrupted):
        stopped.train_epoch(stop, stop_at_the_fifth)
    resumed = Training(grey, digits, tmp_path / "stopped", resume=True)
    assert resumed.step == 5
    while not resumed.finished:
        resumed.train_epoch(StopRequest())
    assert_same_numbers(resumed.vae.state_dict(), whole.vae.state_dict())
    assert [record.elbo for record in resumed.history] == [record.elbo for record in whole.history]


def test_the_identity_of_a_run_of_bits_is_that_of_earlier_versions() -> None:
    """So that their checkpoints are resumed: a field that came later is named only where it says something."""
    assert (
        not {"likelihood", "decoder", "pixels", "structure", "least_scale", "alpha"} & Config().identity("MNIST").keys()
    )
    identity = Config(likelihood="logit-normal", pixels="stencil-3", alpha=1e-3).identity("MNIST")
    assert (identity["likelihood"], identity["pixels"], identity["alpha"]) == ("logit-normal", "stencil-3", 1e-3)
    assert identity["least_scale"] == 0.03
    assert "structure" not in identity


# ---------------------------------------------------------------------- evaluation, tables, pictures


@pytest.fixture
def table(few_digits: Images, grey: Config, tmp_path: Path) -> Path:
    recipe = replace(grey, pixels="diagonal")
    experiment(GREY_PIXELS, recipe, tmp_path, epochs=2, samples=3)
    return tmp_path


def test_grey_images_are_reported_in_bits_a_pixel(table: Path, few_digits: Images) -> None:
    run = table / "seed-0" / "extended-grid"
    result = evaluate(run, samples=5)
    per_image = np.load(run / "evaluation.npz")
    assert (per_image["log_p"] >= per_image["elbo"] - 1e-9).mean() > 0.9
    assert result["elbo_bits"] == pytest.approx(-per_image["elbo"].mean() / (PIXELS * math.log(2)))
    error = per_image["log_p"].std(ddof=1) / 10 / (PIXELS * math.log(2))
    assert result["log_p_bits_standard_error"] == pytest.approx(error)
    text = report(result)
    assert "levels extended-grid per-image pixels" in text
    assert text.count("bits per dimension") == 2
    content = json.loads((table / "pixels.json").read_text())
    assert [row["model"] for row in content["rows"]] == ["diagonal", "extended-grid"]
    assert "ELBO, bits per dimension" in (table / "pixels.md").read_text()
    assert load(run / "checkpoint.pt")["identity"]["pixels"] == "extended-grid"


def test_a_hidden_half_is_a_difference_of_two_estimates(table: Path, few_digits: Images) -> None:
    run = table / "seed-0" / "extended-grid"
    result, whole = evaluate(run, samples=20, hide="upper"), np.load(run / "evaluation.npz")
    assert "log p(upper half | the other)" in report(result)
    assert result["log_p_hidden"] == pytest.approx(whole["log_p_hidden"].mean())
    assert (whole["log_p_hidden"] > whole["log_p"]).all()  # the other half has a probability below 1
    np.testing.assert_array_equal(whole["log_p"], evaluated_without_hiding(run)["log_p"])


def evaluated_without_hiding(run: Path) -> dict[str, np.ndarray]:
    evaluate(run, samples=20)
    return dict(np.load(run / "evaluation.npz"))


def test_a_hidden_half_of_independent_pixels_and_one_latent_is_its_integral(digits: Images, grey: Config) -> None:
    """Given z the halves of a diagonal are independent, so p(upper | lower) is an average of p(upper | z)."""
    vae = VAE(replace(grey, pixels="diagonal", latent=1, posterior="diagonal"), digits.mean_intensity)
    x, z = digits.test[:5], torch.linspace(-6, 6, 601)[:, None, None].expand(-1, 5, -1)
    with torch.no_grad():
        vae.decoder[0].weight.mul_(0.05)  # weights of samples are then nearly equal, and 2,000 of them exact enough
    with torch.inference_mode():
        decoded, prior = vae.decoder(z), -0.5 * z[..., 0].square().double()
        whole = torch.logsumexp(vae.likelihood.log_prob(decoded, x, generator(0)) + prior, 0)
        seen = torch.logsumexp(vae.likelihood.log_prob(decoded, x, generator(0), HIDDEN["upper"]) + prior, 0)
    found = evaluate_images(vae, x, samples=2000, hidden=HIDDEN["upper"])
    assert found.log_p_hidden is not None
    np.testing.assert_allclose(found.log_p_hidden, (whole - seen).numpy(), rtol=0, atol=0.05)


def test_a_hidden_half_of_a_density_is_a_density_too(few_digits: Images, grey: Config, tmp_path: Path) -> None:
    Training(replace(grey, likelihood="logit-normal"), few_digits, tmp_path / "run")
    result = evaluate(tmp_path / "run", samples=2, hide="upper")
    assert math.isfinite(result["log_p_hidden"])


def test_the_report_of_a_density_names_its_alpha(few_digits: Images, grey: Config, tmp_path: Path) -> None:
    Training(replace(grey, likelihood="logit-normal"), few_digits, tmp_path / "run")
    assert "logit-normal extended-grid per-image pixels, alpha 1e-06" in report(evaluate(tmp_path / "run", samples=2))


def test_grey_runs_have_pictures_of_their_pixels(
    table: Path, few_digits: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pixel_figures, "SWEEPS", 1)
    names = {path.name for path in figures([table])}
    pictures = {"pixel-samples.png", "fillings.png", "residuals.png", "pixel-factor.png", "pixel-correlations.png"}
    assert pictures <= names


def test_runs_of_two_likelihoods_have_no_common_pictures(
    table: Path, few_digits: Images, recipe: Config, grey: Config
) -> None:
    Training(recipe, few_digits, table / "bits")
    with pytest.raises(CheckpointError, match="needed runs of one likelihood"):
        figures([table])
    density = replace(grey, likelihood="logit-normal")  # of the graph of a run of levels
    Training(density, few_digits, table / "density")
    with pytest.raises(CheckpointError, match="needed runs of one likelihood"):
        figures([table / "seed-0", table / "density"])


def test_fillings_keep_what_is_seen_and_differ_where_nothing_is(digits: Images, grey: Config) -> None:
    vae, hidden = VAE(grey, digits.mean_intensity), UPPER_HALF
    images = digits.test[:1].repeat_interleave(2, 0)
    filled = fillings(vae, images, hidden, generator(0), sweeps=2)
    assert torch.equal(filled[:, ~hidden], images[:, ~hidden].long())
    assert not torch.equal(filled[0, hidden], filled[1, hidden])


def test_factor_maps_and_correlations_are_those_of_the_dense_gaussian() -> None:
    g = some_pixels("extended-grid", 1)
    scales, right, below = factor_maps(g)
    L, node = torch.zeros(PIXELS, PIXELS, dtype=torch.float64), 5 * 28 + 7
    L[torch.as_tensor(g.factor_pattern.rows.astype(int)), torch.as_tensor(g.factor_pattern.cols.astype(int))] = (
        g.factor[0]
    )
    assert scales[5, 7] == 1 / L[node, node]
    assert right[5, 7] == -L[node + 1, node] / L[node, node]
    assert below[5, 7] == -L[node + 28, node] / L[node, node]
    covariance = torch.linalg.inv(L @ L.T)
    expected = covariance[node, node + 1] / (covariance[node, node] * covariance[node + 1, node + 1]).sqrt()
    window = correlations(g, 5, 7)
    assert window[4, 5] == pytest.approx(expected.item(), rel=1e-9)
    assert window[4, 4] == pytest.approx(1)


def test_levels_and_grey_levels_are_one_number(digits: Images) -> None:
    g = some_pixels("stencil-3", 3)
    found = LevelPixels().log_prob(g, digits.test[:3], generator(4))
    torch.testing.assert_close(
        found, GreyLevels(g, limit=30.0).log_prob(digits.test[:3], generator=generator(4)), rtol=0, atol=0
    )
