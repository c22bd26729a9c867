"""The variational autoencoder: an encoder with a Gaussian graphical posterior, a decoder, a likelihood and a prior."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparseggm.torch import GaussianGraphicalModel
from sparseggm.vae.config import PIXELS, Config
from sparseggm.vae.likelihoods import likelihood_of
from sparseggm.vae.networks import CentredGaussian, decoder, encoder_body, gaussian_head
from sparseggm.vae.objective import elbo_terms, importance_weighted_terms

DTYPES = {"32-true": torch.float32, "64-true": torch.float64}


class VAE(nn.Module):
    """q(z | x) on `config.topology`, p(x | z) by `config.likelihood`, p(z) on `config.prior_topology` or N(0, I).

    Args:
        config: sizes, posterior, prior, likelihood, objective and seed of the weights.
        mean_intensity: (784,) mean of the training images in [0, 1], from which the decoder's bias starts.
    """

    def __init__(self, config: Config, mean_intensity: Tensor) -> None:
        super().__init__()
        self.objective, self.kl, self.groups = config.objective, config.kl, config.groups
        self.likelihood = likelihood_of(config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            # The head comes last: only the head differs between posteriors, so a seed gives all the same bodies.
            self.encoder = encoder_body(config.encoder_width)
            self.decoder = decoder(config, mean_intensity)
            self.head = gaussian_head(config.encoder_width, config.topology, config.posterior_gaussian.family)
        self.learnt_prior = None if config.prior_topology is None else CentredGaussian(config.prior_topology)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.encoder[0].weight.dtype  # type: ignore[return-value]

    def posterior(self, x: Tensor) -> GaussianGraphicalModel:
        """q(z | x) for images (B, 784) as the likelihood observes them, in the dtype of the weights."""
        q: GaussianGraphicalModel = self.head(self.encoder(self.likelihood.encoded(x).to(self.dtype)))
        return q

    def prior(self) -> GaussianGraphicalModel | None:
        """p(z), of batch shape (); None for N(0, I)."""
        return None if self.learnt_prior is None else self.learnt_prior()

    def latents(self, noise: Tensor) -> Tensor:
        """Samples of the prior, made of white noise (..., n)."""
        p, noise = self.prior(), noise.to(self.dtype)
        return noise if p is None else p.colorize(noise)

    def log_likelihood(self, z: Tensor, x: Tensor, rng: torch.Generator) -> Tensor:
        """log p(x | z), nats; batch axes of z (..., n) and x (..., 784) broadcast, rng as the likelihood needs it."""
        return self.likelihood.log_prob(self.decoder(z), x, rng)

    def forward(
        self, x: Tensor, noise: Tensor, rng: torch.Generator, kl_weight: float = 1.0
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The loss of each image, (B,), and its terms, as `Config.terms` names them, each (B,) nats.

        Args:
            x: (B, 784) as the likelihood observes images.
            noise: (B, n) for the ELBO, (K, B, n) for a bound of K samples.
            rng: see `log_likelihood`.
            kl_weight: of the KL, in the loss alone.
        """
        q, p = self.posterior(x), self.prior()

        def log_likelihood(z: Tensor) -> Tensor:
            return self.log_likelihood(z, x, rng)

        if self.objective == "elbo":
            reconstruction, kl = elbo_terms(q, log_likelihood, noise, self.kl, p)
            return kl_weight * kl - reconstruction, (reconstruction, kl)
        return importance_weighted_terms(q, log_likelihood, noise, p, groups=self.groups, kl_weight=kl_weight)


def untrained(config: Config) -> VAE:
    """A model whose weights a checkpoint will overwrite."""
    return VAE(config, torch.full((PIXELS,), 0.5, device="cpu")).to(DTYPES[config.precision])
