"""The bounds against numerical integration, and against one another."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from sparseggm.graph.families import Chain, ExtendedGrid
from sparseggm.graph.topology import Topology
from sparseggm.torch import GaussianGraphicalModel
from sparseggm.vae import (
    VAE,
    Config,
    Images,
    bernoulli_log_likelihood,
    elbo_terms,
    evaluate_images,
    importance_weighted_bound,
    log_importance_weights,
)
from sparseggm.vae.bounds import RunningWeights
from sparseggm.vae.likelihoods import Bernoulli, held_out

STANDARD_ERRORS = 5.0


def some_posterior(topology: Topology, batch: int, seed: int = 0) -> GaussianGraphicalModel:
    """Posteriors that are wide beside their targets, so that importance weights have small variance."""
    draws = torch.Generator().manual_seed(seed)
    factor = 0.3 * torch.randn(batch, topology.factor_pattern.nnz, generator=draws, dtype=torch.float64)
    diagonal = torch.as_tensor(topology.factor_pattern.diagonal.copy()).long()
    factor[:, diagonal] = 0.7 * factor[:, diagonal].exp()
    loc = 0.3 * torch.randn(batch, topology.n, generator=draws, dtype=torch.float64)
    return GaussianGraphicalModel(loc, factor=factor, topology=topology)


def some_decoder(latent: int, pixels: int) -> nn.Module:
    linear = nn.Linear(latent, pixels, dtype=torch.float64)
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(pixels, latent, generator=draws))
        linear.bias.copy_(torch.randn(pixels, generator=draws))
    return linear


def likelihood(decoder: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    """z → log p(x | z)."""
    return lambda z: bernoulli_log_likelihood(decoder(z), x)


def hermite(order: int = 80) -> tuple[Tensor, Tensor]:
    """Points (order², 2) and log weights of E over N(0, I) in two dimensions."""
    points, weights = np.polynomial.hermite_e.hermegauss(order)
    x, y = np.meshgrid(points, points)
    log_weights = np.log(np.outer(weights, weights)) - math.log(2.0 * math.pi)
    return torch.from_numpy(np.stack([x.ravel(), y.ravel()], 1)), torch.from_numpy(log_weights.ravel())


def white(*shape: int, seed: int = 2) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_bernoulli_log_likelihood_is_the_log_of_the_probability() -> None:
    logits, x = white(3, 4, 6), (white(4, 6, seed=3) > 0).double()
    direct = torch.distributions.Bernoulli(logits=logits).log_prob(x.expand(3, 4, 6)).sum(-1)
    torch.testing.assert_close(bernoulli_log_likelihood(logits, x), direct, rtol=1e-13, atol=1e-13)


def test_importance_sampling_finds_the_integral_of_a_two_latent_model() -> None:
    q, decoder, x = some_posterior(Chain(2), 4), some_decoder(2, 5), (white(4, 5, seed=3) > 0).double()
    z, log_weights = hermite()
    exact = torch.logsumexp(bernoulli_log_likelihood(decoder(z)[:, None], x) + log_weights[:, None], dim=0)

    samples = 100_000
    _, log_w = log_importance_weights(q, likelihood(decoder, x), white(samples, 4, 2))
    estimate = importance_weighted_bound(log_w)
    relative = (log_w - estimate).exp()
    standard_error = relative.std(0) / math.sqrt(samples)
    assert ((estimate - exact).abs() <= STANDARD_ERRORS * standard_error).all()
    assert standard_error.max() < 0.02


def test_the_elbo_is_its_integral_over_the_posterior() -> None:
    q, decoder, x = some_posterior(Chain(2), 3), some_decoder(2, 5), (white(3, 5, seed=3) > 0).double()
    noise, log_weights = hermite(order=60)
    z = q.loc + q.colorize(noise[:, None].expand(-1, 3, -1))
    log_prior = -0.5 * z.square().sum(-1) - math.log(2.0 * math.pi)
    integrand = bernoulli_log_likelihood(decoder(z), x) + log_prior - q.log_prob(z)
    exact = (log_weights.exp()[:, None] * integrand).sum(0)

    terms = [elbo_terms(q, likelihood(decoder, x), eps) for eps in white(1000, 3, 2)]
    elbo = torch.stack([reconstruction - kl for reconstruction, kl in terms])
    assert ((elbo.mean(0) - exact).abs() <= STANDARD_ERRORS * elbo.std(0) / math.sqrt(len(elbo))).all()


def test_the_sampled_kl_is_unbiased() -> None:
    q, decoder, x = some_posterior(ExtendedGrid(2, 3), 2), some_decoder(6, 5), torch.zeros(2, 5).double()
    exact = elbo_terms(q, likelihood(decoder, x), white(2, 6))[1]
    sampled = torch.stack([elbo_terms(q, likelihood(decoder, x), eps, "sampled")[1] for eps in white(1000, 2, 6)])
    assert ((sampled.mean(0) - exact).abs() <= STANDARD_ERRORS * sampled.std(0) / math.sqrt(1000)).all()


def test_one_importance_sample_is_the_elbo_with_the_sampled_kl() -> None:
    q, decoder, x = some_posterior(Chain(4), 3), some_decoder(4, 5), torch.ones(3, 5).double()
    noise = white(1, 3, 4)
    reconstruction, kl = elbo_terms(q, likelihood(decoder, x), noise[0], "sampled")
    bound = importance_weighted_bound(log_importance_weights(q, likelihood(decoder, x), noise)[1])
    torch.testing.assert_close(bound, reconstruction - kl, rtol=1e-13, atol=1e-13)


def test_more_samples_give_a_higher_bound_on_average() -> None:
    q, decoder, x = some_posterior(Chain(3), 50), some_decoder(3, 8), (white(50, 8, seed=3) > 0).double()
    log_w = log_importance_weights(q, likelihood(decoder, x), white(256, 50, 3))[1]
    by_groups = [importance_weighted_bound(log_w.unflatten(0, (-1, k)).transpose(0, 1)).mean() for k in (1, 4, 16, 256)]
    assert by_groups == sorted(by_groups)  # Jensen's inequality within the same samples: exact, not statistical


def test_running_weights_equal_the_whole_sum_in_chunks_of_any_size() -> None:
    log_w = 300.0 * white(97, 5) - 40_000.0
    whole = torch.softmax(log_w, 0)
    for size in (1, 10, 97):
        weights = RunningWeights(5)
        for chunk in log_w.split(size):
            weights.add(chunk)
        torch.testing.assert_close(weights.log_mean(), importance_weighted_bound(log_w), rtol=1e-14, atol=0.0)
        torch.testing.assert_close(weights.effective_samples(), 1.0 / whole.square().sum(0), rtol=1e-10, atol=0.0)


def test_evaluate_finds_log_p_of_a_two_latent_autoencoder(digits: Images) -> None:
    vae = VAE(Config(posterior="chain", latent=2, hidden=16), digits.mean_intensity)
    images, samples = held_out(Bernoulli(), digits, "test")[:70], 1_000  # more images than are taken at once
    evaluation = evaluate_images(vae, images, samples)
    z, log_weights = hermite(order=40)
    with torch.no_grad():
        logits = vae.decoder(z.float()).double()
    log_likelihood = logits @ images.double().T - logits.exp().log1p().sum(1, keepdim=True)
    exact = torch.logsumexp(log_likelihood + log_weights[:, None], dim=0).numpy()
    standard_error = np.sqrt(1.0 / evaluation.effective_samples - 1.0 / samples)
    assert (np.abs(evaluation.log_p - exact) <= STANDARD_ERRORS * standard_error + 1e-4).all()
    assert (evaluation.elbo <= evaluation.log_p).all()
    assert (evaluation.effective_samples <= samples * (1 + 1e-12)).all()


def test_a_seed_gives_every_topology_the_same_bodies_and_an_identity_factor(digits: Images, recipe: Config) -> None:
    posteriors = ("diagonal", "chain", "extended-grid", "block-chain")
    models = [VAE(replace(recipe, posterior=name), digits.mean_intensity) for name in posteriors]
    for model in models:
        for name, weights in models[0].state_dict().items():
            if not name.startswith("head."):
                assert torch.equal(weights, model.state_dict()[name]), name
        q = model.posterior(held_out(Bernoulli(), digits, "test")[:3])
        is_diagonal = torch.from_numpy(q.topology.factor_pattern.rows == q.topology.factor_pattern.cols)
        assert (q.factor[:, is_diagonal] == 1).all()
        assert (q.factor[:, ~is_diagonal].abs() < 2.0**-50).all()  # nothing beside one: see `heads.SILENCE`
