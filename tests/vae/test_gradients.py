"""What the objectives' gradients are: on linear Gaussian models, where the posterior and every bound can be written."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from sparseggm.graph.families import Band, Chain
from sparseggm.torch import GaussianGraphicalModel
from sparseggm.vae import elbo_terms, importance_weighted_bound, importance_weighted_terms, log_importance_weights

STANDARD_ERRORS = 5.0
N, PIXELS = 3, 4
TOPOLOGY = Band(N, N - 1)  # on which the exact posterior is


def white(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@dataclass(frozen=True)
class Toy:
    """x = W z + e, e standard normal, of one image x; q with parameters for each of B replicas; perhaps a prior."""

    weights: Tensor
    x: Tensor
    loc: Tensor
    factor: Tensor
    prior_factor: Tensor

    @classmethod
    def example(cls, replicas: int, wrong: float = 0.3, dtype: torch.dtype = torch.float64) -> Toy:
        """A q that is the exact posterior but for changes of about `wrong`, under a prior on a chain."""
        weights, x = white(PIXELS, N, seed=1), white(PIXELS, seed=2)
        prior = torch.linalg.cholesky(prior_precision())
        lower = torch.linalg.cholesky(prior_precision() + weights.T @ weights)
        loc = torch.cholesky_solve((weights.T @ x)[:, None], lower)[:, 0] + wrong * white(N, seed=3)
        pattern = TOPOLOGY.factor_pattern
        packed = torch.from_numpy(pattern.values_of(lower.numpy()))
        packed = packed * (wrong * white(pattern.nnz, seed=4)).exp()
        prior_packed = torch.from_numpy(Chain(N).factor_pattern.values_of(prior.numpy()))
        tensors = weights, x, loc.expand(replicas, -1), packed.expand(replicas, -1), prior_packed
        return cls(*(tensor.to(dtype, copy=True).contiguous().requires_grad_() for tensor in tensors))

    @property
    def q(self) -> GaussianGraphicalModel:
        return GaussianGraphicalModel(self.loc, factor=self.factor, topology=TOPOLOGY)

    @property
    def p(self) -> GaussianGraphicalModel:
        return GaussianGraphicalModel(torch.zeros_like(self.x[:N]), factor=self.prior_factor, topology=Chain(N))

    @property
    def encoder(self) -> tuple[Tensor, ...]:
        return self.loc, self.factor

    @property
    def generative(self) -> tuple[Tensor, ...]:
        return self.weights, self.prior_factor

    def log_likelihood(self, z: Tensor) -> Tensor:
        return -0.5 * ((self.x - z @ self.weights.T).square().sum(-1) + PIXELS * math.log(2.0 * math.pi))

    def plain_log_weights(self, noise: Tensor, kl_weight: float = 1.0) -> Tensor:
        reconstruction, log_weights = log_importance_weights(self.q, self.log_likelihood, noise, self.p)
        return reconstruction + kl_weight * (log_weights - reconstruction)


def prior_precision() -> Tensor:
    chain = torch.diag_embed(torch.full((N,), 2.0, dtype=torch.float64))
    return chain - 0.7 * (torch.diag_embed(torch.ones(N - 1).double(), 1) + torch.diag_embed(torch.ones(N - 1), -1))


def flat(gradients: tuple[Tensor, ...]) -> Tensor:
    """(B, numbers) of gradients with a first axis of replicas."""
    return torch.cat([gradient.flatten(1) for gradient in gradients], 1)


def test_the_path_gradient_of_an_encoder_that_is_exact_is_zero() -> None:
    toy = Toy.example(50, wrong=0.0)
    for kl, least, most in (("path", 0.0, 1e-12), ("sampled", 0.1, math.inf)):
        reconstruction, divergence = elbo_terms(toy.q, toy.log_likelihood, white(50, N), kl, toy.p)
        found = flat(torch.autograd.grad((reconstruction - divergence).sum(), toy.encoder)).abs().max()
        assert least <= found <= most, kl


def test_one_importance_sample_has_the_path_gradient_of_the_elbo() -> None:
    toy, noise = Toy.example(5), white(1, 5, N)
    loss, terms = importance_weighted_terms(toy.q, toy.log_likelihood, noise, toy.p)
    reconstruction, divergence = elbo_terms(toy.q, toy.log_likelihood, noise[0], "path", toy.p)
    everything = (*toy.encoder, *toy.generative)
    found = torch.autograd.grad(loss.sum(), everything)
    expected = torch.autograd.grad((divergence - reconstruction).sum(), everything)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)
    for one, other in zip(terms, (reconstruction, divergence, reconstruction - divergence), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kl_weight", [1.0, 0.3])
@pytest.mark.parametrize("groups", [1, 2, 8])
def test_decoder_and_prior_have_the_gradient_of_the_bound_of_all_samples(groups: int, kl_weight: float) -> None:
    toy, noise = Toy.example(5), white(8, 5, N)
    loss, terms = importance_weighted_terms(toy.q, toy.log_likelihood, noise, toy.p, groups=groups, kl_weight=kl_weight)
    bound = importance_weighted_bound(toy.plain_log_weights(noise, kl_weight))
    expected = torch.autograd.grad(bound.sum(), toy.generative)
    for one, other in zip(torch.autograd.grad(-loss.sum(), toy.generative), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(terms[2], importance_weighted_bound(toy.plain_log_weights(noise)), rtol=1e-12, atol=0.0)


def mean_of_groups(log_weights: Tensor, groups: int) -> Tensor:
    """The bound that PIWAE's encoder maximises, (B,)."""
    parts = log_weights.unflatten(0, (groups, -1))
    return torch.stack([importance_weighted_bound(part) for part in parts]).mean(0)


