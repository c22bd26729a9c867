"""The variational autoencoder: an encoder with a Gaussian graphical posterior, a decoder, and a likelihood."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparseggm.torch import GaussianGraphicalModel
from sparseggm.vae.config import PIXELS, Config
from sparseggm.vae.likelihoods import likelihood_of
from sparseggm.vae.networks import decoder, encoder_body, gaussian_head
from sparseggm.vae.objective import elbo_terms

DTYPES = {"32-true": torch.float32, "64-true": torch.float64}


class VAE(nn.Module):
    """q(z | x) on `config.topology`, p(x | z) by `config.likelihood`, p(z) = N(0, I).

    Args:
        config: sizes, posterior, likelihood and seed of the weights.
        mean_intensity: (784,) mean of the training images in [0, 1], from which the decoder's bias starts.
    """

    def __init__(self, config: Config, mean_intensity: Tensor) -> None:
        super().__init__()
        self.kl, self.likelihood = config.kl, likelihood_of(config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            # The head comes last: only the head differs between posteriors, so a seed gives all the same bodies.
            self.encoder = encoder_body(config.encoder_width)
            self.decoder = decoder(config, mean_intensity)
            self.head = gaussian_head(config.encoder_width, config.topology, config.posterior_gaussian.family)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.encoder[0].weight.dtype  # type: ignore[return-value]

    def posterior(self, x: Tensor) -> GaussianGraphicalModel:
        """q(z | x) for images (B, 784) as the likelihood observes them, in the dtype of the weights."""
        q: GaussianGraphicalModel = self.head(self.encoder(self.likelihood.encoded(x).to(self.dtype)))
        return q

    def log_likelihood(self, z: Tensor, x: Tensor, rng: torch.Generator) -> Tensor:
        """log p(x | z), nats; batch axes of z (..., n) and x (..., 784) broadcast, rng as the likelihood needs it."""
        return self.likelihood.log_prob(self.decoder(z), x, rng)

    def forward(self, x: Tensor, noise: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Reconstruction and KL of one sample an image, each (B,) nats; see `objective.elbo_terms`."""
        return elbo_terms(self.posterior(x), lambda z: self.log_likelihood(z, x, rng), noise, self.kl)


def untrained(config: Config) -> VAE:
    """A model whose weights a checkpoint will overwrite."""
    return VAE(config, torch.full((PIXELS,), 0.5, device="cpu")).to(DTYPES[config.precision])
