"""Objectives and priors of a recipe: what is trained, recorded, evaluated and pictured, and what is refused."""

from __future__ import annotations

import json
import math
import signal
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from sparseggm.graph import pattern
from sparseggm.torch import GaussianGraphicalModel, fisher_solve
from sparseggm.vae import (
    VAE,
    Config,
    ConfigError,
    EpochRecord,
    Images,
    Interrupted,
    Training,
    evaluate,
    evaluate_images,
    figures,
    load_run,
    train,
)
from sparseggm.vae.config import PRIORS
from sparseggm.vae.files.checkpoint import load
from sparseggm.vae.files.interrupt import StopRequest
from sparseggm.vae.ladder import untrained
from sparseggm.vae.likelihoods import Bernoulli, held_out
from sparseggm.vae.randomness import generator
from tests.vae.conftest import assert_same_numbers
from tests.vae.test_objective import STANDARD_ERRORS, hermite, white

CHOICES: dict[str, dict[str, Any]] = {
    "path": {"kl": "path"},
    "iwae": {"objective": "iwae", "importance_samples": 3},
    "piwae": {"objective": "piwae", "importance_samples": 4},
    "warm-up": {"warm_up": 2},
    "iwae, warm-up, prior": {"objective": "iwae", "importance_samples": 2, "warm_up": 1, "prior": "full"},
    "prior": {"prior": "extended-grid", "posterior": "grid-edge"},
    "natural gradient": {"natural_gradient": True, "posterior": "extended-grid"},
    "levels": {"likelihood": "levels", "objective": "piwae", "importance_samples": 4, "pixels": "extended-grid"},
}
LEARNT = [name for name in PRIORS if name not in ("standard", "vamp")]


def run_to_end(training: Training) -> list[EpochRecord]:
    while not training.finished:
        training.train_epoch(StopRequest())
    return training.history


@pytest.mark.parametrize("name", CHOICES)
def test_training_raises_the_bound(name: str, digits: Images, recipe: Config, tmp_path: Path) -> None:
    recipe = replace(recipe, **CHOICES[name], epochs=6, hidden=32, learning_rate=0.01)
    history = run_to_end(Training(recipe, digits, tmp_path))
    assert history[-1].bound > history[1].bound + 5
    for record in history:
        assert record.elbo == pytest.approx(record.reconstruction - record.kl)
        if recipe.objective == "elbo":
            assert record.bound == record.elbo
        else:
            assert record.bound > record.elbo  # Jensen's inequality within the same samples


@pytest.mark.parametrize("name", CHOICES)
def test_a_run_is_resumed_within_an_epoch_loaded_and_evaluated(
    name: str, few_digits: Images, recipe: Config, tmp_path: Path
) -> None:
    recipe = replace(recipe, **CHOICES[name])
    whole = run_to_end(Training(recipe, few_digits, tmp_path / "whole"))
    stop, done = StopRequest(), 0

    def advance() -> None:
        nonlocal done
        done += 1
        stop.signal = signal.SIGINT if done == 3 else None

    with pytest.raises(Interrupted):
        Training(recipe, few_digits, tmp_path / "stopped").train_epoch(stop, advance)
    resumed = run_to_end(Training(recipe, few_digits, tmp_path / "stopped", resume=True))
    for one, other in zip(resumed, whole, strict=True):
        assert replace(one, seconds=0.0) == replace(other, seconds=0.0)
    models = [load(tmp_path / run / "checkpoint.pt")["model"] for run in ("whole", "stopped")]
    assert_same_numbers(*models)
    config, vae, _ = load_run(tmp_path / "whole")
    assert config == recipe
    assert_same_numbers(dict(vae.state_dict()), models[0])
    assert evaluate(tmp_path / "whole", samples=2)["elbo"] < 0


