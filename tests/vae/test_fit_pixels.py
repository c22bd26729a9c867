"""The command that fits pixels: its numbers, its files, and that stopping it anywhere changes nothing."""

from __future__ import annotations

import json
import os
import shlex
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import logit
from scipy.stats import norm

from sparseggm.cli import main
from sparseggm.gaussian.model import GaussianGraphicalModel
from sparseggm.gaussian.observed import GreyLevels
from sparseggm.gaussian.storage import load, save
from sparseggm.graph.families import Diagonal
from sparseggm.vae import (
    PIXEL_GRAPHS,
    CheckpointError,
    ConfigError,
    DataError,
    Images,
    PixelFit,
    fit_pixels,
    pixel_fit,
    pixel_topology,
)
from sparseggm.vae.config import GREY

GRID = PixelFit(pixels="extended-grid")
DENSITY = PixelFit(likelihood="logit-normal", pixels="diagonal")


@pytest.mark.parametrize("name", PIXEL_GRAPHS)
@pytest.mark.parametrize("likelihood", GREY)
def test_every_model_is_fitted_and_printed_and_saved(
    likelihood: str, name: str, few_digits: Images, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [f"--likelihood={likelihood}", f"--pixels={name}", "--sweeps=2", "--samples=2", f"--out={tmp_path}"]
    assert main(["fit-pixels", *options]) == 0
    content, lines = json.loads((tmp_path / pixel_fit.RESULT).read_text()), capsys.readouterr().out.splitlines()
    assert lines[-1].startswith(f"600 digits, {likelihood}, {name}: {content['bits_per_dimension']:.4f} ± ")
    sweeps = 2 if likelihood == "levels" and name != "diagonal" else 0
    assert len([line for line in lines if line.startswith("sweep ")]) == len(content["bounds"]) == sweeps
    assert content["bounds"] == sorted(content["bounds"], reverse=True)
    assert content["samples"] == (2 if sweeps else None)
    assert (content["fit"]["seed"], content["images"]) == (0, 100)
    assert content["versions"].keys() == {"sparseggm", "torch", "numpy"}
    assert load(tmp_path / pixel_fit.MODEL).topology == pixel_topology(name)


def test_the_bits_of_a_diagonal_are_those_of_the_normal_distribution_function(
    few_digits: Images, tmp_path: Path
) -> None:
    content = fit_pixels(PixelFit(pixels="diagonal"), tmp_path)
    g, x = load(tmp_path / pixel_fit.MODEL), few_digits.test.numpy().astype(int)
    edges = logit(np.arange(257) / 256)
    a, b = ((edges[x + k] - g.loc) * g.factor for k in (0, 1))
    mass = np.where(a > 0, norm.sf(a) - norm.sf(b), norm.cdf(b) - norm.cdf(a))
    bits = -np.log2(mass).mean(axis=1)
    assert content["bits_per_dimension"] == pytest.approx(bits.mean(), rel=1e-9)
    assert content["bits_per_dimension_standard_error"] == pytest.approx(bits.std(ddof=1) / 10, rel=1e-9)


def test_the_bits_of_a_histogram_are_those_of_its_counts(few_digits: Images) -> None:
    train, test = few_digits.train.numpy(), few_digits.test.numpy()
    total = sum(
        -np.log2((np.sum(train[:, j] == level) + 0.5) / (len(train) + 128)) for j, level in np.ndenumerate(test[0])
    )
    assert pixel_fit.histogram_bits(train, test[:1]) == pytest.approx(total / test.shape[1], rel=1e-12)


def test_the_bits_of_a_density_are_those_of_normal_logits(few_digits: Images, tmp_path: Path) -> None:
    fit = PixelFit(likelihood="logit-normal", pixels="diagonal", alpha=1e-3)
    content = fit_pixels(fit, tmp_path)
    g = load(tmp_path / pixel_fit.MODEL)
    y = 1e-3 + (1 - 2e-3) * (few_digits.test.numpy() + fit.generator(pixel_fit.TEST, 0).random((100, 784))) / 256
    density = norm.logpdf(np.log(y / (1 - y)), g.loc, 1 / g.factor) - np.log(y * (1 - y))
    bits = 8 - (density + np.log(1 - 2e-3)).mean() / np.log(2)
    assert content["bits_per_dimension"] == pytest.approx(bits, rel=1e-9)


def test_samples_of_an_image_are_averaged_over_all_chunks_of_samples(
    few_digits: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit_pixels(GRID, tmp_path, sweeps=1, samples=1)
    g, x = load(tmp_path / pixel_fit.MODEL), few_digits.test.numpy()[:5]
    monkeypatch.setattr(pixel_fit, "SAMPLES_AT_ONCE", 3)
    rng = GRID.generator(pixel_fit.TEST, 0)
    log_weights = np.concatenate(
        [[GreyLevels(g).log_prob(x, count, rng) + np.log(count)] for count in (3, 3, 1)]
    )  # each a mean of weights, times their number
    bits = -np.log2(np.exp(log_weights - log_weights.max(axis=0)).sum(axis=0) / 7) / 784
    bits -= log_weights.max(axis=0) / np.log(2) / 784
    np.testing.assert_allclose(pixel_fit.bits_of(GRID, g, x, 7), bits, rtol=1e-12)


def test_a_resumed_fit_repeats_an_uninterrupted_one(few_digits: Images, tmp_path: Path) -> None:
    whole = fit_pixels(GRID, tmp_path / "whole", sweeps=3, samples=2)
    fit_pixels(GRID, tmp_path / "parts", sweeps=1, samples=2)
    parts = fit_pixels(GRID, tmp_path / "parts", sweeps=3, samples=2, resume=True)
    assert same_numbers(whole, parts)
    assert same_model(tmp_path / "whole", tmp_path / "parts")


def same_numbers(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return {**a, "seconds": None} == {**b, "seconds": None}


def same_model(a: Path, b: Path) -> bool:
    first, second = load(a / pixel_fit.MODEL), load(b / pixel_fit.MODEL)
    return np.array_equal(first.loc, second.loc) and np.array_equal(first.factor, second.factor)


@pytest.mark.parametrize("stopped", ["second sweep", "evaluation"])
def test_a_signal_keeps_the_last_complete_sweep_and_the_command_goes_on_from_it(
    stopped: str,
    few_digits: Images,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fit_pixels(GRID, tmp_path / "whole", sweeps=2, samples=2)
    command = ["fit-pixels", "--pixels=extended-grid", "--sweeps=2", "--samples=2", f"--out={tmp_path / 'stopped'}"]
    calls = {"second sweep": ("em_sweep", 2), "evaluation": ("bits_of", 1)}
    name, number = calls[stopped]
    original: Callable[..., Any] = getattr(pixel_fit, name)

    def interrupted(*arguments: Any, **options: Any) -> Any:
        nonlocal number
        number -= 1
        if not number:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(pixel_fit, name, interrupted)
        assert main(command) == 128 + signal.SIGINT
    errors = capsys.readouterr().err
    done = {"second sweep": 1, "evaluation": 2}[stopped]
    assert (
        f"stopped after {done} sweeps, whose fit is in {tmp_path / 'stopped' / pixel_fit.MODEL}. Go on with: " in errors
    )
    assert len(json.loads((tmp_path / "stopped" / pixel_fit.RESULT).read_text())["bounds"]) == done
    assert main(shlex.split(errors.split("Go on with: ")[1])[1:]) == 0
    assert same_model(tmp_path / "stopped", tmp_path / "whole")


def test_a_fit_is_never_overwritten_by_a_new_one(few_digits: Images, tmp_path: Path) -> None:
    fit_pixels(DENSITY, tmp_path)
    with pytest.raises(CheckpointError, match="there is a fit already"):
        fit_pixels(DENSITY, tmp_path)
    others = r"alpha 1e-06 \(asked for: 0.1\); .*; pixels 'diagonal' \(asked for: 'stencil-3'\)"
    with pytest.raises(CheckpointError, match=others):
        fit_pixels(replace(DENSITY, alpha=0.1, pixels="stencil-3"), tmp_path, resume=True)


@pytest.mark.parametrize(
    "damage",
    [
        lambda out: (out / pixel_fit.RESULT).write_text("{"),
        lambda out: (out / pixel_fit.RESULT).write_text("[]"),
        lambda out: (out / pixel_fit.RESULT).write_bytes(b"\xff"),
        lambda out: (out / pixel_fit.RESULT).write_text('{"fit": {}, "bounds": [], "seconds": []}'),
        lambda out: (out / pixel_fit.MODEL).unlink(),
        lambda out: (out / pixel_fit.MODEL).write_bytes((out / pixel_fit.MODEL).read_bytes()[:-9]),
        lambda out: save(
            out / pixel_fit.MODEL, GaussianGraphicalModel(np.zeros(3), factor=np.ones(3), topology=Diagonal(3))
        ),
    ],
    ids=["no JSON", "a list", "no text", "no times", "no model", "truncated model", "another model"],
)
def test_a_damaged_fit_is_not_continued(
    damage: Callable[[Path], object], few_digits: Images, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit_pixels(DENSITY, tmp_path)
    capsys.readouterr()
    damage(tmp_path)
    assert main(["fit-pixels", "--likelihood=logit-normal", "--pixels=diagonal", "--resume", f"--out={tmp_path}"]) == 2
    errors = capsys.readouterr().err
    assert "damaged checkpoint" in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize("likelihood", GREY)
def test_too_few_images_are_refused(
    likelihood: str, few_digits: Images, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    few = replace(few_digits, train=few_digits.train[:5])
    monkeypatch.setattr(pixel_fit, "load_images", lambda data, split: few)
    with pytest.raises(DataError, match="5 training images are too few for stencil-5: fit: the correlation of node"):
        fit_pixels(PixelFit(likelihood=likelihood, pixels="stencil-5"), tmp_path)


def test_an_alpha_that_nothing_would_read_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"alpha 0\.1 needs likelihood logit-normal, or pixels that are coupled"):
        PixelFit(pixels="diagonal", alpha=0.1)
    PixelFit(pixels="diagonal", alpha=0.1, likelihood="logit-normal")
