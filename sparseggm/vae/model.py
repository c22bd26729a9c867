"""The variational autoencoder: an encoder with a Gaussian graphical posterior, a decoder, a likelihood and a prior.

`ImageModel` has what autoencoders of one and of several stochastic layers share; `ladder` has that of several.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from sparseggm.torch import GaussianGraphicalModel, precondition, sample_and_kl
from sparseggm.vae.config import PIXELS, Config
from sparseggm.vae.likelihoods import likelihood_of
from sparseggm.vae.networks import CentredGaussian, decoder, gaussian_head, hidden_layers
from sparseggm.vae.objective import elbo_terms, importance_weighted_terms

DTYPES = {"32-true": torch.float32, "64-true": torch.float64}


class Inference(Protocol):
    """q(z | x) of a batch of images beside p(z), for evaluation and pictures; layers from the top."""

    @property
    def gaussians(self) -> tuple[GaussianGraphicalModel, ...]:
        """The posterior of each layer, given the means of the layers above."""
        ...

    def sample_and_log_ratios(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """z (K, B, n), and log q − log p of each layer there, (layers, K, B), for white noise (K, B, n)."""
        ...

    def kl(self) -> Tensor | None:
        """The exact KL of each layer, (layers, B) float64; None if it is known only given the layers above."""
        ...


class ImageModel(nn.Module, ABC):
    """Encoder body, decoder and likelihood; weights from the seed.

    Args:
        config: the recipe.
        mean_intensity: (784,) mean of the training images in [0, 1], from which the decoder's bias starts.
    """

    def __init__(self, config: Config, mean_intensity: Tensor) -> None:
        super().__init__()
        self.kl_estimator, self.groups, self.latent_variables = config.kl, config.groups, config.latents
        self.likelihood = likelihood_of(config)
        self.encoder = hidden_layers(PIXELS, config.encoder_width)
        self.decoder = decoder(config, mean_intensity)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.encoder[0].weight.dtype  # type: ignore[return-value]

    def features(self, x: Tensor) -> Tensor:
        """What the encoder makes of images (B, 784) as the likelihood observes them, in the dtype of the weights."""
        h: Tensor = self.encoder(self.likelihood.encoded(x).to(self.dtype))
        return h

    @abstractmethod
    def infer(self, x: Tensor) -> Inference:
        """q(z | x) for images (B, 784) as the likelihood observes them, beside p(z)."""

    @abstractmethod
    def latents(self, noise: Tensor) -> Tensor:
        """Samples of the prior, made of white noise (..., n)."""

    @abstractmethod
    def forward(
        self, x: Tensor, noise: Tensor, rng: torch.Generator, kl_weight: float = 1.0, objective: str = "elbo"
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each image, (B,), and its terms by name, each (B,) nats.

        Args:
            x: (B, 784) as the likelihood observes images.
            noise: (B, n) for the ELBO, (K, B, n) for a bound of K samples.
            rng: see `log_likelihood`.
            kl_weight: of the KL, in the loss alone.
            objective: see `Config.objective`.
        """

    def means(self, x: Tensor) -> Tensor:
        """The posterior mean of each layer given those above, (B, n)."""
        return torch.cat([q.loc for q in self.infer(x).gaussians], -1)

    def groups_of(self, objective: str) -> int:
        """Groups of importance samples, whose bounds the encoder maximises."""
        return self.groups if objective == "piwae" else 1

    def log_likelihood(self, z: Tensor, x: Tensor, rng: torch.Generator) -> Tensor:
        """log p(x | z), nats; batch axes of z (..., n) and x (..., 784) broadcast, rng as the likelihood needs it."""
        return self.likelihood.log_prob(self.decoder(z), x, rng)


def named(loss: Tensor, terms: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of an importance-weighted bound, and its terms by name."""
    return loss, dict(zip(("reconstruction", "kl", "bound"), terms, strict=True))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """While entered, weights start from a seed; torch's generator is then where it was before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


class VAE(ImageModel):
    """q(z | x) on `config.topology`, p(x | z) by `config.likelihood`, p(z) on `config.prior_topology` or N(0, I)."""

    def __init__(self, config: Config, mean_intensity: Tensor) -> None:
        with seeded(config.seed):
            super().__init__(config, mean_intensity)
            # The head comes last: only the head differs between posteriors, so a seed gives all the same bodies.
            self.head = gaussian_head(config.encoder_width, config.topology, config.latent_layers[0].family)
        self.natural_gradient = config.natural_gradient
        self.learnt_prior = None if config.prior_topology is None else CentredGaussian(config.prior_topology)

    def posterior(self, x: Tensor) -> GaussianGraphicalModel:
        """q(z | x) for images (B, 784) as the likelihood observes them, in the dtype of the weights."""
        q: GaussianGraphicalModel = self.head(self.features(x))
        return q

    def prior(self) -> GaussianGraphicalModel | None:
        """p(z), of batch shape (); None for N(0, I)."""
        return None if self.learnt_prior is None else self.learnt_prior()

    def infer(self, x: Tensor) -> Inference:
        return OneLayer(self.posterior(x), self.prior())

    def latents(self, noise: Tensor) -> Tensor:
        p, noise = self.prior(), noise.to(self.dtype)
        return noise if p is None else p.colorize(noise)

    def forward(
        self, x: Tensor, noise: Tensor, rng: torch.Generator, kl_weight: float = 1.0, objective: str = "elbo"
    ) -> tuple[Tensor, dict[str, Tensor]]:
        q, p = self.posterior(x), self.prior()
        if self.natural_gradient:
            q = precondition(q)

        def log_likelihood(z: Tensor) -> Tensor:
            return self.log_likelihood(z, x, rng)

        if objective == "elbo":
            reconstruction, kl = elbo_terms(q, log_likelihood, noise, self.kl_estimator, p)
            bound = (reconstruction - kl).detach()
            return kl_weight * kl - reconstruction, {"reconstruction": reconstruction, "kl": kl, "bound": bound}
        groups = self.groups_of(objective)
        return named(*importance_weighted_terms(q, log_likelihood, noise, p, groups=groups, kl_weight=kl_weight))


@dataclass(frozen=True)
class OneLayer:
    """`Inference` of one layer; p None: N(0, I)."""

    q: GaussianGraphicalModel
    p: GaussianGraphicalModel | None

    @property
    def gaussians(self) -> tuple[GaussianGraphicalModel, ...]:
        return (self.q,)

    def sample_and_log_ratios(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        z, log_ratio = sample_and_kl(self.q, self.p, noise, "sampled")
        return z, log_ratio.unsqueeze(0)

    def kl(self) -> Tensor:
        # The KL is exact whatever the noise.
        return sample_and_kl(self.q, self.p, torch.zeros_like(self.q.loc))[1].double().unsqueeze(0)
