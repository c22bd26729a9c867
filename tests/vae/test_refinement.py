"""Refinement of posteriors: exact on linear decoders, never worse at its noise, better on digits."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import sparseggm as sg
from sparseggm.cli import main
from sparseggm.torch import GaussianGraphicalModel, elbo_gradient, refine
from sparseggm.vae import VAE, Config, Images, evaluate, evaluate_images, log_importance_weights, train
from sparseggm.vae.likelihoods import held_out
from sparseggm.vae.refinement import log_standard_normal
from tests.vae.test_objective import likelihood, some_decoder, some_posterior, white

U = torch.finfo(torch.float64).eps
MATCHING = [sg.Diagonal(3), sg.Chain(5), sg.BlockChain(2, 3), sg.Band(4, 3)]


def cubature(batch: int, n: int) -> Tensor:
    """±√n e_i, (2n, B, n): the mean over them of a quadratic function is that over N(0, I)."""
    half = math.sqrt(n) * torch.eye(n, dtype=torch.float64)
    return torch.cat([half, -half]).unsqueeze(1).expand(-1, batch, -1)


def linear_gaussian(topology: sg.Topology, batch: int) -> tuple[Callable[[Tensor], Tensor], Tensor, Tensor]:
    """log p(x, z) of x = W z + noise, one x for every edge and node, and the precision and mean of p(z | x)."""
    n, edges = topology.n, torch.from_numpy(topology.edges.copy())
    weights = torch.zeros(len(edges) + n, n, dtype=torch.float64)
    weights[torch.arange(len(edges)).repeat(2), edges.T.flatten()] = white(2 * len(edges), seed=4)
    weights[len(edges) :] = torch.diag(white(n, seed=5))
    x = white(batch, len(weights), seed=6)
    precision = torch.eye(n, dtype=torch.float64) + weights.T @ weights
    return (
        lambda z: -0.5 * (x - z @ weights.T).square().sum(-1) + log_standard_normal(z),
        precision,
        x @ weights @ precision.inverse(),
    )


@pytest.mark.parametrize("topology", MATCHING, ids=str)
def test_one_step_is_exact_on_a_linear_gaussian_decoder_with_the_same_graph(topology: sg.Topology) -> None:
    log_joint, precision, mean = linear_gaussian(topology, 4)
    start = some_posterior(topology, 4)
    noise = cubature(4, topology.n).repeat(4, 1, 1)  # a step is judged by a quarter of it
    q = refine(start, log_joint, 1, noise=lambda _: noise, rate=1.0).gaussian
    condition = torch.linalg.cond(precision) * torch.linalg.cond(start.precision_matrix).max()
    bound = 8 * topology.n * U * condition
    assert (q.precision_matrix - precision).abs().max() <= bound * torch.linalg.matrix_norm(precision)
    assert (q.loc - mean).abs().max() <= bound * (1 + mean.norm())


def test_a_step_too_long_is_not_taken_and_the_next_is_half_as_long() -> None:
    """At a rate of 4096 = 2¹² the entropy alone falls by 8 nats, where P remains positive definite at all."""
    log_joint, _, _ = linear_gaussian(sg.Diagonal(2), 3)
    q, noise = some_posterior(sg.Diagonal(2), 3), cubature(3, 2).repeat(4, 1, 1)

    refined = [refine(q, log_joint, steps, noise=lambda _: noise, rate=4096.0).gaussian for steps in range(16)]
    values = [elbo_gradient(q, log_joint, noise)[0].mean(0) for q in refined]
    assert torch.equal(values[1], values[0])
    assert all((after >= before).all() for before, after in pairwise(values))
    assert (values[-1] > values[0]).all()


def test_images_do_not_share_their_rates() -> None:
    log_joint, _, _ = linear_gaussian(sg.Chain(3), 4)
    q, noise = some_posterior(sg.Chain(3), 4), [white(4, 4, 3, seed=seed) for seed in range(5)]
    together = refine(q, log_joint, 5, noise=noise.__getitem__, rate=2.0).gaussian
    for image in range(4):

        def own(z: Tensor, image: int = image) -> Tensor:
            return log_joint(z.expand(-1, 4, -1))[:, [image]]

        one = slice(image, image + 1)
        start = GaussianGraphicalModel(q.loc[one], factor=q.factor[one], topology=q.topology)
        alone = refine(start, own, 5, noise=lambda step, one=one: noise[step][:, one], rate=2.0).gaussian
        torch.testing.assert_close(alone.loc[0], together.loc[image], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(alone.factor[0], together.factor[image], rtol=1e-12, atol=1e-12)


def test_the_log_weights_are_those_of_importance_sampling() -> None:
    q, decoder, x = some_posterior(sg.Chain(3), 2), some_decoder(3, 5), torch.ones(2, 5).double()
    noise = white(4, 2, 3)
    _, expected = log_importance_weights(q, likelihood(decoder, x), noise)
    found, _, _ = elbo_gradient(q, lambda z: likelihood(decoder, x)(z) + log_standard_normal(z), noise)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("posterior", ["diagonal", "chain", "extended-grid", "block-chain"])
def test_refined_posteriors_of_digits_have_higher_bounds(posterior: str, few_digits: Images, tmp_path: Path) -> None:
    config = Config(posterior=posterior, latent=4, hidden=16, epochs=1, batch=50, learning_rate=3e-3)
    train(config, tmp_path)
    before, after = evaluate(tmp_path, samples=64), evaluate(tmp_path, samples=64, refine=5)
    assert after["elbo"] > before["elbo"]
    assert after["gap"] < before["gap"]
    assert after["effective_samples_mean"] > before["effective_samples_mean"]


def test_refinement_repeats_and_leaves_the_model_alone(digits: Images) -> None:
    vae = VAE(Config(posterior="chain", latent=4, hidden=16, likelihood="levels"), digits.mean_intensity)
    images = held_out(vae.likelihood, digits, "test")[:70]
    weights = {name: values.clone() for name, values in vae.state_dict().items()}
    first, second = (evaluate_images(vae, images, 4, refine=2) for _ in range(2))
    assert np.array_equal(first.elbo, second.elbo)
    assert all(torch.equal(values, weights[name]) for name, values in vae.state_dict().items())
    assert all(values.grad is None for values in vae.parameters())


def test_the_evaluation_names_the_refinement(
    few_digits: Images, recipe: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(recipe, tmp_path)
    assert main(["evaluate", str(tmp_path), "--samples=3", "--refine=2"]) == 0
    assert "chain posterior, 4 latents, refined by 2 steps, " in capsys.readouterr().out
    assert json.loads((tmp_path / "evaluation.json").read_text())["refinement"]["steps"] == 2
    assert main(["evaluate", str(tmp_path), "--samples=3"]) == 0
    assert "refined" not in capsys.readouterr().out
    assert json.loads((tmp_path / "evaluation.json").read_text())["refinement"] is None


def test_a_posterior_that_is_not_given_by_its_factor_is_refused_before_work(
    few_digits: Images,
    recipe: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    train(replace(recipe, posterior="grid-dominant"), tmp_path / "run")
    monkeypatch.setattr(importlib.import_module("sparseggm.vae.evaluate"), "evaluate_images", None)
    capsys.readouterr()
    table = ["experiment", "table1", "--models", "diagonal", "grid-dominant", "--latent=4", f"--out={tmp_path / 'out'}"]
    for command in (["evaluate", str(tmp_path / "run")], table):
        assert main([*command, "--refine=2"]) == 2
        assert (
            "refine needs one layer, its posterior given by L, got grid-dominant posterior, 4 latents.\n"
            in capsys.readouterr().err
        )
    assert not (tmp_path / "out").exists()
