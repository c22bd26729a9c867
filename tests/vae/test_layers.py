"""Several stochastic layers: the recipe, the bounds and their gradients, runs and figures."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import sparseggm as sg
from sparseggm.graph.families import BlockChain, ExtendedGrid
from sparseggm.torch import GaussianGraphicalModel
from sparseggm.vae import LAYERS as TWO_LAYERS
from sparseggm.vae import (
    CheckpointError,
    Config,
    ConfigError,
    Images,
    LadderVAE,
    Training,
    chow_liu,
    evaluate,
    evaluate_images,
    experiment,
    figures,
    importance_weighted_bound,
    load_run,
    report,
    results,
    train,
)
from sparseggm.vae.config import HEADS
from sparseggm.vae.files.interrupt import StopRequest
from sparseggm.vae.ladder import averaged, model_of
from sparseggm.vae.rungs import Mixture
from sparseggm.vae.runs import load_runs
from tests.vae.test_objective import some_posterior

LAYERS = "4:extended-grid 6:block-chain"
IMAGES = 3


@pytest.fixture
def ladder(recipe: Config) -> Config:
    """Two epochs of eight steps of two small layers."""
    return replace(recipe, posterior=Config.posterior, latent=Config.latent, layers=LAYERS)


def moved(config: Config, images: Images, scale: float = 0.2) -> LadderVAE:
    """A model in float64 whose heads say something."""
    vae = model_of(replace(config, precision="64-true"), images.mean_intensity).double()
    assert isinstance(vae, LadderVAE)
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for rung in vae.rungs:
            for weights in rung.parameters():
                weights += scale * torch.randn(weights.shape, generator=rng, dtype=torch.float64)
    return vae


def observed(vae: LadderVAE, images: Images, count: int = IMAGES) -> Tensor:
    return vae.likelihood.observe(images.train[:count], torch.Generator().manual_seed(2))


def noise_of(vae: LadderVAE, *shape: int, seed: int = 3) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, vae.latent_variables, generator=rng, dtype=torch.float64)


# ---------------------------------------------------------------------- the recipe


def test_layers_are_read_from_the_top() -> None:
    config = Config(layers="16:extended-grid 40:block-chain")
    assert [layer.topology for layer in config.latent_layers] == [ExtendedGrid(4, 4), BlockChain(8, 5)]
    assert config.latents == 56
    assert config.terms == ("reconstruction", "kl", "kl_2", "kl_1")
    assert Config().latent_layers[0].topology == Config().topology


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": "16"}, r"layers: needed size:graph, such as 16:extended-grid 40:block-chain, got '16'\."),
        ({"layers": "chain:16"}, "needed size:graph"),
        ({"layers": "16:chain,8:chain"}, r"unknown graph 'chain,8:chain' in 16:chain,8:chain; one of: diagonal, "),
        ({"layers": "0:chain"}, "needed size:graph"),
        ({"layers": "-4:chain"}, "needed size:graph"),
        ({"layers": "16:star"}, "unknown graph 'star' in 16:star; one of: diagonal, "),
        ({"layers": "7:extended-grid 4:chain"}, "extended-grid needs a latent size with two rows or more, got 7"),
        ({"layers": " "}, "layers must name a layer, such as 16:extended-grid, or be empty, got ' '"),
        (
            {"layers": "4:grid-dominant", "head": "residual"},
            "head residual needs graphs that are factor-free, got 4:grid-dominant",
        ),
        ({"layers": "4:chain 4:grid-spectral", "head": "residual"}, "Use head free or potential"),
        ({"layers": "4:chain", "latent": 8}, "latent 8 is of one layer; '4:chain' has its own"),
        ({"layers": "4:chain", "posterior": "full"}, "posterior full is of one layer"),
        ({"layers": "4:chain", "kl": "sampled"}, "kl sampled is of one layer"),
        ({"layers": "4:chain 4:full", "prior": "full"}, "prior full needs a top layer of its graph, got chain"),
        ({"prior": "vamp"}, r"prior vamp needs layers\."),
        ({"pseudo_inputs": 7}, "pseudo_inputs 7 needs prior vamp, got prior standard"),
        ({"layers": "4:chain", "prior": "vamp", "pseudo_inputs": 0}, "pseudo_inputs must be an integer from 1"),
        ({"head": "residual"}, r"head residual needs layers\."),
        ({"free_bits": 0.5}, r"free_bits 0\.5 needs layers\."),
        ({"layers": "4:chain", "free_bits": 0.5, "objective": "iwae"}, r"free_bits 0\.5 needs objective elbo, got"),
        ({"layers": "4:chain", "head": "both"}, "unknown head 'both'; one of: free, residual, potential"),
        ({"layers": "4:chain", "free_bits": -1.0}, r"free_bits must be nats, 0 or more, got -1\.0"),
        ({"layers": "4:chain", "free_bits": float("nan")}, "free_bits must be nats"),
        ({"averaging": 1.0}, r"averaging must be in \[0, 1\), got 1\.0"),
        ({"importance_epochs": -1}, "importance_epochs must be an integer from 0"),
        ({"importance_epochs": 3, "objective": "iwae"}, "importance_epochs needs objective elbo before them, got iwae"),
        ({"importance_samples": 5}, "importance_samples 5 needs objective iwae or piwae, or importance_epochs"),
    ],
)
def test_recipes_that_say_nothing_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config(**changes)  # type: ignore[arg-type]


def test_the_identity_of_one_layer_is_what_it_was() -> None:
    """So that runs begun before there were layers go on."""
    added = {"layers", "head", "free_bits", "averaging", "importance_epochs"}
    assert not added & Config().identity("MNIST").keys()
    assert Config(layers="4:chain").identity("MNIST")["layers"] == "4:chain"


def test_the_identity_of_layers_tells_their_head_but_that_of_the_first_runs(
    ladder: Config, few_digits: Images, tmp_path: Path
) -> None:
    for head in HEADS:
        config = replace(ladder, head=head, epochs=1)
        assert config.identity("MNIST").get("head") == (None if head == "residual" else head)
        train(config, tmp_path / head)
        assert load_run(tmp_path / head)[0].head == head


# ---------------------------------------------------------------------- bounds


@pytest.mark.parametrize("head", HEADS)
def test_the_kl_of_the_layers_is_that_of_their_gaussians(head: str, ladder: Config, digits: Images) -> None:
    vae = moved(replace(ladder, head=head), digits)
    x, noise = observed(vae, digits), noise_of(vae, IMAGES)
    _, terms = vae(x, noise, torch.Generator())
    above = torch.zeros(IMAGES, 0, dtype=torch.float64)
    for number, (rung, eps) in enumerate(vae.by_rung(noise)):
        q, p = rung(vae.features(x), above).gaussian(), rung.prior(above)
        assert q.topology.n == rung.size
        expected = torch.distributions.kl_divergence(dense(q), dense(p.expand(q.batch_shape)))
        torch.testing.assert_close(terms[f"kl_{2 - number}"], expected, rtol=1e-9, atol=1e-9)
        above = torch.cat([above, q.loc + q.colorize(eps)], -1)
    torch.testing.assert_close(terms["kl"], terms["kl_1"] + terms["kl_2"])
    torch.testing.assert_close(terms["reconstruction"], vae.log_likelihood(above, x, torch.Generator()))


def dense(q: torch.distributions.Distribution) -> torch.distributions.MultivariateNormal:
    return torch.distributions.MultivariateNormal(q.mean, covariance_matrix=q.covariance_matrix)  # type: ignore[attr-defined]


def test_a_residual_posterior_has_the_precision_of_its_prior_at_first(ladder: Config, digits: Images) -> None:
    vae = model_of(replace(ladder, head="residual"), digits.mean_intensity)
    features, above = vae.features(vae.likelihood.observe(digits.train[:5], torch.Generator())), torch.zeros(5, 0)
    for rung in vae.rungs:
        q, p = rung(features, above).gaussian(), rung.prior(above)
        torch.testing.assert_close(q.factor, p.factor.expand_as(q.factor), rtol=0, atol=1e-15)
        assert (q.loc - p.loc).std(0).min() > 1e-3  # a mean of its own for each image
        above = torch.cat([above, q.loc], -1)


def test_a_potential_posterior_is_never_wider_than_its_prior(ladder: Config, digits: Images) -> None:
    vae = moved(replace(ladder, head="potential", layers="4:grid-dominant 6:block-chain"), digits)
    above = torch.zeros(IMAGES, 0, dtype=torch.float64)
    for rung in vae.rungs:
        q, p = rung(vae.features(observed(vae, digits)), above).gaussian(), rung.prior(above)
        gained = torch.linalg.eigvalsh(q.precision_matrix - p.precision_matrix)
        assert gained.min() > -1e-12 * gained.max()
        above = torch.cat([above, q.loc], -1)


def test_terms_below_their_share_of_free_bits_cost_nothing(ladder: Config, digits: Images) -> None:
    """Below a high floor the terms have no gradient, and the loss is the floor of both layers."""
    vae = model_of(replace(ladder, free_bits=20.0), digits.mean_intensity)
    x = vae.likelihood.observe(digits.train[:5], torch.Generator())
    loss, terms = vae(x, torch.randn(5, 10), torch.Generator())
    assert (terms["kl"] > 0.0).all()
    torch.testing.assert_close(loss.detach(), (40.0 - terms["reconstruction"]).detach())

    moved_vae = moved(replace(ladder, free_bits=1e-6), digits)
    x, noise = observed(moved_vae, digits), noise_of(moved_vae, IMAGES)
    loss, terms = moved_vae(x, noise, torch.Generator())
    torch.testing.assert_close(loss, terms["kl"] - terms["reconstruction"])


@pytest.mark.parametrize("head", HEADS)
def test_the_prior_of_pseudo_inputs_is_the_mixture_of_their_posteriors(
    head: str, ladder: Config, digits: Images
) -> None:
    vae = moved(replace(ladder, head=head, prior="vamp", pseudo_inputs=3), digits)
    top, above = vae.rungs[0], torch.zeros(0, dtype=torch.float64)
    parts = dense(top(vae.encoder(top.pseudo_inputs.sigmoid()), above).gaussian())
    equal = torch.distributions.Categorical(torch.ones(3, dtype=torch.float64))
    mixture = torch.distributions.MixtureSameFamily(equal, parts)
    eps = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = top.prior(above).draw(eps)
    torch.testing.assert_close(top.prior(above).log_prob(z), mixture.log_prob(z))
    for k, row in enumerate(z[0]):
        d = row - parts.loc[k % 3]
        torch.testing.assert_close(d @ parts.precision_matrix[k % 3] @ d, eps[0, k].square().sum())
    x, noise = observed(vae, digits), noise_of(vae, IMAGES)
    loss, terms = vae(x, noise, torch.Generator())
    torch.testing.assert_close(loss, terms["kl"] - terms["reconstruction"])
    loss.sum().backward()  # type: ignore[no-untyped-call]
    assert top.pseudo_inputs.grad is not None
    assert top.pseudo_inputs.grad.abs().max() > 0.0
    assert not any("features" in name for name, _ in vae.named_parameters())  # the encoder stands there once


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "topology", [sg.Diagonal(3), sg.ExtendedGrid(2, 3), sg.Grid(3, 3), sg.Chain(4, order=[2, 0, 3, 1])], ids=str
)
def test_a_mixture_has_the_density_of_its_parts(topology: sg.Topology, dtype: torch.dtype) -> None:
    """In float32 as near as the parts, whose L is rounded, let it be: the sum is in float64."""
    parts = some_posterior(topology, 5)
    z = parts.rsample((7,)) + parts.loc.flip(0)  # (7, 5, n), far from most parts
    mixture = Mixture(parts._in_dtype(dtype))
    assert mixture.log_prob(z.to(dtype)).dtype == dtype
    exact = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.ones(5, dtype=torch.float64)),
        dense(mixture.parts._in_dtype(torch.float64)),
    )
    torch.testing.assert_close(mixture.log_prob(z.to(dtype)), exact.log_prob(z.to(dtype).double()).to(dtype))


def test_a_mixture_says_what_is_wrong_and_takes_shared_factors() -> None:
    parts = some_posterior(sg.Chain(4), 5)
    shared = GaussianGraphicalModel(parts.loc, factor=parts.factor[0], topology=parts.topology)
    each = GaussianGraphicalModel(parts.loc, factor=parts.factor[:1].expand(5, -1), topology=parts.topology)
    z = parts.rsample((7,))
    torch.testing.assert_close(Mixture(shared).log_prob(z), Mixture(each).log_prob(z))
    with pytest.raises(sg.NonFiniteError, match="log_prob: value must be finite, got nan at node 1"):
        Mixture(parts).log_prob(z * torch.tensor([1.0, float("nan"), 1.0, 1.0]))


def test_importance_weights_average_to_the_evidence(digits: Images) -> None:
    """log p(x) by samples of the prior, and of the posteriors, of two layers of one variable each."""
    few = Config(layers="1:diagonal 1:diagonal", hidden=8)
    for recipe in (*(replace(few, head=head) for head in HEADS), replace(few, prior="vamp", pseudo_inputs=3)):
        vae = moved(recipe, digits, scale=0.2)
        x = observed(vae, digits, 1)
        with torch.no_grad():
            z = vae.latents(noise_of(vae, 20_000, 1, seed=4))
            likelihoods = vae.log_likelihood(z, x, torch.Generator()).exp()
        result = evaluate_images(vae, x, samples=2_000)
        relative = float(likelihoods.std() / likelihoods.mean()) / 20_000**0.5
        error = relative + 1.0 / float(result.effective_samples[0]) ** 0.5
        assert error < 0.1
        assert abs(float(likelihoods.mean().log()) - result.log_p[0]) < 4.0 * error
        assert result.elbo[0] < result.log_p[0]
        np.testing.assert_allclose(result.kl, result.kl_by_layer.sum(1))


def test_the_importance_weighted_gradient_is_that_of_the_score_function(
    digits: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    """∇ E[bound] = E[bound Σ_k ∇ log q(z_k) + ∇ bound at fixed z], by other samples, for every weight of the rungs."""
    vae = moved(Config(layers="1:diagonal 1:diagonal", hidden=3, objective="iwae"), digits, scale=0.5)
    batch, samples = 3_000, 2
    x = observed(vae, digits, 1).expand(batch, -1)

    def log_likelihood(z: Tensor, x: Tensor, rng: torch.Generator) -> Tensor:
        return -0.5 * (z.sum(-1) - 1.0).square() - 0.3 * z[..., 0] ** 4

    monkeypatch.setattr(vae, "log_likelihood", log_likelihood)  # in place of 784 pixels
    weights = [weight for weight in vae.rungs.parameters() if weight.requires_grad]

    def doubly(seed: int) -> Tensor:
        loss, _ = vae(x, noise_of(vae, samples, batch, seed=seed), torch.Generator(), 1.0, "iwae")
        return -loss.mean()

    def by_score(seed: int) -> Tensor:
        with torch.no_grad():
            z, _ = vae.infer(x).sample_and_log_ratios(noise_of(vae, samples, batch, seed=seed))
        log_q, log_p, above = 0.0, 0.0, z[..., :0]
        for rung, own in vae.by_rung(z):
            log_q = log_q + rung(vae.features(x), above).gaussian().log_prob(own)
            log_p = log_p + rung.prior(above).log_prob(own)
            above = torch.cat([above, own], -1)
        bound = importance_weighted_bound(vae.log_likelihood(z, x, torch.Generator()) + log_p - log_q)
        others = (bound.sum() - bound) / (batch - 1)
        return ((bound - others).detach() * log_q.sum(0) + bound).mean()  # type: ignore[union-attr]

    one, other = (gradients(estimate, weights, 60) for estimate in (doubly, by_score))
    difference, error = one.mean(0) - other.mean(0), (one.var(0) / 60 + other.var(0) / 60).sqrt()
    assert (difference.abs() <= 5.0 * error + 1e-9).all()
    assert (one.mean(0).abs() > 20.0 * error).sum() >= 5  # so a wrong scale would be seen


def gradients(estimate: Callable[[int], Tensor], weights: list[Tensor], count: int) -> Tensor:
    """(count, all weights)."""
    rows = []
    for seed in range(count):
        found = torch.autograd.grad(estimate(seed), weights, allow_unused=True)
        rows.append(
            torch.cat(
                [(torch.zeros_like(w) if g is None else g).flatten() for w, g in zip(weights, found, strict=True)]
            )
        )
    return torch.stack(rows)


# ---------------------------------------------------------------------- runs


@pytest.mark.parametrize("head", HEADS)
def test_a_resumed_run_of_layers_repeats_an_uninterrupted_one(
    head: str, ladder: Config, few_digits: Images, tmp_path: Path
) -> None:
    config = replace(
        ladder, head=head, epochs=3, warm_up=1, free_bits=0.1, averaging=0.9, importance_epochs=1, importance_samples=2
    )
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    history = train(config, whole)
    with StopRequest() as stop:
        Training(config, few_digits, parts).train_epoch(stop)
    assert [replace(each, seconds=0.0) for each in train(config, parts, resume=True)] == [
        replace(each, seconds=0.0) for each in history
    ]
    states = [load_run(run)[2] for run in (whole, parts)]
    for name in ("model", "average"):
        for key, values in states[0][name].items():
            assert torch.equal(values, states[1][name][key]), key
    assert all(len(each.kl_by_layer) == 2 for each in history)
    assert [each.bound > each.elbo + 1e-3 for each in history] == [False, False, True]
    with open(whole / "history.csv") as file:
        rows = list(csv.DictReader(file))
    assert [[float(row["kl_2"]), float(row["kl_1"])] for row in rows] == [each.kl_by_layer for each in history]
    tracked = np.load(whole / "tracked.npz")
    assert tracked["loc"].shape == (4, 10)
    assert tracked["factor"].shape[1] == len(tracked["rows"]) == len(tracked["cols"])
    assert tracked["rows"].max() == 9
    assert sorted(tracked["order"].tolist()) == list(range(10))


def test_averaged_weights_are_evaluated(ladder: Config, few_digits: Images, tmp_path: Path) -> None:
    config = replace(ladder, epochs=1, averaging=0.5)
    with StopRequest() as stop:
        training = Training(config, few_digits, tmp_path / "run")
        training.train_epoch(stop)
    _, vae, state = load_run(tmp_path / "run")
    for name, weights in vae.named_parameters():
        assert torch.equal(weights, state["average"][f"module.{name}"])
    assert not torch.equal(vae.decoder[0].weight, state["model"]["decoder.0.weight"])


def test_the_average_forgets_the_first_weights() -> None:
    """a_1 = w_1; then a_t = d_t a_{t−1} + (1 − d_t) w_t with d_t = min(d, (1 + t) / (10 + t)), t steps before it."""
    model = torch.nn.Linear(1, 1, bias=False)
    average, expected = averaged(model, 0.3), 0.0
    for step in range(8):
        with torch.no_grad():
            model.weight.fill_(float(step + 1))
        average.update_parameters(model)
        decay = min(0.3, (1 + step) / (10 + step)) if step else 0.0
        expected = decay * expected + (1.0 - decay) * (step + 1)
    assert float(average.module.weight.detach()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("head", HEADS)
def test_layers_are_evaluated_reported_and_plotted(
    head: str, ladder: Config, few_digits: Images, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    train(replace(ladder, head=head, epochs=1), run)
    result = evaluate(run, samples=30)
    assert len(result["layers"]) == 2
    assert sum(each["kl"] for each in result["layers"]) == pytest.approx(result["kl"])
    assert result["active_units"] == sum(each["active_units"] for each in result["layers"])
    text = report(result)
    assert "layers 4:extended-grid 6:block-chain" in text
    for part in ("z2: KL", "z1: KL", "of 6 units active"):
        assert part in text
    with np.load(run / "evaluation.npz") as arrays:
        assert arrays["kl_by_layer"].shape == (100, 2)
        assert arrays["edges"].max() == 9
    for layer, graph in zip(load_runs([run])[0].layers, load_run(run)[0].latent_layers, strict=True):
        assert np.array_equal(layer.drawn_on.edges, layer.topology.edges)
        assert np.array_equal(layer.drawn_on.node_places(), graph.topology.node_places())
    pictures = {path.stem for path in figures([run])}
    assert pictures >= {"figure4", "figure5", "layers", "samples", "topologies", "diagnostics"}
    origin = json.loads((run / "figures" / "layers.json").read_text())
    assert origin["runs"][0]["layers"] == LAYERS


def test_an_experiment_of_layers_shows_each(few_digits: Images, tmp_path: Path) -> None:
    recipe = Config(hidden=16, batch=50)
    models = ("diagonal", "structured", "one-layer")
    experiment(TWO_LAYERS, recipe, tmp_path / "layers", models, epochs=1, samples=5)
    page = results(tmp_path / "layers").read_text()
    rows = [line.split("|")[1:-1] for line in page.splitlines() if line.startswith("|")]
    of_layers = [[cell.strip() for cell in row[:2]] for row in rows if len(row) == 5][2:]
    assert of_layers == [
        *([model, layer] for model in models[:2] for layer in ("z2", "z1")),
        ["one-layer", "z1"],
    ]
    assert "--models diagonal structured one-layer --hidden 16 --batch 50 --seeds 1" in page


def test_what_is_for_one_layer_says_so(ladder: Config, few_digits: Images, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(replace(ladder, epochs=1), run)
    with pytest.raises(ConfigError, match="refine needs one layer, its posterior given by L, got layers 4:"):
        evaluate(run, samples=2, refine=1)
    with pytest.raises(ConfigError, match="a tree needs a run of one layer, got layers 4:extended-grid"):
        chow_liu(run)
    with pytest.raises(CheckpointError, match=r"layers '4:extended-grid 6:block-chain' \(asked for: '4:chain'\)"):
        train(replace(ladder, epochs=1, layers="4:chain"), run, resume=True)