@pytest.mark.parametrize(("groups", "kl_weight"), [(1, 1.0), (2, 1.0), (4, 1.0), (1, 0.3), (2, 0.3), (2, 0.0)])
def test_the_encoders_gradient_is_that_of_the_bound_in_expectation(groups: int, kl_weight: float) -> None:
    """The mean difference of 40,000 pairs is within 5 standard errors: 9 of them, beyond that with probability 5e-6."""
    replicas = 40_000
    toy, noise = Toy.example(replicas), white(8, replicas, N, seed=5)
    loss, _ = importance_weighted_terms(toy.q, toy.log_likelihood, noise, toy.p, groups=groups, kl_weight=kl_weight)
    found = -flat(torch.autograd.grad(loss.sum(), toy.encoder))
    bound = mean_of_groups(toy.plain_log_weights(noise, kl_weight), groups)
    plain = flat(torch.autograd.grad(bound.sum(), toy.encoder))
    difference = found - plain
    standard_error = difference.std(0) / math.sqrt(replicas)
    assert (difference.mean(0).abs() <= STANDARD_ERRORS * standard_error + 1e-12).all()
    assert (found.mean(0).abs() > STANDARD_ERRORS * standard_error).any(), "a gradient of zero would pass"
    if kl_weight == 1.0:
        assert found.var(0).sum() < 0.5 * plain.var(0).sum()


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-9), (torch.float32, 1e-3)])
def test_a_group_whose_weights_underflow_keeps_its_part_in_the_encoders_gradient(
    dtype: torch.dtype, close: float
) -> None:
    """Its bound moves by the constant that is subtracted here, and so does the mean of both groups' bounds."""
    toy, noise = Toy.example(5, dtype=dtype), white(6, 5, N, dtype=dtype)
    far_below = torch.tensor([0.0, 2000.0], dtype=dtype).repeat_interleave(3)[:, None]

    def gradients(log_likelihood: Callable[[Tensor], Tensor], part: slice, groups: int) -> tuple[Tensor, ...]:
        loss, _ = importance_weighted_terms(toy.q, log_likelihood, noise[part], toy.p, groups=groups)
        return torch.autograd.grad(loss.sum(), (*toy.encoder, *toy.generative))

    together = gradients(toy.log_likelihood, slice(None), 2)
    apart = gradients(lambda z: toy.log_likelihood(z) - far_below, slice(None), 2)
    first = gradients(toy.log_likelihood, slice(3), 1)
    for found, encoders, generative in zip(apart[:2], together[:2], first[:2], strict=True):
        torch.testing.assert_close(found, encoders, rtol=close, atol=close)
        assert not torch.allclose(found, generative, rtol=0.1)
    for found, generative in zip(apart[2:], first[2:], strict=True):
        torch.testing.assert_close(found, generative, rtol=close, atol=close)


def test_no_gradient_is_asked_for_where_none_is_wanted() -> None:
    toy = Toy.example(2)
    with torch.no_grad():
        loss, terms = importance_weighted_terms(toy.q, toy.log_likelihood, white(4, 2, N), toy.p, groups=2)
    assert loss.shape == (2,)
    assert all(term.shape == (2,) for term in terms)
