"""Lines between two posteriors: their ends, their scores, their pictures, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sparseggm import geometry
from sparseggm.cli import main
from sparseggm.vae import Config, Images
from sparseggm.vae.config import POSTERIORS
from sparseggm.vae.interpolation import LINES, PLACES, Ends, _scores, in_numpy, interpolate, samples_of
from sparseggm.vae.likelihoods import held_out
from sparseggm.vae.model import VAE
from sparseggm.vae.objective import elbo_terms
from sparseggm.vae.randomness import generator

FLAT = torch.full((784,), 0.2)
SMALL = ("--latent=4", "--hidden=16", "--batch=50", "--epochs=1")


def model(posterior: str) -> VAE:
    """Untrained, but with posteriors that differ from image to image."""
    vae = VAE(Config(posterior=posterior, latent=6, hidden=16, precision="64-true"), FLAT).double()
    with torch.no_grad():
        for parameter in vae.head.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator(3), dtype=parameter.dtype))
    return vae


def some(images: Images, vae: VAE, count: int = 4) -> torch.Tensor:
    return held_out(vae.likelihood, images, "test")[:count].double()


@pytest.mark.parametrize("posterior", POSTERIORS)
@pytest.mark.parametrize("line", LINES)
def test_a_line_goes_from_one_posterior_to_the_other(line: str, posterior: str, digits: Images) -> None:
    vae = model(posterior)
    ends = Ends.of(vae, some(digits, vae).reshape(2, 2, -1))
    for t, end in zip((0.0, 1.0), ends.posteriors, strict=True):
        assert geometry.jeffreys(ends.at(line, t), end) == pytest.approx(0.0, abs=1e-12)
    middle = ends.at(line, 0.5)
    assert (geometry.jeffreys(*ends.posteriors) > 1e-3).all()
    assert (geometry.jeffreys(middle, ends.posteriors[0]) > 1e-4).all()


@pytest.mark.parametrize("posterior", ["diagonal", "extended-grid", "grid-dominant"])
def test_between_two_equal_images_the_score_is_their_bound(posterior: str, digits: Images) -> None:
    vae = model(posterior)
    x = some(digits, vae)
    scores = _scores(vae, torch.stack([x, x]), 5, (0, 0))
    noise = torch.randn(5, 4, 6, generator=generator(0, "interpolate", 0)).double()
    with torch.inference_mode():
        q = vae.posterior(x)

        def log_likelihood(z: torch.Tensor) -> torch.Tensor:
            return vae.log_likelihood(z, x, torch.Generator())

        bounds = [reconstruction - kl for reconstruction, kl in (elbo_terms(q, log_likelihood, eps) for eps in noise)]
    expected = torch.stack(bounds).mean(0).numpy()
    for line in LINES:
        assert scores[f"{line} between"] == pytest.approx(np.broadcast_to(expected[:, None], (4, len(PLACES))))


def test_samples_have_the_moments_of_their_gaussian() -> None:
    vae = model("chain")
    with torch.inference_mode():
        g = in_numpy(vae.posterior(torch.rand(1, 784, dtype=torch.float64)))
    z = samples_of(g, np.random.default_rng(0).standard_normal((20_000, 1, 6)), torch.float64)
    assert (abs(z.mean(0).numpy() - g.loc) < 5.0 * np.sqrt(g.variance / 20_000)).all()
    assert z.var(0).numpy() == pytest.approx(g.variance, rel=0.06)  # 6 standard errors


def test_the_command_writes_what_it_says_and_repeats_itself(
    few_digits: Images, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["train", "--posterior=extended-grid", *SMALL, "--out", str(run)]) == 0
    capsys.readouterr()
    assert main(["interpolate", str(run), "--pairs=50", "--samples=2"]) == 0
    output = capsys.readouterr().out
    assert output.startswith("50 pairs, 2 samples, t = 0.25, 0.5, 0.75; nats\n")
    assert len(output.splitlines()) == 2 + 2 * len(LINES)
    first = json.loads((run / "interpolation.json").read_text())
    with np.load(run / "interpolation.npz") as scores:
        gain = (scores["e between"] - scores["straight between"]).mean(-1)
    assert gain.shape == (50,)
    assert first["e between"]["gain"] == pytest.approx(gain.mean())
    assert first["e between"]["share_higher"] == (gain > 0.0).mean()
    assert interpolate(run, 50, 2) == first | {"places": PLACES}
    assert json.loads((run / "interpolation.json").read_text()) == first


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (["--layers=2:chain 3:chain"], "needs one layer and likelihood bernoulli, got layers 2:chain 3:chain"),
        (["--latent=4", "--likelihood=levels"], "needs one layer and likelihood bernoulli, got chain posterior"),
        (["--latent=4"], "pairs must be at most 50, half the images, got 51."),
    ],
)
def test_what_has_no_such_lines_is_refused(
    recipe: list[str], message: str, few_digits: Images, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(tmp_path / "run")
    assert main(["train", *SMALL[1:], *recipe, "--out", run]) == 0
    capsys.readouterr()
    assert main(["interpolate", run, "--pairs=51"]) == 2
    assert message in capsys.readouterr().err