def test_the_history_names_the_bound_and_that_of_earlier_versions_is_read(
    few_digits: Images, recipe: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    history = train(replace(recipe, objective="iwae", importance_samples=3), tmp_path)
    assert f"epoch 2/2  iwae {history[1].bound:8.2f}  ELBO {history[1].elbo:8.2f}" in capsys.readouterr().out
    content = json.loads((tmp_path / "history.json").read_text())
    assert content["epochs"] == [asdict(record) for record in history]
    assert content["run"]["objective"] == "iwae"
    before = {name: value for name, value in asdict(history[0]).items() if name != "bound"}
    assert EpochRecord.of(before) == replace(history[0], bound=history[0].elbo)


def test_the_weight_of_the_kl_rises_from_0_to_1_step_by_step(digits: Images, recipe: Config) -> None:
    assert [Config(warm_up=4).kl_weight_at(epochs) for epochs in (0, 0.5, 1, 3.96, 4, 50)] == [
        *(0.0, 0.125, 0.25, 0.99),
        *(1.0, 1.0),
    ]
    assert Config().kl_weight_at(0.0) == 1.0
    vae, x = VAE(recipe, digits.mean_intensity), held_out(Bernoulli(), digits, "test")[:5]
    for weight in (0.0, 0.25, 1.0):
        loss, terms = vae(x, white(5, 4).float(), generator(0), weight)
        assert torch.equal(loss, weight * terms["kl"] - terms["reconstruction"])
        assert terms["kl"].min() > 0


def test_samples_share_their_image_which_is_never_copied(digits: Images, recipe: Config) -> None:
    """The forward pass saves logits and what softplus needs, not K copies of the image: the bytes are counted."""
    samples, images = 16, held_out(Bernoulli(), digits, "test")[:20]
    vae = VAE(replace(recipe, objective="iwae", importance_samples=samples), digits.mean_intensity)
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        vae(images, torch.randn(samples, 20, 4, generator=torch.Generator().manual_seed(0)), generator(0))
    large = [size for size in saved.values() if size >= samples * images.nbytes]
    assert len(large) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"importance_samples": 4}, "importance_samples 4 needs objective iwae or piwae, or importance_epochs"),
        ({"objective": "iwae", "kl": "path"}, "kl path needs objective elbo, got objective iwae"),
        (
            {"objective": "piwae", "importance_samples": 7},
            r"two groups or more, got 7; near it: .*6 = 2 × 3, 8 = 2 × 4",
        ),
        ({"objective": "piwae", "importance_samples": 1}, r"two groups or more, got 1; near it: 4 = 2 × 2"),
        ({"objective": "vae"}, "unknown objective 'vae'; one of: elbo, iwae, piwae"),
        ({"prior": "tree"}, "unknown prior 'tree'; one of: standard, chain, extended-grid, full"),
        ({"prior": "extended-grid", "latent": 13}, "extended-grid needs a latent size with two rows or more, got 13"),
        ({"warm_up": -1}, "warm_up must be an integer from 0"),
        ({"natural_gradient": 1}, "natural_gradient must be true or false, got 1"),
        (
            {"natural_gradient": True, "posterior": "grid-edge"},
            "needs one layer, its posterior given by L, got grid-edge",
        ),
        (
            {"natural_gradient": True, "layers": "2:chain"},
            "needs one layer, its posterior given by L, got layers 2:chain",
        ),
    ],
)
def test_an_impossible_choice_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config(**options)


def test_a_warm_up_that_outlasts_the_run_is_refused(digits: Images, recipe: Config, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="warm_up must be within the epochs, 2, got 3"):
        Training(replace(recipe, warm_up=3), digits, tmp_path)
    assert not list(tmp_path.iterdir())


def test_samples_that_memory_cannot_hold_are_refused(digits: Images, recipe: Config, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="2,147,483,647 samples of 50 images need at least"):
        Training(replace(recipe, objective="iwae", importance_samples=2**31 - 1), digits, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_posterior_alone_gets_the_natural_gradient(
    digits: Images, recipe: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F⁻¹ g, where g is what it gets otherwise; the decoder's gradient stays."""
    recipe = replace(recipe, posterior="extended-grid", latent=4, precision="64-true")
    x, found = held_out(Bernoulli(), digits, "test")[:5].double(), []
    for natural in (False, True):
        vae = VAE(replace(recipe, natural_gradient=natural), digits.mean_intensity).double()
        with torch.no_grad():
            vae.head.layer.bias.copy_(0.3 * white(len(vae.head.layer.bias), seed=5))
            q = vae.posterior(x)
        loc, factor = q.loc.clone().requires_grad_(), q.factor.clone().requires_grad_()
        of_leaves = GaussianGraphicalModel(loc, factor=factor, topology=q.topology)
        monkeypatch.setattr(vae, "posterior", lambda x, q=of_leaves: q)
        vae(x, white(5, 4), generator(0))[0].mean().backward()
        found.append((q, (loc.grad, factor.grad), [p.grad for p in vae.decoder.parameters()]))
    (q, plain, of_decoder), (_, natural_gradient, same) = found
    for one, other in zip(fisher_solve(q, *plain), natural_gradient, strict=True):
        assert (abs(other) > 1e-9).any()
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-13)
    for one, other in zip(of_decoder, same, strict=True):
        assert torch.equal(one, other)


def test_groups_are_the_rows_of_the_squarest_product() -> None:
    recipes = {k: Config(objective="piwae", importance_samples=k) for k in (4, 8, 12, 64)}
    assert {k: config.groups for k, config in recipes.items()} == {4: 2, 8: 2, 12: 3, 64: 8}
    assert Config(objective="iwae", importance_samples=64).groups == 1


# ---------------------------------------------------------------------- priors


def coupled(config: Config, seed: int = 3) -> VAE:
    """A model whose prior, if it is learnt, has couplings."""
    vae = untrained(config)
    if vae.learnt_prior is not None:
        with torch.no_grad():
            vae.learnt_prior.inputs.copy_(0.4 * white(len(vae.learnt_prior.inputs), seed=seed))
    return vae


@pytest.mark.parametrize("kl", ["exact", "sampled", "path"])
@pytest.mark.parametrize("prior", LEARNT)
def test_a_learnt_prior_starts_at_the_standard_normal(prior: str, kl: str, digits: Images, recipe: Config) -> None:
    x, noise = held_out(Bernoulli(), digits, "test")[:5], white(5, 4).float()
    plain = VAE(replace(recipe, kl=kl), digits.mean_intensity)(x, noise, generator(0))
    found = VAE(replace(recipe, kl=kl, prior=prior), digits.mean_intensity)(x, noise, generator(0))
    torch.testing.assert_close(found, plain, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("posterior", ["diagonal", "chain", "tree", "grid-spectral", "extended-grid", "full"])
@pytest.mark.parametrize("prior", LEARNT)
def test_the_kl_to_a_prior_is_that_of_dense_normals(prior: str, posterior: str, digits: Images) -> None:
    config = Config(posterior=posterior, latent=6, hidden=16, precision="64-true", prior=prior)
    vae, x = coupled(config), held_out(Bernoulli(), digits, "test")[:5]
    q, p = vae.posterior(x), vae.prior()
    assert p is not None
    kl = vae(x, white(5, 6), generator(0))[1]["kl"]
    dense = [MultivariateNormal(g.loc, precision_matrix=g.precision_matrix) for g in (q, p)]
    torch.testing.assert_close(kl, kl_divergence(*dense), rtol=1e-10, atol=1e-10)
    (gradient,) = torch.autograd.grad(kl.sum(), vae.learnt_prior.inputs)
    assert (gradient.abs() > 1e-6).all()


@pytest.mark.parametrize("posterior", ["chain", "grid-edge"])
@pytest.mark.parametrize("prior", LEARNT)
def test_a_step_with_a_prior_makes_no_pattern(
    prior: str, posterior: str, digits: Images, recipe: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All symbolic work belongs to the first step."""
    vae, x = coupled(replace(recipe, prior=prior, posterior=posterior)), held_out(Bernoulli(), digits, "test")[:5]

    def step() -> None:
        loss, _ = vae(x, white(5, 4).float(), generator(0))
        loss.mean().backward()

    step()
    for owner, name in ((pattern, "_checked"), (pattern.Pattern, "positions_of")):
        monkeypatch.setattr(owner, name, lambda *given: pytest.fail("symbolic work"))
    step()


@pytest.mark.parametrize("prior", LEARNT)
def test_latents_are_samples_of_the_prior(prior: str) -> None:
    vae = coupled(Config(latent=6, hidden=16, precision="64-true", prior=prior))
    root = vae.latents(torch.eye(6))
    p = vae.prior()
    assert p is not None
    torch.testing.assert_close(root.mT @ root @ p.precision_matrix, torch.eye(6).double(), rtol=1e-12, atol=1e-12)
    assert torch.equal(coupled(Config(latent=6, hidden=16)).latents(torch.eye(6)), torch.eye(6))


def test_evaluate_finds_log_p_under_a_prior(digits: Images) -> None:
    """Against the integral over the prior, by quadrature of the noise that makes its samples."""
    vae = coupled(Config(latent=2, hidden=16, prior="chain"))
    images, samples = held_out(Bernoulli(), digits, "test")[:20], 1_000
    evaluation = evaluate_images(vae, images, samples)
    noise, log_weights = hermite(order=40)
    with torch.no_grad():
        logits = vae.decoder(vae.latents(noise)).double()
    log_likelihood = logits @ images.double().T - logits.exp().log1p().sum(1, keepdim=True)
    exact = torch.logsumexp(log_likelihood + log_weights[:, None], dim=0).numpy()
    standard_error = np.sqrt(1.0 / evaluation.effective_samples - 1.0 / samples)
    assert (np.abs(evaluation.log_p - exact) <= STANDARD_ERRORS * standard_error + 1e-4).all()
    assert (evaluation.elbo <= evaluation.log_p).all()
    plain = coupled(Config(latent=2, hidden=16))
    plain.load_state_dict({name: w for name, w in vae.state_dict().items() if not name.startswith("learnt_prior")})
    assert np.abs(evaluate_images(plain, images, 2).kl - evaluation.kl).max() > 0.01


def test_a_prior_is_learnt_and_pictured(few_digits: Images, recipe: Config, tmp_path: Path) -> None:
    recipe = replace(recipe, prior="full", posterior="diagonal", learning_rate=0.01)
    run_to_end(Training(recipe, few_digits, tmp_path / "run"))
    _, vae, _ = load_run(tmp_path / "run")
    p = vae.prior()
    assert p is not None
    off_diagonal = p.precision_matrix.detach().fill_diagonal_(0.0)
    assert off_diagonal.abs().max() > 1e-3
    assert math.isfinite(evaluate(tmp_path / "run", samples=3)["log_p"])
    shown = {"topologies", "figure5", "curves", "fisher-length", "samples", "between", "reconstructions", "diagnostics"}
    assert {picture.stem for picture in figures([tmp_path / "run"])} == shown
